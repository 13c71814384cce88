"""`srpo check`: is a run whole, and does every number in it follow from the others?"""

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.commands.options import RUN, Runner
from flows.terminal.progress_bars import bars
from pipeline.errors import ConfigError
from pipeline.text import count, duration, number, printable

if TYPE_CHECKING:
    from rich.console import Console

    from flows.workers.worker_pool import WorkerPool
    from pipeline.check.check_report import CheckReport
    from pipeline.stage.contract import Progress

_MOST_NOTES = 20


def check(
    run: Annotated[Path, typer.Argument(help="Folder or URL of a run.", **RUN)],
    deep: Annotated[
        bool, typer.Option("--deep", help="Also recompute one step in float64.")
    ] = False,
    step: Annotated[int | None, typer.Option(min=0, help="The step to recompute.")] = None,
    runner: Runner = None,
) -> None:
    """Verify digests, schemas, links between tables and every invariant of a run.

    Names each broken file: what was expected, what was found, what to do. Inherited tables of a
    fork are checked too. With --deep, a second implementation recomputes one step in float64, from
    its rollouts and its rebuilt policy. Exit code 0: all is well; 1: findings; 2: an error.

    Example: srpo check runs/first --deep --step 12
    """

    if deep != (step is not None):
        raise ConfigError("--deep recomputes one step: give both --deep and --step N, or neither")
    if deep and runner is not None:
        raise ConfigError("--deep recomputes one step, in this process: leave out --runner")
    from flows.terminal.console import open_console

    console = open_console()
    broken = _check(run, console, runner) if step is None else _check_deeply(run, step, console)
    if broken:
        raise typer.Exit(1)


def _say(console: "Console", text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def check_part(run: str, steps: list[int]) -> dict[str, Any]:
    """Check some steps of a run, on a worker; return the report as plain values."""
    from pipeline.check.check_run import check_steps
    from pipeline.remote.mirror_paths import run_path
    from pipeline.run.run import Run

    return asdict(check_steps(Run.open(run_path(run)), steps))


def _check(path: Path, console: "Console", runner: str | None) -> bool:
    from flows.workers.command_pool import command_pool
    from pipeline.check.check_run import check_run
    from pipeline.run.run import Run

    run, started = Run.open(path), time.perf_counter()
    with command_pool(runner, run.root.parent) as worker_pool:
        if worker_pool is None:
            with _byte_bar(console) as progress:
                report = check_run(run, progress)
        else:
            with bars("check, pieces") as (progress,):
                report = check_run(run, elsewhere=partial(_spread, worker_pool, run.root, progress))
    _print(report, time.perf_counter() - started, console)
    return bool(report.findings)


def _spread(
    worker_pool: "WorkerPool", root: Path, progress: "Progress", steps: Sequence[int]
) -> "Iterator[CheckReport]":
    """Check steps on a pool's workers; yield the reports in order."""
    from flows.workers.runner_spec import pieces
    from pipeline.check.check_report import CheckReport, Finding

    run = f"{root.resolve()}"
    items = [
        {"run": run, "steps": list(steps[a:b])} for a, b in pieces(len(steps), worker_pool.spec)
    ]
    for found in worker_pool.map("check", f"{__name__}:check_part", items, progress):
        findings = [Finding(**finding) for finding in found["findings"]]
        yield CheckReport(**{**found, "findings": findings})


@contextlib.contextmanager
def _byte_bar(console: "Console") -> "Iterator[Progress]":
    """Show a bar of bytes hashed, on a terminal; yield the function that moves it."""
    from rich.progress import BarColumn, DownloadColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    from flows.terminal.console import is_live

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Bar(*columns, console=console, transient=True, disable=not is_live(console)) as bar:
        row = bar.add_task("check", total=None)
        yield lambda done, total: bar.update(row, completed=done, total=total)


def _print(report: "CheckReport", seconds: float, console: "Console") -> None:
    for finding in report.findings:
        _say(console, f"broken: {finding.line}")
    for note in report.notes[:_MOST_NOTES]:
        _say(console, f"note: {note}")
    if len(report.notes) > _MOST_NOTES:
        _say(console, f"… and {count(len(report.notes) - _MOST_NOTES)} more notes")
    speed = report.bytes / 1e6 / max(seconds, 1e-9)
    found = count(len(report.findings)) if report.findings else "no"
    _say(
        console,
        f"{count(report.tables)} tables, {number(report.bytes / 1e9)} GB in {duration(seconds)} "
        f"({count(speed)} MB/s): {found} finding{'' if len(report.findings) == 1 else 's'}",
    )


def _check_deeply(run: Path, step: int, console: "Console") -> bool:
    from flows.reruns.deep_check import check_step

    started = time.perf_counter()
    with bars("updates replayed", "rollouts recomputed") as (replayed, recomputed):
        report = check_step(run, step, recomputed, replayed)
    for line in report.lines:
        _say(console, f"differs: {printable(line)}")
    for note in report.notes:
        _say(console, f"note: {note}")
    _say(
        console,
        f"step {step}: {count(report.numbers)} numbers compared in {len(report.tables)} tables "
        f"({', '.join(report.tables)}), largest deviation {number(report.worst)} of what float32 "
        f"may do ({report.where or 'none'}); {duration(time.perf_counter() - started)}: "
        f"{count(len(report.lines)) if report.lines else 'no'} disagreement"
        f"{'' if len(report.lines) == 1 else 's'}",
    )
    return bool(report.lines)
