"""What a study's rows say of each variant, in one place for its tables and its figures."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.run.metrics import Interval
from pipeline.study.curve_measures import (
    BUDGETS,
    Spent,
    VariantSummary,
    best_within,
    common_budget,
    curve_intervals,
    first_steps,
    interval_of,
    pass_at,
    seconds_spent,
    summary_of,
    tokens_spent,
)
from pipeline.study.quiet_clocks import Clocks
from pipeline.study.study_plan import Plan, PlannedRun
from pipeline.study.study_row import Row

REFERENCE = "srpo"
"""The variant that others are drawn against."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Finished:
    """What the finished runs of one variant say.

    Attributes:
        rows: ascending by seed.
        curve: accuracy at each evaluation.
        pass_before: pass@k before training, by k.
        stages: mean seconds of a step by stage, the machine alone; empty: not measured.
        seconds_of: gives the seconds of training by each evaluation; None: not measured.
    """

    rows: Sequence[Row]
    summary: VariantSummary
    curve: Sequence[Interval]
    pass_before: dict[int, Interval]
    stages: dict[str, float]
    seconds_of: Spent | None

    @property
    def steps(self) -> Floats:
        """Return the steps done by each evaluation, [seeds, evaluations]."""
        return np.array([row.evaluated_steps for row in self.rows], dtype=np.float64)

    @property
    def tokens(self) -> Floats:
        """Return the tokens sampled by each evaluation, [seeds, evaluations]."""
        return np.array([tokens_spent(row) for row in self.rows])

    @property
    def seconds(self) -> Floats | None:
        """Return the seconds of training by each evaluation, [seeds, evaluations], if measured."""
        return None if self.seconds_of is None else np.array([*map(self.seconds_of, self.rows)])


@dataclass(frozen=True)
class VariantResult:
    """One variant in one group and world.

    Attributes:
        index: place of the variant in the plan, which decides its colour, dash and marker.
        runs: as planned.
        finished: None: no run is.
    """

    group: str
    title: str
    index: int
    runs: Sequence[PlannedRun]
    finished: Finished | None

    @property
    def name(self) -> str:
        """Return the variant's name, with its learning rate if its group has several."""
        return self.runs[0].variant

    @property
    def done(self) -> Finished:
        """Return what the finished runs say, where there are some."""
        assert self.finished is not None, f"{self.group}/{self.name}: no run is finished"
        return self.finished


@dataclass(frozen=True)
class WorldResult:
    """One world's variants.

    Attributes:
        results: of all groups, in the plan's order.
        compared: groups that compare variants at one learning rate, the main one first.
    """

    name: str
    title: str
    results: Sequence[VariantResult]
    compared: Sequence[str]

    @property
    def main(self) -> list[VariantResult]:
        """Return the finished variants of the first group that compares variants."""
        return [r for r in self.results if r.group in self.compared[:1] and r.finished]

    @property
    def others(self) -> list[VariantResult]:
        """Return the finished variants of the other groups that compare variants."""
        return [r for r in self.results if r.group in self.compared[1:] and r.finished]

    @property
    def reference(self) -> VariantResult | None:
        """Return the main variant that others are drawn against, if it has rows."""
        return next((r for r in self.main if r.name == REFERENCE), None)


def cut_reference(world: WorldResult, group: str) -> VariantResult | None:
    """Return the reference's runs with a group's seeds, cut to its steps; None: none can be."""
    runs = [run for result in world.results if result.group == group for run in result.runs]
    steps, seeds = max(run.steps for run in runs), {run.seed for run in runs}
    one = world.reference
    if one is None or group == one.group or one.done.summary.steps < steps:
        return None
    rows = [first_steps(row, steps) for row in one.done.rows if row.seed in seeds]
    if not rows:
        return None
    planned = [run for run in one.runs if run.seed in seeds]
    whole = one.done.summary.steps == steps
    part = one.group if whole else f"first {steps} steps of {one.group}"
    return VariantResult(one.group, f"{one.title}, {part}", one.index, planned, _finished(rows, {}))


def world_results(plan: Plan, rows: Mapping[str, Row], clocks: Clocks) -> list[WorldResult]:
    """Return what the finished runs of a plan say, world by world.

    Args:
        rows: those that there are, by name.

    Raises:
        ValueError: the rows of one variant can't be compared.
    """
    found = []
    for name, world in plan.worlds.items():
        results = list(_results_of(plan, name, rows, clocks))
        groups = dict.fromkeys(result.group for result in results)
        compared = [group for group in groups if group not in plan.grids]
        found.append(WorldResult(name, world.title, results, compared))
    return found


def _results_of(
    plan: Plan, world: str, rows: Mapping[str, Row], clocks: Clocks
) -> Iterator[VariantResult]:
    planned: dict[tuple[str, str], list[PlannedRun]] = {}
    for run in plan.runs():
        if run.world == world:
            planned.setdefault((run.group, run.variant), []).append(run)
    places = list(plan.variants)
    for (group, variant), runs in planned.items():
        there = [rows[run.name] for run in runs if run.name in rows]
        clock = clocks.get(f"{group}/{world}/{variant}", {})
        yield VariantResult(
            group,
            plan.title(variant),
            places.index(variant.partition("@")[0]),
            runs,
            _finished(sorted(there, key=lambda row: row.seed), clock) if there else None,
        )


def _finished(rows: Sequence[Row], clock: Mapping[str, Sequence[float]]) -> Finished:
    summary = summary_of(rows)
    name = f"{summary.world}/{summary.variant}"
    spent = seconds_spent({name: np.sum(list(clock.values()), axis=0).tolist()}) if clock else None
    return Finished(
        rows,
        summary,
        curve_intervals(rows),
        {k: interval_of(rows, _before, pass_at(k)) for k in summary.pass_at},
        {stage: float(np.mean(seconds)) for stage, seconds in clock.items()},
        spent,
    )


class BestWithin(NamedTuple):
    """The best accuracy of variants within shares of a budget that all of their runs have spent.

    Attributes:
        budgets: of each of `BUDGETS`, its size.
        best: [variants][budgets].
    """

    budgets: list[float]
    best: list[list[Interval]]


def best_by_tokens(shown: Sequence[VariantResult]) -> BestWithin:
    """Return the best within budgets of sampled tokens."""
    return _best_within(shown, [tokens_spent] * len(shown))


def best_by_seconds(shown: Sequence[VariantResult]) -> BestWithin | None:
    """Return the best within budgets of seconds; None if one of the variants wasn't measured."""
    clocks = [one.done.seconds_of for one in shown]
    known = [clock for clock in clocks if clock is not None]
    return _best_within(shown, known) if len(known) == len(clocks) else None


def _best_within(shown: Sequence[VariantResult], spent: Sequence[Spent]) -> BestWithin:
    pairs = list(zip(shown, spent, strict=True))
    whole = min(common_budget(one.done.rows, of) for one, of in pairs)
    budgets = [float(share) * whole for share in BUDGETS]
    return BestWithin(
        budgets,
        [
            [
                interval_of(one.done.rows, partial(best_within, budget=budget), spent=of)
                for budget in budgets
            ]
            for one, of in pairs
        ],
    )


def _before(curve: Floats, spent: Floats) -> Floats:
    """Return the value before training."""
    return curve[..., 0]
