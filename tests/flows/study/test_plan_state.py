"""How long a study takes: judged by the runs that there are."""

import pytest

from flows.study.plan_state import PlanState
from pipeline.study.study_plan import PlannedRun
from pipeline.study.study_row import Row
from tests.builders.study_plans import small_row


def planned(name: str, steps: int) -> PlannedRun:
    group, world, variant, seed = name.split("/")
    return PlannedRun(group, world, variant, int(seed), steps, [])


def timed(name: str, seconds: int) -> Row:
    """Return a row of two steps that took so long."""
    return small_row(name, made={"seconds": seconds})


def test_a_run_takes_what_runs_of_its_variant_took() -> None:
    rows = [timed("pilot/a/srpo/0", 10), timed("pilot/a/srpo/1", 30), timed("pilot/a/srpo/2", 12),
            timed("pilot/a/grpo/0", 2), timed("pilot/b/srpo/0", 100)]  # fmt: skip
    state = PlanState([], {row.name: row for row in rows})
    # Medians per step: srpo 12 s / 2 = 6 s, grpo 1 s.
    runs = [planned("main/a/srpo/1", 100), planned("main/a/grpo/1", 100)]
    assert state.seconds_left(runs, jobs=1) == 700
    assert state.seconds_left(runs, jobs=2) == 350
    # Of sdpo there is none: all of world a, per step 5, 15, 6 and 1 s, median 5.5.
    assert state.seconds_left([planned("main/a/sdpo/1", 10)], jobs=1) == pytest.approx(55)
    assert state.seconds_left([*runs, planned("main/c/srpo/1", 100)], jobs=1) is None


def test_rows_without_seconds_tell_nothing() -> None:
    state = PlanState([], {"pilot/a/srpo/0": small_row("pilot/a/srpo/0")})
    assert state.seconds_left([planned("main/a/srpo/1", 10)], jobs=1) is None


def test_missing_runs_keep_the_plans_order() -> None:
    runs = [planned(f"main/a/{name}/0", 2) for name in ("x", "b", "c")]
    state = PlanState(runs, {"main/a/b/0": small_row("main/a/b/0")})
    assert state.missing == [runs[0], runs[2]]
