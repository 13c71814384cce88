"""Runs side by side: budgets, seeds, names, warnings, by numbers worked out by hand; figures."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.compare.comparability import telling_names
from pipeline.compare.comparison import (
    Budget,
    Cell,
    Comparison,
    compare_runs,
)
from pipeline.compare.figures import figures_of
from pipeline.compare.panels import rolling, step_series
from pipeline.compare.report import note_of, record_of, write_folder
from pipeline.compare.seed_intervals import T_QUANTILES, seeds_interval
from pipeline.errors import SrpoError, StoreError
from pipeline.files.durable import digest_of, write_json
from pipeline.run.fork import Fork
from pipeline.run.metrics import evaluation_metrics
from pipeline.run.run import Run
from tests.builders.accuracy_runs import evaluation, make_run

ACCURACIES = {0: 0.2, 2: 0.6, 4: 0.5}


def compared(*runs: Run, **limits: list[float]) -> Comparison:
    return compare_runs(runs, limits)  # type: ignore[arg-type]


def cell(found: Comparison, axis: str, limit: float, row: int = 0) -> Cell:
    place = found.budgets.index(Budget(axis, limit))  # type: ignore[arg-type]
    shown = found.cells[row][place]
    assert shown is not None
    return shown


def seeds(folder: Path, accuracies: list[float], **sections: dict[str, Any]) -> list[Run]:
    return [
        make_run(folder / f"s{seed}", {0: 0.1, 4: accuracy}, run={"seed": seed}, **sections)
        for seed, accuracy in enumerate(accuracies)
    ]


def test_the_best_within_a_budget_counts(tmp_path: Path) -> None:
    """Steps take 10 s and 100 tokens: 2 steps are 20 s and 200 tokens, the best is after them."""
    run = make_run(tmp_path / "a", ACCURACIES)
    found = compared(run, seconds=[19.9, 20.0, 40.0], tokens=[199, 200], steps=[1, 2, 4])
    for axis, limit in (("seconds", 19.9), ("tokens", 199), ("steps", 1)):
        assert cell(found, axis, limit).interval.mean == pytest.approx(0.2)
    for axis, limit in (("seconds", 20.0), ("tokens", 200), ("steps", 2), ("seconds", 40.0)):
        shown = cell(found, axis, limit)
        assert shown.interval.mean == pytest.approx(0.6)
        assert [best.steps for best in shown.best] == [2]


def test_of_equals_the_earliest_counts(tmp_path: Path) -> None:
    found = compared(make_run(tmp_path / "a", {0: 0.3, 2: 0.5, 4: 0.5}), steps=[4])
    assert cell(found, "steps", 4).best[0].steps == 2


def test_default_budgets_are_shares_of_the_shortest_row(tmp_path: Path) -> None:
    """The second row ends after 2 of 4 steps, at 2 × 30 s; the first one at 4 × 10 s."""
    first = make_run(tmp_path / "a", ACCURACIES)
    slow = make_run(tmp_path / "b", {0: 0.2, 2: 0.4}, 2, seconds=30.0, weigh={"beta": 2.0})
    budgets = compared(first, slow).budgets
    assert [b.limit for b in budgets if b.axis == "seconds"] == [10.0, 20.0, 40.0]
    assert [b.limit for b in budgets if b.axis == "tokens"] == [50.0, 100.0, 200.0]
    assert [b.limit for b in budgets if b.axis == "steps"] == [1.0, 2.0]


def test_a_row_that_ends_before_its_budget_is_marked(tmp_path: Path) -> None:
    found = compared(make_run(tmp_path / "a", ACCURACIES), steps=[4, 5])
    assert [cell(found, "steps", n).reached for n in (4, 5)] == [True, False]
    assert "†" in note_of(found)


def test_seeds_are_one_row_with_students_t(tmp_path: Path) -> None:
    """0.4, 0.5, 0.6: mean 0.5, s = 0.1, t(2) = 4.303: half is 4.303 × 0.1 / sqrt(3) = 0.24843."""
    found = compared(*seeds(tmp_path, [0.4, 0.5, 0.6]), steps=[4])
    assert [len(row.curves) for row in found.rows] == [3]
    shown = cell(found, "steps", 4)
    assert shown.interval == pytest.approx((0.5, 0.5 - 0.24843, 0.5 + 0.24843), abs=1e-5)
    assert [best.seed for best in shown.best] == [0, 1, 2]
    assert "Student" in note_of(found) and "bootstrap" not in note_of(found)


def test_one_seed_has_its_bootstrap_interval(tmp_path: Path) -> None:
    found = compared(make_run(tmp_path / "a", ACCURACIES), steps=[4])
    expected = evaluation_metrics(evaluation(0.6))
    assert cell(found, "steps", 4).interval == (
        expected["accuracy"],
        expected["low"],
        expected["high"],
    )
    assert expected["low"] < 0.6 < expected["high"]


def test_intervals_stay_within_0_and_1() -> None:
    assert seeds_interval([0.9, 1.0]).high == 1.0
    assert seeds_interval([0.0, 0.1]).low == 0.0
    assert seeds_interval([0.5, 0.5]) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("degrees", [1, 2, 7, 30])
def test_the_quantiles_hold_95_percent(degrees: int) -> None:
    """Student's density, integrated between minus and plus the quantile."""
    gamma = math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)
    scale = math.exp(gamma) / math.sqrt(degrees * math.pi)
    at = np.linspace(-T_QUANTILES[degrees - 1], T_QUANTILES[degrees - 1], 200_001)
    density = scale * (1 + at**2 / degrees) ** (-(degrees + 1) / 2)
    assert np.trapezoid(density, at) == pytest.approx(0.95, abs=1e-4)


