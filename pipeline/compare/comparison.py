"""Runs side by side: the paper's Table 1, best avg@k within budgets (docs/method.md, section 10).

Runs that differ in nothing but `run.*` (the seed, above all) are one row with several seeds. Within
a budget of training seconds, sampled tokens or steps each run counts with its best evaluation, the
one before training included; evaluations themselves cost no budget.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from pipeline.compare.comparability import (
    differing,
    labels_of,
    lineage,
    runs_by_folder,
    settings_of,
    unlike,
)
from pipeline.compare.pass_change import PassChange, pass_change
from pipeline.compare.seed_intervals import seeds_interval
from pipeline.errors import SrpoError
from pipeline.files.durable import canonical_json
from pipeline.run.metrics import Interval, evaluation_metrics, tasks_of
from pipeline.run.run import Run

Axis = Literal["seconds", "tokens", "steps"]
AXES: tuple[Axis, ...] = ("seconds", "tokens", "steps")
SHARES = (0.25, 0.5, 1.0)
"""Default budgets, as shares of the range that every row covers."""

_TOLERANCE = 1 + 1e-9


@dataclass(frozen=True)
class Evaluation:
    """An evaluation and what training had cost by then; None: not known, metrics are missing.

    Attributes:
        record: accuracy (avg@k), low and high of its bootstrap interval over questions, and more.
    """

    steps: int
    tokens: int | None
    seconds: float | None
    record: dict[str, Any]

    def at(self, axis: Axis) -> float | None:
        """Return where it stands on an axis."""
        value: float | None = getattr(self, axis)
        return value


@dataclass(frozen=True)
class Curve:
    """One run: the records of its complete steps, and its evaluations, ascending."""

    run: Run
    name: str
    steps: dict[int, dict[str, Any]]
    evaluations: list[Evaluation]

    @property
    def seed(self) -> int:
        """Return the run's seed."""
        return self.run.config.run.seed

    def reach(self, axis: Axis) -> float:
        """Return how far its evaluations go on an axis."""
        return max((at for e in self.evaluations if (at := e.at(axis)) is not None), default=0)

    def best_within(self, budget: "Budget") -> Evaluation | None:
        """Return the best evaluation within a budget, the earliest of equals."""
        limit = budget.limit * _TOLERANCE
        within = [
            e for e in self.evaluations if (at := e.at(budget.axis)) is not None and at <= limit
        ]
        return max(within, key=lambda e: (e.record["accuracy"], -e.steps), default=None)


@dataclass(frozen=True)
class MethodRow:
    """A row of Table 1: a method, by the runs that differ in `run.*` alone.

    Attributes:
        label: the method, and what sets it apart from other rows of the same method.
        settings: its values of all settings that differ between rows.
    """

    label: str
    curves: list[Curve]
    settings: dict[str, Any] = field(default_factory=dict)


class Budget(NamedTuple):
    """So many training seconds, sampled tokens, or steps."""

    axis: Axis
    limit: float


class Best(NamedTuple):
    """The evaluation by which one seed counts."""

    run: str
    seed: int
    steps: int
    accuracy: float


@dataclass(frozen=True)
class Cell:
    """The best accuracy of a row within a budget.

    Attributes:
        interval: mean and 95% interval: over seeds (Student t), or of one seed over questions.
        best: what each seed counts with.
        reached: whether the evaluations of all seeds go as far as the budget.
        of_tasks: for runs of several tasks, the mean over seeds on each task, by the same states.
    """

    interval: Interval
    best: list[Best]
    reached: bool
    of_tasks: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """Table 1, and what became of pass@k.

    Attributes:
        cells: `cells[i][j]` is what row i reached within budget j; None: it has no evaluation.
        passes: pass@k of each row's last evaluations beside that before training; None: there
            are not both.
    """

    rows: list[MethodRow]
    budgets: list[Budget]
    cells: list[list[Cell | None]]
    passes: list[PassChange | None]
    warnings: list[str]

    @property
    def measure(self) -> str:
        """Return the name of what is measured, as avg@16."""
        found = {e.record["rollouts"] for r in self.rows for c in r.curves for e in c.evaluations}
        return f"avg@{'/'.join(map(str, sorted(found)))}" if found else "avg@k"


