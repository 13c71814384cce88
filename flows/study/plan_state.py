"""How far a study is: finished and missing runs of each group and world, and the time left."""

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from rich.console import Console

from flows.terminal.tables import cell, plain_table
from pipeline.errors import StoreError
from pipeline.study.study_plan import Plan, PlannedRun
from pipeline.study.study_row import Row
from pipeline.text import duration


class PlanState(NamedTuple):
    """A plan's runs, and the rows that there are, by name."""

    runs: list[PlannedRun]
    rows: dict[str, Row]

    @property
    def missing(self) -> list[PlannedRun]:
        """Return the runs without a row, in the plan's order."""
        return [run for run in self.runs if run.name not in self.rows]

    def seconds_left(self, runs: Sequence[PlannedRun], jobs: int) -> float | None:
        """Return the time that runs will take, so many at a time; None: nothing tells.

        A run takes, for each of its steps, the median of the finished runs of its world and
        variant; if there are none, of its world.
        """
        estimates = [self._estimate(run) for run in runs]
        known = [seconds for seconds in estimates if seconds is not None]
        return math.fsum(known) / jobs if len(known) == len(estimates) else None

    def _estimate(self, run: PlannedRun) -> float | None:
        timed = [row for row in self.rows.values() if "seconds" in row.made]
        same_world = [row for row in timed if row.world == run.world]
        same_variant = [row for row in same_world if row.variant == run.variant]
        per_step = [int(row.made["seconds"]) / len(row.steps) for row in same_variant or same_world]
        return median(per_step) * run.steps if per_step else None


def plan_state(plan: Plan, rows: Path, only: str = "") -> PlanState:
    """Read the rows of a plan's runs whose names hold a text.

    Raises:
        StoreError: a row can't be read, or was made with other settings than the plan has now.
    """
    runs = [run for run in plan.runs() if only in run.name]
    found = {run.name: Row.read(run.row(rows)) for run in runs if run.row(rows).exists()}
    for run in runs:
        if run.name in found and found[run.name].settings != run.settings:
            raise StoreError(
                f"{run.row(rows)}: made with {' '.join(found[run.name].settings)}, but the plan "
                f"has {' '.join(run.settings)}; remove the row, or give the plan's group a new name"
            )
    return PlanState(runs, found)


def rows_of_no_run(plan: Plan, rows: Path) -> list[str]:
    """Return the names of rows that the plan has no run of, such as those of an earlier grid."""
    names = {run.name for run in plan.runs()}
    found = (path.relative_to(rows).with_suffix("") for path in rows.glob("*/*/*/*.json"))
    return sorted(name for path in found if (name := path.as_posix()) not in names)


def print_state(console: Console, state: PlanState, jobs: int) -> None:
    """Print a line per group and world, and a sum."""
    table = plain_table(
        [("group", "left"), ("world", "left"), ("variants", "right"), ("seeds", "right"),
         ("steps", "right"), ("done", "right"), ("of", "right"), ("time left", "right")],
        flexible=(),
    )  # fmt: skip
    for group, world in dict.fromkeys((run.group, run.world) for run in state.runs):
        runs = [run for run in state.runs if (run.group, run.world) == (group, world)]
        steps = sorted({run.steps for run in runs})
        table.add_row(
            cell(group),
            cell(world),
            cell(len({run.variant for run in runs})),
            cell(len({run.seed for run in runs})),
            cell(" or ".join(map(str, steps))),
            *_counts(state, runs, jobs),
        )
    if len(table.rows) > 1:
        table.add_row("all", "", "", "", "", *_counts(state, state.runs, jobs))
    console.print(table)


def _counts(state: PlanState, runs: Sequence[PlannedRun], jobs: int) -> Sequence[str]:
    missing = [run for run in runs if run.name not in state.rows]
    left = duration(state.seconds_left(missing, jobs)) if missing else ""
    return [str(len(runs) - len(missing)), str(len(runs)), left]