def test_housekeeping_makes_no_row_of_its_own(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / "a", ACCURACIES, run={"seed": 1, "steps": 4}),
        make_run(tmp_path / "b", ACCURACIES, run={"seed": 2, "steps": 9, "max_hours": 1.0}),
    ]
    assert [row.label for row in compared(*runs).rows] == ["srpo"]


def test_rows_are_named_by_what_differs(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / "a", ACCURACIES),
        make_run(tmp_path / "b", ACCURACIES, weigh={"beta": 2.0}),
        make_run(tmp_path / "c", ACCURACIES, route={"method": "grpo"}),
    ]
    rows = compared(*runs).rows
    assert [row.label for row in rows] == ["srpo, weigh.beta=1", "srpo, weigh.beta=2", "grpo"]
    assert rows[2].settings == {"route.method": "grpo", "weigh.beta": 0.0}


def test_names_have_as_much_of_a_path_as_tells_runs_apart() -> None:
    places = ["level-1/srpo/3", "level-1/grpo/3", "level-2/srpo/3"]
    nested = [Path("/runs/main") / place for place in places]
    assert telling_names(nested[:1]) == ["3"]
    assert telling_names(nested[:2]) == ["srpo/3", "grpo/3"]
    assert telling_names(nested) == places
    assert telling_names([nested[0], nested[0]]) == ["3", "3"]
    assert telling_names([Path("/a"), Path("/b/a")]) == ["a", "b/a"]
    assert telling_names([]) == []


def test_a_run_given_twice_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", ACCURACIES)
    with pytest.raises(SrpoError, match="given twice"):
        compared(run, Run.open(tmp_path / "a" / "steps" / ".."))


def test_no_evaluation_at_all_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SrpoError, match="no evaluation in a"):
        compared(make_run(tmp_path / "a", {}))


def test_the_same_seed_twice_is_warned_of(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, ACCURACIES) for name in "ab"]
    assert compared(*runs).warnings == [
        "row srpo: several runs with one seed; intervals over them are no intervals over seeds"
    ]


def test_unlike_runs_are_warned_of_by_name(tmp_path: Path) -> None:
    machine = {"machine": "x86_64", "device": "cpu", "gpu": None, "threads": 1}
    runs = [
        make_run(tmp_path / "a", ACCURACIES, facts={"hardware": machine}),
        make_run(
            tmp_path / "b",
            ACCURACIES,
            facts={"hardware": {**machine, "threads": 2}},
            evaluate={"temperature": 1.0, "batch_size": 7},
        ),
        make_run(tmp_path / "c", ACCURACIES, data={"task": "other"}),
    ]
    found = compared(*runs).warnings
    like = "not like with like: runs differ in"
    assert f"{like} task: data.task arithmetic (a, b) or other (c)" in found
    assert f"{like} evaluation: evaluate.temperature 0.6 (a, c) or 1 (b)" in found
    hardware = next(text for text in found if "hardware" in text)
    assert "threads 1 (a) or 2 (b) or unset (c)" in hardware
    assert len(found) == 3


def test_equal_runs_of_several_seeds_are_not_warned_of(tmp_path: Path) -> None:
    assert compared(*seeds(tmp_path, [0.4, 0.5])).warnings == []


