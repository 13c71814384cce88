"""`srpo view`: pages over runs, served on this machine or written as static files."""

import errno
import logging
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from flows.commands.options import RUN, Runner
from flows.terminal.console import is_live, open_console
from pipeline.errors import ConfigError, SrpoError
from pipeline.text import count, duration

if TYPE_CHECKING:
    from pipeline.run.run import Run

HOST, PORT = "127.0.0.1", 8765


def view(
    runs: Annotated[list[Path], typer.Argument(help="Folders or URLs of runs.", **RUN)],
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = PORT,
    export: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write static files there, serve nothing.")
    ] = None,
    runner: Runner = None,
) -> None:
    """Look at runs in a browser: charts, steps, and every rollout token by token.

    The pages are served to this machine alone and fetch nothing from outside. Those of a running
    training follow it. Ctrl-C ends the server.

    Example: srpo view runs/first runs/second
    """
    from pipeline.run.run import Run

    opened = [Run.open(path) for path in runs]
    if export is not None:
        _export(opened, export, runner)
    elif runner is not None:
        raise ConfigError("--runner writes pages elsewhere: give --export DIR as well")
    else:
        _serve(opened, port)


def export_part(runs: list[str], folder: str, first: int, last: int) -> None:
    """Write some pages of an export, on a worker."""
    from pipeline.remote.mirror_paths import run_path
    from pipeline.run.run import Run
    from pipeline.viewer.export import export_pages

    export_pages([Run.open(run_path(root)) for root in runs], Path(folder), first, last)


def _export(runs: "list[Run]", folder: Path, runner: str | None) -> None:
    from flows.workers.command_pool import command_pool
    from flows.workers.runner_spec import pieces
    from pipeline.viewer.export import export
    from pipeline.viewer.export_selection import exported_steps

    console = open_console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    begun = time.monotonic()
    bar = Progress(*columns, console=console, transient=True, disable=not is_live(console))
    with command_pool(runner, runs[0].root.parent) as worker_pool, bar:
        row = bar.add_task("pages", total=None)

        def progress(done: int, total: int) -> None:
            bar.update(row, completed=done, total=total)

        def elsewhere(pages: int) -> None:
            assert worker_pool is not None
            roots, place = [f"{run.root.resolve()}" for run in runs], str(folder.resolve())
            common = {"runs": roots, "folder": place}
            parts = [{**common, "first": a, "last": b} for a, b in pieces(pages, worker_pool.spec)]
            worker_pool.map("export", f"{__name__}:export_part", parts, progress)

        pages = export(runs, folder, progress, elsewhere if worker_pool else None)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    spent = duration(time.monotonic() - begun)
    print(f"{count(pages)} pages, {size / 1e6:.1f} MB, {spent}; open {folder / 'index.html'}")
    for run in runs:
        steps, kept = run.steps_of("rollouts"), exported_steps(run)
        if len(kept) < len(steps):
            print(
                f"{run.root}: pages of the rollouts of {len(kept)} of its {len(steps)} steps; "
                "srpo view without --export shows all"
            )


def _serve(runs: "list[Run]", port: int) -> None:
    import uvicorn

    from pipeline.viewer.app import create_app
    from pipeline.viewer.page import Page, runs_by_name

    with _listener(port) as listener:
        address = f"http://{HOST}:{listener.getsockname()[1]}"
        names = list(runs_by_name(runs))
        page = Page("/").url(*(["runs", names[0]] if len(names) == 1 else []))
        print(f"{address}{page}  (Ctrl-C ends it)", flush=True)
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
        config = uvicorn.Config(create_app(runs), log_level="warning", timeout_graceful_shutdown=1)
        try:
            uvicorn.Server(config).run(sockets=[listener])
        except KeyboardInterrupt:
            print(file=sys.stderr)


def _listener(port: int) -> socket.socket:
    """Return a socket that listens on this machine alone."""
    try:
        return socket.create_server((HOST, port))
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        raise SrpoError(
            f"port {port} is taken, by another srpo view perhaps; choose another with --port, "
            "or --port 0 for any free one"
        ) from None
