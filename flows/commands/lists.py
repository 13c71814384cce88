"""`srpo tasks` and `srpo presets`: what ships with srpo."""

from collections.abc import Iterator
from typing import Annotated

import typer
from rich.table import Table

from flows.commands.completion import presets_starting_with
from flows.terminal.console import open_console
from pipeline.errors import SrpoError


def tasks() -> None:
    """List the shipped tasks; a Python file of your own is a task as well.

    Example: srpo tasks
    """
    from data.registry import describe, task_names

    _print_pairs((name, describe(name)) for name in task_names())


def presets(
    name: Annotated[
        str | None,
        typer.Argument(
            help="Show this one.",
            autocompletion=presets_starting_with,
        ),
    ] = None,
) -> None:
    """List the presets, or print one as the TOML file it is.

    Example: srpo presets srpo-paper > mine.toml
    """
    from pipeline.config.load import preset_names, preset_text

    names = preset_names()
    if name is None:
        _print_pairs((n, preset_text(n).splitlines()[0].removeprefix("# ")) for n in names)
    elif name in names:
        print(preset_text(name), end="")
    else:
        raise SrpoError(f"no preset {name}; there are {', '.join(names)}")


def _print_pairs(pairs: Iterator[tuple[str, str]]) -> None:
    table = Table(show_header=False, box=None)
    for left, right in pairs:
        table.add_row(left, right)
    open_console().print(table, highlight=False, markup=False)
