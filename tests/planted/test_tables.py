"""Each trouble, planted in drawn tables, is flagged by its own rule, with evidence of it."""

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from flows.cli import main
from pipeline.run.run import Run
from tests.planted.drawn_runs import EOS, State, Trouble, growing, healthy, make_run

ONSET, WITHIN, SEEDS = 12, 5, (0, 1, 2)
Tables = dict[str, pa.Table]
Shows = Callable[[Tables], Any]

pytestmark = pytest.mark.campaign


def spike(since: int) -> State:
    """Return a state whose first update alone has a large gradient."""
    return State(gradient=0.1 if since else 6.0)


def lengths(tables: Tables) -> pa.Array:
    """Return the length of each response."""
    return pc.list_value_length(tables["rollouts"]["response_ids"])


def demonstrates(tables: Tables) -> Any:
    """Return which rollouts demonstrate, and are short."""
    among = pc.is_in(
        tables["rollouts"]["rollout_id"], tables["routes"]["teacher_rollout_id"].combine_chunks()
    )
    return pc.and_(among, pc.less(lengths(tables), 40))


PLANTED: dict[str, tuple[Trouble, set[str], Shows]] = {
    "format_falls": (
        growing(form=0.5),
        {"accuracy_falls"},
        lambda t: pc.invert(t["verdicts"]["format_ok"]),
    ),
    "evaluated_format_falls": (
        growing(evaluated_form=0.4),
        {"accuracy_falls"},
        lambda t: pc.invert(t["evaluations"]["format_ok"]),
    ),
    "length_grows": (
        growing(tokens=220.0),
        set(),
        lambda t: pc.greater(lengths(t), 150),
    ),
    "length_shrinks": (growing(tokens=18.0), set(), lambda t: pc.less(lengths(t), 20)),
    "demonstrations_shrink": (growing(demonstration=0.3), set(), demonstrates),
    "teacher_entropy_collapses": (
        growing(entropy=0.02),
        {"weights_collapse"},
        lambda t: pc.equal(t["routes"]["route"], "sdpo"),
    ),
    "weights_collapse": (
        growing(entropy_spread=0.02),
        set(),
        lambda t: pc.equal(t["routes"]["route"], "sdpo"),
    ),
    "duplicate_responses": (
        growing(repeated=0.6),
        set(),
        lambda t: pc.equal(t["rollouts"]["response_text"], " ".join(["30"] * 40 + [str(EOS)])),
    ),
    "gradient_spike": (spike, set(), lambda t: pc.greater(pc.abs(t["updates"]["loss_sum"]), 5.0)),
    "engine_mismatch": (
        growing(gap=1.5),
        set(),
        lambda t: pc.greater(t["updates"]["max_logprob_gap"], 0.5),
    ),
    "verifier_fails": (
        growing(errors=0.3),
        {"evaluated_verifier_fails"},
        lambda t: pc.is_valid(t["verdicts"]["error"]),
    ),
    "gold_told": (
        growing(told=0.6),
        set(),
        lambda t: pc.match_substring(
            pc.fill_null(t["routes"]["teacher_prompt_text"], ""), "It is 4."
        ),
    ),
}
"""By rule: the trouble, alarms that rightly come with it, and which rollouts show it."""


def alarms(run: Run) -> dict[str, tuple[int, dict[str, Any]]]:
    """Return the alarms by rule, with the step whose record raises them."""
    raised = [
        (alarm["rule"], step, alarm)
        for step in range(run.steps_done())
        for alarm in run.metrics(step)["alarms"]
    ]
    assert len({rule for rule, _, _ in raised}) == len(raised), "an alarm is raised once"
    return {rule: (step, alarm) for rule, step, alarm in raised}


def tables_of(run: Run, step: int, evaluated: bool) -> Tables:
    """Return the tables that evidence of a step is chosen from."""
    if evaluated:
        return {"evaluations": run.read("evaluations", step)}
    return {t: run.read(t, step) for t in ("rollouts", "verdicts", "routes", "updates")}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("rule", PLANTED)
def test_a_trouble_is_flagged_by_its_rule_with_evidence_that_shows_it(
    rule: str, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    trouble, companions, shows = PLANTED[rule]
    run = make_run(tmp_path / "run", trouble, seed, ONSET, ONSET + WITHIN + 1)
    found = alarms(run)
    assert {rule} <= set(found) <= {rule} | companions
    step, alarm = found[rule]
    assert ONSET <= alarm["step"] <= step <= ONSET + WITHIN
    assert ONSET - 2 <= alarm["healthy"] <= ONSET + 2  # the first steps of a ramp show little
    evaluated = rule.startswith("evaluated")
    tables = tables_of(run, alarm["step"] if evaluated else step, evaluated)
    table = next(iter(tables.values()))
    showing = table.filter(shows(tables))["rollout_id"].to_pylist()
    assert 0 < len(alarm["evidence"]) <= 5
    assert set(alarm["evidence"]) <= set(showing)
    monkeypatch.setattr(sys, "argv", shlex.split(alarm["command"]))
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    assert alarm["evidence"][0] in capsys.readouterr().out


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("groups", [8, 32])
def test_a_healthy_policy_raises_nothing_in_sixty_steps(
    groups: int, seed: int, tmp_path: Path
) -> None:
    steps = 60 if groups == 8 else 30
    assert alarms(make_run(tmp_path / "run", healthy, seed, steps, steps, groups)) == {}


@pytest.mark.parametrize("seed", SEEDS)
def test_responses_cut_from_the_very_start_are_flagged_after_three_steps(
    seed: int, tmp_path: Path
) -> None:
    run = make_run(tmp_path / "run", lambda _: State(tokens=400.0), seed, 0, 6)
    ((rule, (step, alarm)),) = alarms(run).items()
    assert (rule, step, alarm["step"], alarm["healthy"]) == ("truncated", 2, 0, 0)
    cut = pc.equal(run.read("rollouts", 2)["finish_reason"], "length")
    assert set(alarm["evidence"]) <= set(
        run.read("rollouts", 2).filter(cut)["rollout_id"].to_pylist()
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_ten_steps_with_nothing_to_teach_are_flagged(seed: int, tmp_path: Path) -> None:
    """No question is ever solved, from the start: no accuracy could fall, no teacher is there."""
    run = make_run(tmp_path / "run", lambda _: State(ease=(0.0, 0.0)), seed, 0, 12)
    ((rule, (step, alarm)),) = alarms(run).items()
    assert (rule, step, alarm["step"]) == ("nothing_taught", 9, 0)
    assert len(alarm["evidence"]) == 5


@pytest.mark.parametrize("seed", SEEDS)
def test_a_slow_decay_of_the_format_is_flagged_before_half_is_lost(
    seed: int, tmp_path: Path
) -> None:
    run = make_run(
        tmp_path / "run", lambda since: State(form=0.96 - 0.006 * since), seed, ONSET, 90, every=90
    )
    step, alarm = alarms(run)["format_falls"]
    assert 0.96 - 0.006 * (step - ONSET) > 0.6
    assert alarm["severe"]
