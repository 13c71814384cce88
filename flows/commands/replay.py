"""`srpo replay`: other settings over saved rollouts; sweeps make one fork each."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import JustifyMethod
from rich.table import Table

from flows.commands.completion import stages_starting_with
from flows.commands.options import FOLDER, RUN, Runner, Set
from flows.terminal.console import open_console
from flows.terminal.progress_bars import bars
from pipeline.errors import StoreError
from pipeline.text import command

if TYPE_CHECKING:
    from flows.reruns.replay import Plan
    from flows.session.session import Session
    from pipeline.compare.run_diff import RunDiff
    from pipeline.run.run import Run

_MEANS = {"loss": "loss", "grad_norm": "grad norm", "jsd_mean": "divergence"}
_TITLE = "rows that differ from the parent's"


def replay(
    run: Annotated[Path, typer.Argument(help="The run whose rollouts are used again.", **RUN)],
    stage: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="STAGE",
            help="verify, route, weigh or update.",
            autocompletion=stages_starting_with,
        ),
    ],
    fork: Annotated[
        Path, typer.Option(help="Folder of the new run; of a sweep, of all of them.", **FOLDER)
    ],
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
    runner: Runner = None,
) -> None:
    """Recompute a stage and all that follow it, over saved rollouts, with other settings.

    Change the verifier (data.task), β, the method, the teacher or the divergence; tables upstream
    stay the parent's. A sweep makes one fork for each value: --set weigh.beta=0,0.5,1,2. Two make
    every combination. A value that has a comma itself stands in quotes or brackets. The same
    command again makes what is missing.

    Example: srpo replay runs/first --from route --set route.method=grpo,srpo --fork runs/methods
    """
    from flows.reruns.replay import Plan, combinations, fork_folders, make_forks
    from flows.reruns.replay import replay as replay_run
    from flows.workers.command_pool import command_pool
    from pipeline.compare.run_diff import diff_runs
    from pipeline.run.run import Run

    parent = Run.open(run)
    plan, sweep = Plan.of(parent, stage, until, steps), combinations(overrides or [])
    forks = list(zip(fork_folders(fork, sweep), sweep, strict=True))
    _expect_possible(parent, plan, forks, runner)
    rows = []
    with command_pool(runner, parent.root.parent) as worker_pool:
        if worker_pool is not None and len(forks) > 1:
            with bars("forks") as (progress,):
                make_forks(worker_pool, parent, plan, forks, progress)
            worker_pool = None  # the loop below finds every fork complete
        for folder, chosen in forks:
            started = time.monotonic()
            with bars(f"{folder}: stages") as (progress,):
                session = replay_run(
                    parent, folder, plan, chosen, progress, worker_pool=worker_pool
                )
            with session:
                found = diff_runs(parent, session.run)
                rows.append(_row(session, found, plan, time.monotonic() - started))
                print(f"{folder.name}: {found.sentence}")
                note = session.run.fork.note if session.run.fork else ""
    print(note)
    _print_table(rows, updates=plan.last == "update")
    _print_next(parent.root, fork_folders(fork, sweep), updates=plan.last == "update")


def _expect_possible(
    parent: "Run", plan: "Plan", forks: Sequence[tuple[Path, list[str]]], runner: str | None
) -> None:
    """Refuse forks that can't be made, before the first one is."""
    from flows.reruns.replay import expect_local
    from flows.session.fork_run import planned_fork
    from pipeline.remote.mirror_sync import is_run

    if len(forks) > 1 and is_run(above := forks[0][0].parent):
        raise StoreError(f"{above}: a run; a sweep's forks go below a folder that is none")
    updates = plan.last == "update"
    for folder, chosen in forks:
        planned_fork(parent, folder, plan.stage, plan.start, plan.end, chosen, updates)
    if runner is not None and len(forks) == 1:
        expect_local(forks[0][0])


def _row(session: "Session", found: "RunDiff", plan: "Plan", seconds: float) -> dict[str, str]:
    """Return what a fork changed, as the texts of its row."""
    from pipeline.text import duration, number

    run = session.run
    assert run.fork is not None
    changed = {s.table: s.differing_rows for s in found.summaries}
    row = {"fork": run.root.name}
    for table in ("verdicts", "routes", "weights"):
        row[table] = f"{changed.get(table, 0):,}"
    if plan.last == "update":
        records = [run.metrics(step) for step in range(run.fork.start, run.fork.end)]
        row |= {title: number(_mean(records, key)) for key, title in _MEANS.items()}
    row["time"] = duration(seconds)
    return row


def _mean(records: Sequence[dict[str, Any]], key: str) -> float | None:
    values = [record[key] for record in records if record.get(key) is not None]
    return sum(values) / len(values) if values else None


def _print_table(rows: Sequence[dict[str, str]], updates: bool) -> None:
    means = f", and means of {', '.join(_MEANS.values())}" if updates else ""
    table = Table(box=None, title=f"{_TITLE}{means}", title_justify="left")
    parts = [row["fork"].split("=") for row in rows]
    one_key = len({part[0] for part in parts}) == 1 and all(len(part) == 2 for part in parts)
    for title in rows[0]:
        name = title == "fork"
        justify: JustifyMethod = "left" if name else "right"
        shown = parts[0][0] if name and one_key else title
        table.add_column(shown, no_wrap=not name, overflow="fold", justify=justify)
    for row, part in zip(rows, parts, strict=True):
        table.add_row(*(row | {"fork": part[-1] if one_key else row["fork"]}).values())
    open_console().print(table, highlight=False, markup=False)


def _print_next(parent: Path, made: Sequence[Path], updates: bool) -> None:
    print(f"differences   {command('diff', parent, made[0])}")
    if len(made) > 1:
        print(f"gradients     {command('compare', '--gradients', *made)}")
    if updates:
        print(f"accuracy      {command('evaluate', made[0])}")
    print(f"pages         {command('view', parent, *made)}")
