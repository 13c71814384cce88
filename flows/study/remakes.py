"""Runs made anew from their rows, and what then differs."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from flows.study.children import Stop
from flows.study.missing_runs import Outcome, Wanted, make_runs
from pipeline.errors import SrpoError, StoreError
from pipeline.files.durable import atomic_path, canonical_json
from pipeline.study.study_plan import Plan
from pipeline.study.study_row import Row, path_of
from pipeline.text import count, number

FOLDER = "remade"
"""Where the runs are made, below the folder of runs."""
_ALONE = 0.5
"""Load average below which a machine has nothing else to do."""
_WITH_ONE_RUN = 1.75
"""And while one run is made, with Prefect's server."""
_SECONDS = "seconds_"


class Remade(NamedTuple):
    """What became of the rows.

    Attributes:
        unequal: names of those whose runs came out otherwise.
    """

    outcome: Outcome
    unequal: list[str]


def share_of(rows: Iterable[Row], one_in: int) -> list[Row]:
    """Return every so manieth row of each world, in an order that only their names decide."""
    found = []
    for _, of_world in groupby(sorted(rows, key=lambda row: row.world), lambda row: row.world):
        shuffled = sorted(of_world, key=lambda row: hashlib.sha256(row.name.encode()).digest())
        found += shuffled[::one_in]
    return found


def remake(
    plan: Plan, rows: Sequence[Row], runs: Path, jobs: int, quiet_out: Path | None
) -> Remade:
    """Make the runs of rows anew and compare them; print a line for each.

    Args:
        quiet_out: where to keep the seconds of runs that came out equal, one run at a time.

    Raises:
        SrpoError: the plan lacks a row's world, its run was made anew before, or with `quiet_out`
            others compute on this machine.
    """
    if quiet_out is not None:
        _expect_quiet(_ALONE)
    known = {row.name: row for row in rows}
    for row in rows:
        if row.world not in plan.worlds:
            raise SrpoError(f"{row.name}: the plan has no world {row.world}")
        if (there := runs / FOLDER / row.name).exists():
            raise StoreError(f"{there}: made anew before; remove it, or choose another --runs")
    unequal: list[str] = []

    def compare(row: Row) -> str:
        before = known[row.name]
        if (found := difference(before, row)) is not None:
            unequal.append(row.name)
            return f"{found}\n    {_made(before)}, now {_made(row)}"
        equal = f"equal: {len(row.steps)} steps, {len(row.evaluations)} evaluations"
        if quiet_out is None:
            return equal
        _expect_quiet(_WITH_ONE_RUN)
        _write_clock(quiet_out, row)
        return f"{equal}; seconds kept"

    wanted = [Wanted(row.name, row.world, row.settings) for row in rows]
    at_once = jobs if quiet_out is None else 1
    outcome = make_runs(plan, wanted, runs / FOLDER, at_once, Stop(), compare)
    if outcome.left:
        print(f"interrupted; {count(outcome.left)} of {count(len(rows))} rows are left")
    return Remade(outcome, unequal)


def difference(before: Row, now: Row) -> str | None:
    """Return the first thing that differs between a run's row and that of its remake, or None."""
    whole = [
        ("settings, or their defaults,", before.config, now.config),
        ("questions", before.questions, now.questions),
        ("the policy at the start", before.start, now.start),
    ]
    for what, theirs, ours in [*whole, *_in_time(before, now)]:
        if theirs != ours:
            return f"differs: {what} (was {theirs}, is {ours})"
    return None


def _in_time(before: Row, now: Row) -> Iterable[tuple[str, str | None, str | None]]:
    """Yield steps and evaluations in the order in which they were made, with both digests."""
    evaluated, evaluated_now = (
        {e.step: e.digest[:8] for e in r.evaluations} for r in (before, now)
    )
    steps, steps_now = (dict(enumerate(row.steps)) for row in (before, now))
    for step in range(max(len(steps), len(steps_now)) + 1):
        yield f"the evaluation after {step} steps", evaluated.get(step), evaluated_now.get(step)
        yield f"step {step}", steps.get(step), steps_now.get(step)


def _made(row: Row) -> str:
    made = {"commit": "?", "torch": "?", "processor": "?", "threads": "?", **row.made}
    commit = str(made["commit"])[:12]
    return (
        f"made by {commit} with torch {made['torch']} on {made['processor']}, "
        f"{made['threads']} threads"
    )


def _expect_quiet(most: float) -> None:
    load = os.getloadavg()[0]
    if load > most:
        raise SrpoError(
            f"the load average of the last minute is {load:.2f}: others compute on this machine; "
            f"seconds are taken below {number(most)}"
        )


def _write_clock(folder: Path, row: Row) -> None:
    """Write the seconds of each stage, means over windows as the row has them."""
    seconds = {
        name.removeprefix(_SECONDS): values
        for name, values in row.means.items()
        if name.startswith(_SECONDS)
    }
    record = {
        "name": row.name,
        "commit": row.made["commit"],
        "processor": row.made["processor"],
        "seconds": seconds,
        "load": round(os.getloadavg()[0], 2),
    }
    path = path_of(folder, row.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text(canonical_json(record) + "\n", encoding="utf-8")