def test_steps_without_metrics_leave_budgets_of_steps(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", ACCURACIES)
    run.metrics_path(3).unlink()
    found = compared(run, seconds=[100.0], steps=[4], tokens=[900])
    assert cell(found, "seconds", 100.0).best[0].steps == 2
    assert not cell(found, "seconds", 100.0).reached and cell(found, "steps", 4).reached
    assert "steps before the evaluations after 4 have no metrics" in found.warnings[0]


def test_a_fork_counts_with_what_it_inherits(tmp_path: Path) -> None:
    """Forked at weigh of step 2: the parent's first two steps and evaluations are its own too."""
    parent = make_run(tmp_path / "parent", ACCURACIES)
    fork = forked(parent, tmp_path / "fork")
    assert sorted(fork.steps_of("evaluations")) == [0, 2]
    found = compared(parent, fork, steps=[2], seconds=[20.0])
    assert [row.label for row in found.rows] == [
        "srpo, weigh.beta=1",
        "srpo, weigh.beta=3, fork at weigh of step 2",
    ]
    assert cell(found, "seconds", 20.0, row=1) == Cell(
        cell(found, "seconds", 20.0).interval,
        [cell(found, "seconds", 20.0).best[0]._replace(run="fork")],
        True,
    )


def test_a_replayed_fork_is_told_of(tmp_path: Path) -> None:
    """Its rollouts from step 3 on were sampled by another policy than its own."""
    fork = forked(make_run(tmp_path / "parent", ACCURACIES), tmp_path / "fork", updates=True)
    [warning] = compared(fork).warnings
    assert warning.startswith("fork is a replayed fork: ") and "step 3" in warning


def forked(parent: Run, folder: Path, updates: bool = False) -> Run:
    changed = {"weigh.beta": (1.0, 3.0)}
    fork = Fork("../parent", parent.identity, "weigh", 2, 4, changed, updates)
    values = parent.config.model_dump()
    values["weigh"]["beta"] = 3.0
    record: dict[str, Any] = {"schema_version": 2, "config": values, "fork": fork.to_record()}
    write_json(folder / "run.json", {**record, "digest": digest_of(record)})
    return Run.open(folder)


def test_rolling_looks_at_the_last_five_steps() -> None:
    """At step 8 the values of steps 4 to 8 count: 3 and 5 here, mean 4, deviation 1."""
    mean, deviation = rolling([0, 4, 8], [1.0, 3.0, 5.0])
    assert mean.tolist() == [1.0, 2.0, 4.0]
    assert deviation.tolist() == [0.0, 1.0, 1.0]


def test_series_are_means_over_the_seeds_that_have_numbers(tmp_path: Path) -> None:
    """Teacher entropies end after step 1; one seed has 2 steps only."""
    short = make_run(tmp_path / "b", {0: 0.1}, 2, seconds=30.0, run={"seed": 1})
    row = compared(make_run(tmp_path / "a", ACCURACIES), short).rows[0]
    assert step_series(row, "seconds") == ([0, 1], [20.0, 20.0])
    assert step_series(row, "teacher_entropy_mean") == ([0, 1], [1.0, 2.0])
    assert step_series(row, "nothing") == ([], [])


@pytest.mark.slow
def test_figures_are_drawn_alike_each_time(tmp_path: Path) -> None:
    runs = [
        *seeds(tmp_path, [0.4, 0.5]),
        make_run(tmp_path / "g", {0: 0.2}, 0, model={"path": "$x_{1}$ \U0001f600"}),
    ]
    found = compared(*runs)
    assert [figure.name for figure in figures_of(found)] == [
        "figure-1",
        "figure-3",
        "figure-4",
        "figure-5",
        "figure-pass-at-k",
    ]
    for figure, again in zip(figures_of(found), figures_of(found), strict=True):
        svg = figure.svg()
        assert svg == again.svg() and figure.png() == again.png()
        assert svg != figure.svg("dark")
        assert b"<dc:date>" not in svg and figure.png().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_folder_is_self_contained_and_harmless(tmp_path: Path) -> None:
    name = "<script>alert(1)<%2fscript>&\u202e\x1b[31m"
    runs = [
        make_run(tmp_path / name, ACCURACIES),
        make_run(tmp_path / "b", ACCURACIES, model={"path": "<img src=x>"}),
    ]
    files = write_folder(compared(*runs), tmp_path / "out")
    assert sorted(path.name for path in files) == sorted(
        p.name for p in (tmp_path / "out").iterdir()
    )
    assert len(files) == 11
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "<script" not in page and "<img src=x" not in page
    assert "&lt;script&gt;alert(1)" in page and "\u202e" not in page and "\x1b" not in page
    assert "Content-Security-Policy" in page and "default-src &#39;none&#39;" not in page
    addresses = re.findall(r'(?:src|srcset|href)="([^"]{0,5})', page)
    assert set(addresses) == {"data:", "figur"}
    with pytest.raises(StoreError, match="something already"):
        write_folder(compared(*runs), tmp_path / "out")


def test_the_record_says_how_each_number_came_about(tmp_path: Path) -> None:
    record = record_of(compared(*seeds(tmp_path, [0.4, 0.5, 0.6]), steps=[4]))
    assert record["measure"] == "avg@2"
    last = record["rows"][0]["cells"][-1]
    assert last["interval"] == "student_t_over_seeds" and last["reached"]
    assert [(best["seed"], best["accuracy"]) for best in last["best"]] == [
        (0, pytest.approx(0.4)),
        (1, pytest.approx(0.5)),
        (2, pytest.approx(0.6)),
    ]
