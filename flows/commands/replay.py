"""`srpo replay`: other settings over saved rollouts; sweeps make one fork each."""

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from flows.bars import bars
from flows.options import Set

if TYPE_CHECKING:
    from flows.session import Session

_MEANS = {"loss": "loss", "grad_norm": "grad norm", "jsd_mean": "divergence"}


def replay(
    run: Annotated[Path, typer.Argument(help="The run whose rollouts are used again.")],
    stage: Annotated[
        str, typer.Option("--from", metavar="STAGE", help="verify, route, weigh or update.")
    ],
    fork: Annotated[Path, typer.Option(help="Folder of the new run; of a sweep, of all of them.")],
    steps: Annotated[
        str | None, typer.Option(metavar="A:B", help="Steps A to B - 1; default: all.")
    ] = None,
    overrides: Set = None,
    until: Annotated[
        str,
        typer.Option(
            metavar="STAGE",
            help="Last stage to recompute: verify, decisions (routes without scores: no policy is "
            "opened), route, weigh or update.",
        ),
    ] = "update",
) -> None:
    """Recompute what follows a stage, over saved rollouts, with other settings.

    Another verifier (data.task), β, method, teacher or divergence; tables upstream are the
    parent's. A sweep makes one fork for each value: --set weigh.beta=0,0.5,1,2

    Example: srpo replay runs/first --from weigh --set weigh.beta=0,1,2 --fork runs/beta
    """
    from flows.replaying import Plan, folders, spread
    from flows.replaying import replay as replay_run
    from pipeline.store import Run

    parent = Run.open(run)
    plan = Plan.of(parent, stage, until, steps)
    sweep = spread(overrides or [])
    rows = []
    for folder, chosen in zip(folders(fork, sweep), sweep, strict=True):
        started = time.monotonic()
        with bars(f"{folder}: stages") as (progress,):
            session = replay_run(parent, folder, plan, chosen, progress)
        with contextlib.closing(session):
            rows.append(_row(session, plan.last == "update", time.monotonic() - started))
            if folder == folders(fork, sweep)[0] and session.run.fork is not None:
                print(session.run.fork.note)
    _print_table(rows)
    _print_next(parent.root, folders(fork, sweep), updates=plan.last == "update")


def _row(session: "Session", updates: bool, seconds: float) -> dict[str, str]:
    """Return what a fork changed, as texts of one row."""
    from pipeline.audit.diff import diff_runs
    from pipeline.text import duration, number

    run = session.run
    assert run.fork is not None and run.parent is not None
    found = diff_runs(run.parent, run)
    changed = {s.table: s.differing_rows for s in found.summaries}
    row = {"fork": run.root.name}
    row["changed"] = "; ".join(f"{k} {old} → {new}" for k, (old, new) in run.fork.changed.items())
    for table in ("verdicts", "routes", "weights"):
        row[f"{table} changed"] = f"{changed.get(table, 0):,}"
    first = found.first
    row["first difference"] = f"step {first.step}, {first.table}" if first else "none"
    if updates:
        records = [run.metrics(step) for step in range(run.fork.start, run.fork.end)]
        row |= {title: number(_mean(records, key)) for key, title in _MEANS.items()}
    row["time"] = duration(seconds)
    return row


def _mean(records: Sequence[dict[str, Any]], key: str) -> float | None:
    values = [record[key] for record in records if record.get(key) is not None]
    return sum(values) / len(values) if values else None


def _print_table(rows: Sequence[dict[str, str]]) -> None:
    table = Table(box=None)
    for title in rows[0]:
        table.add_column(title, overflow="fold", justify="left" if title in _LEFT else "right")
    for row in rows:
        table.add_row(*row.values())
    Console().print(table, highlight=False, markup=False)


_LEFT = ("fork", "changed", "first difference")


def _print_next(parent: Path, made: Sequence[Path], updates: bool) -> None:
    print(f"differences   srpo diff {parent} {made[0]}")
    if updates:
        print(f"accuracy      srpo evaluate {made[0]}")
    together = " ".join(str(path) for path in (parent, *made))
    print(f"pages         srpo view {together}")