def compare_runs(runs: Sequence[Run], limits: Mapping[Axis, Sequence[float]]) -> Comparison:
    """Read the runs and fill the table.

    Args:
        limits: budgets by axis; an axis without gets a quarter, half and all of the range that
            every row covers.

    Raises:
        SrpoError: a run is given twice, or none has an evaluation.
    """
    named = runs_by_folder(runs)
    curves = [read_curve(run, name) for name, run in named.items()]
    if not any(curve.evaluations for curve in curves):
        raise SrpoError(f"no evaluation in {', '.join(c.name for c in curves)}: nothing to compare")
    rows = rows_of(curves)
    budgets = [
        Budget(axis, limit)
        for axis in AXES
        for limit in sorted(limits.get(axis) or _default_limits(rows, axis))
    ]
    cells = [[cell_of(row, budget) for budget in budgets] for row in rows]
    warnings = [*_gaps(curves), *_off_policy(curves), *_same_seeds(rows), *unlike(named)]
    passes = [pass_change({curve.name: curve.run for curve in row.curves}) for row in rows]
    return Comparison(rows, budgets, cells, passes, warnings)


def read_curve(run: Run, name: str) -> Curve:
    """Read the records of a run's steps and evaluations; steps without metrics are left out."""
    steps = {
        step: run.metrics(step)
        for step in run.steps_of("rollouts")
        if run.metrics_path(step).exists()
    }
    evaluations = []
    for done in run.steps_of("evaluations"):
        spent = [steps.get(step) for step in range(done)]
        known = [record for record in spent if record is not None]
        complete = len(known) == done
        evaluations.append(
            Evaluation(
                done,
                sum(record["tokens"] for record in known) if complete else None,
                math.fsum(record["seconds"] for record in known) if complete else None,
                evaluation_metrics(run.read("evaluations", done)),
            )
        )
    return Curve(run, name, steps, evaluations)


def rows_of(curves: Sequence[Curve]) -> list[MethodRow]:
    """Group the curves by everything but `run.*`, in the order given, and name the groups."""
    groups: dict[str, list[Curve]] = {}
    for curve in curves:
        groups.setdefault(canonical_json(lineage(curve.run)), []).append(curve)
    firsts = [group[0].run for group in groups.values()]
    settings = [settings_of(run) for run in firsts]
    keys, labels = differing(settings), labels_of(firsts)
    return [
        MethodRow(
            label if labels.count(label) == 1 else f"{label} ({group[0].name})",
            group,
            {key: own.get(key) for key in keys},
        )
        for label, group, own in zip(labels, groups.values(), settings, strict=True)
    ]


def cell_of(row: MethodRow, budget: Budget) -> Cell | None:
    """Return the best accuracy within a budget: the mean over seeds of each seed's best."""
    pairs = [(c, e) for c in row.curves if (e := c.best_within(budget)) is not None]
    if not pairs:
        return None
    best = [Best(c.name, c.seed, e.steps, e.record["accuracy"]) for c, e in pairs]
    reached = all(c.reach(budget.axis) * _TOLERANCE >= budget.limit for c in row.curves)
    records = [e.record for _, e in pairs]
    of_tasks = {
        task: math.fsum(record[f"accuracy/{task}"] for record in records) / len(records)
        for task in tasks_of(records[0])
    }
    return Cell(row_interval([e for _, e in pairs]), best, reached, of_tasks)


def row_interval(evaluations: Sequence[Evaluation]) -> Interval:
    """Return the mean accuracy over seeds, one evaluation of each, and its 95% interval.

    Student's t over several seeds; of one seed, its bootstrap interval over questions.
    """
    if len(evaluations) > 1:
        return seeds_interval([e.record["accuracy"] for e in evaluations])
    record = evaluations[0].record
    return Interval(record["accuracy"], record["low"], record["high"])


def _gaps(curves: Sequence[Curve]) -> list[str]:
    unplaced = {c.name: [e.steps for e in c.evaluations if e.seconds is None] for c in curves}
    return [
        f"{name}: steps before the evaluations after {', '.join(map(str, steps))} have no metrics; "
        "these count in budgets of steps only"
        for name, steps in unplaced.items()
        if steps
    ]


def _off_policy(curves: Sequence[Curve]) -> list[str]:
    """Tell of replayed forks: their accuracies are not those of a training of their own."""
    forks = {curve.name: curve.run.fork for curve in curves}
    return [
        f"{name} is a replayed fork: {fork.note}"
        for name, fork in forks.items()
        if fork is not None and fork.off_policy_from is not None
    ]


def _same_seeds(rows: Sequence[MethodRow]) -> list[str]:
    return [
        f"row {row.label}: several runs with one seed; intervals over them are no intervals over "
        "seeds"
        for row in rows
        if len({curve.seed for curve in row.curves}) < len(row.curves)
    ]


def _default_limits(rows: Sequence[MethodRow], axis: Axis) -> list[float]:
    """Return shares of the shortest row's range; rows without an evaluation there don't count."""
    reaches = [min(curve.reach(axis) for curve in row.curves) for row in rows]
    shortest = min((reach for reach in reaches if reach > 0), default=0)
    limits = [share * shortest for share in SHARES]
    return sorted({float(math.ceil(limit)) for limit in limits} if axis != "seconds" else {*limits})
