"""What `srpo prune` prints: what goes, what stays and why, and what becomes impossible."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.remote.mirror_paths import is_mirrored
from pipeline.text import printable, ranges, size

if TYPE_CHECKING:
    from rich.console import Console

    from pipeline.housekeeping.pruning import PruningPlan


def print_plan(console: "Console", plan: "PruningPlan", dry_run: bool) -> None:
    """Print a plan, before or instead of carrying it out."""
    from rich.table import Table

    name = printable(f"{plan.run.root}")
    if plan.bytes:
        would = "would go" if dry_run else "goes"
        table = Table(title=f"{name}: what {would}", title_justify="left", box=None)
        for heading, right in (("what", False), ("of steps", False), ("size", True)):
            table.add_column(heading, justify="right" if right else "left", overflow="fold")
        for what, steps, bytes_ in _rows(plan):
            table.add_row(what, steps, size(bytes_))
        table.add_row("total", "", size(plan.bytes))
        console.print(table, highlight=False, markup=False)
    else:
        console.print(f"{name}: nothing can go", highlight=False, markup=False)
    for title, lines in (("Stays", stays(plan)), ("Impossible until srpo restore", losses(plan))):
        if lines:
            console.print(f"{title}:", style="bold", highlight=False, markup=False)
        items = Table.grid(padding=(0, 1))
        for line in lines:
            items.add_row(" -", printable(line))
        console.print(items, highlight=False, markup=False)


def _rows(plan: "PruningPlan") -> list[tuple[str, str, int]]:
    rows = []
    for table in dict.fromkeys(piece.table for piece in plan.pieces):
        bytes_ = sum(b for piece, b in plan.pieces.items() if piece.table == table)
        rows.append((f"table {table}", ranges(plan.lost_steps(table)), bytes_))
    if plan.snapshots:
        rows.append(("snapshots", ranges(list(plan.snapshots)), sum(plan.snapshots.values())))
    return rows


def stays(plan: "PruningPlan") -> list[str]:
    """Say what stays although it was asked for, and why."""
    found = []
    for claim in plan.claims:
        mine = sorted(piece for piece in claim.pieces & plan.claimed)
        tables = [
            f"{table} of {_steps([p.step for p in mine if p.table == table])}"
            for table in dict.fromkeys(piece.table for piece in mine)
        ]
        if claim.snapshot:
            tables.append(f"snapshot {claim.snapshot}")
        if tables:
            found.append(f"{', '.join(tables)}: for the fork {_named(claim.fork.root)}")
    if makers := _banks(plan):
        found.append(
            "rollouts and verdicts of all steps, which never go: banks of later steps are made from"
            f" them, by {makers}"
        )
    newest = max(plan.run.snapshots(), default=0)
    found.append(f"snapshot {newest} and the tables since: resuming starts there")
    return found


def _banks(plan: "PruningPlan") -> str:
    """Name the runs that make banks from this one's tables: itself, and its forks."""
    runs = [plan.run, *(claim.fork for claim in plan.claims)]
    makers = [run for run in runs if "bank" in run.config.route.sources]
    named = ["this run" if run is plan.run else f"the fork {_named(run.root)}" for run in makers]
    return ", ".join(named)


def losses(plan: "PruningPlan") -> list[str]:
    """Say in plain words what can't be done any more."""
    found = []
    if states := plan.lost_states():
        found.append(
            f"rebuilding states {ranges(states)}: srpo policy, srpo evaluate, srpo stage and forks "
            "that begin there"
        )
    if steps := plan.lost_steps("teacher"):
        found.append(f"forks and replays from weigh or update of {_steps(steps)}")
        found.append(
            f"audits of taught tokens of {_steps(steps)}: candidates, entropies, divergences "
            "and losses; srpo check --deep there"
        )
    elif steps := plan.lost_steps("weights"):
        found.append(f"forks and replays from update of {_steps(steps)}")
        found.append(f"audits of token weights and losses of {_steps(steps)}")
    return found


def _named(root: Path) -> str:
    """Return a fork's name as one types it here."""
    return f"{root}" if is_mirrored(root) else os.path.relpath(root)


def _steps(steps: Sequence[int]) -> str:
    return f"step{'s' if len(steps) > 1 else ''} {ranges(steps)}"
