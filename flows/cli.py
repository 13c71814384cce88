"""The command line `srpo`. Heavy libraries are imported by the commands that need them."""

import importlib.metadata
import logging
import os
import sys
from typing import Annotated, NoReturn

import typer

from flows.commands.audit import audit
from flows.commands.cache import cache
from flows.commands.check import check
from flows.commands.compare import compare
from flows.commands.diff import diff
from flows.commands.doctor import doctor
from flows.commands.evaluate import evaluate
from flows.commands.lists import presets, tasks
from flows.commands.options import INTERRUPTED
from flows.commands.policy import policy
from flows.commands.prune import prune, restore
from flows.commands.replay import replay
from flows.commands.runs import runs
from flows.commands.stage import stage
from flows.commands.train import train
from flows.commands.view import view
from flows.commands.warmstart import warmstart
from flows.terminal.console import show_on_any_terminal
from pipeline.errors import SrpoError
from pipeline.machine.disk import is_trouble, os_error_line
from pipeline.machine.proxies import exempt_loopback
from pipeline.text import joined_lines, printable

LEAVE_SECONDS = 5.0
"""How long Prefect's client may go on sending at the end; the run's records are on the disk."""
ERROR_LIMIT = 2000
"""Longest error line, in characters: it may quote text from outside."""

app = typer.Typer(
    invoke_without_command=True,
    context_settings={"max_content_width": 120},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def start(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """On-policy post-training of language models by SRPO. Start here: srpo train demo"""
    if version:
        print(f"srpo {importlib.metadata.version('srpo')}")
    elif context.invoked_subcommand is None:
        print(context.get_help())


def main() -> None:
    """Run `srpo`."""
    run_command(app, "srpo")


def run_command(app: typer.Typer, name: str) -> NoReturn:
    """Run a command and end the process; an error of ours is one line and exit code 2."""
    show_on_any_terminal()
    logging.raiseExceptions = False  # Prefect would print that it can't send its logs
    for entry in exempt_loopback():
        print(
            f"warning: no_proxy names {printable(entry, 80)!r}, no host; ignored", file=sys.stderr
        )
    try:
        code = app(prog_name=name, standalone_mode=False)
    except (SrpoError, OSError, typer.TyperException) as error:
        print(f"error: {printable(joined_lines(_text(error)), ERROR_LIMIT)}", file=sys.stderr)
        code = 2
    except typer.Abort:
        code = INTERRUPTED
    _leave(code)


def _leave(code: int | None) -> NoReturn:
    """End the process. Prefect's client would wait without limit for a server that is gone."""
    events = sys.modules.get("prefect.events.worker")
    if events is not None and events.EventsWorker.drain_all(timeout=LEAVE_SECONDS).not_done:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code or 0)
    sys.exit(code)


def _text(error: Exception) -> str:
    if isinstance(error, typer.TyperException):
        return error.format_message().replace("Value error, ", "")  # pydantic's words
    if isinstance(error, OSError):
        again = "; then run the same command again" if is_trouble(error) else ""
        return f"{os_error_line(error)}{again}"
    return str(error)


app.command()(train)
app.command()(warmstart)
app.command()(evaluate)
app.command()(tasks)
app.command()(presets)
app.command()(doctor)
app.command()(check)
app.command()(audit)
app.command()(diff)
app.command()(compare)
app.command()(view)
app.command()(stage)
app.command()(replay)
app.command()(runs)
app.command()(policy)
app.command()(prune)
app.command()(restore)
app.command()(cache)


if __name__ == "__main__":
    main()
