"""`srpo runs`: the runs in a folder."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Table

from flows.commands.options import FOLDER
from flows.terminal.console import open_console

_COLUMNS = ("run", "method", "state", "accuracy", "alarms", "size", "fork of")


def runs(
    folder: Annotated[Path, typer.Argument(help="Folder or URL that holds runs.", **FOLDER)] = Path(
        "runs"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the runs below a folder: method, state, last accuracy, alarms, size on disk.

    Example: srpo runs runs
    """
    import json

    from pipeline.errors import SrpoError
    from pipeline.housekeeping.run_listing import find_runs, overview
    from pipeline.text import printable

    found = []
    for root in find_runs(folder):
        try:
            found.append(overview(root))
        except SrpoError as error:
            print(f"warning: {printable(str(error))}", file=sys.stderr)
    if as_json:
        print(json.dumps(found, indent=2))
    elif not found:
        print(f"no runs in {folder}; srpo train demo makes one")
    else:
        _print(folder, found)


def _print(folder: Path, found: list[dict[str, Any]]) -> None:
    from pipeline.text import NOTHING, printable, size

    place = f"{folder}"
    table = Table(box=None, title=f"runs in {printable(place)}", title_justify="left")
    for name in _COLUMNS:
        right = name in ("size", "alarms")
        folds = name in ("run", "fork of")
        justify: Literal["left", "right"] = "right" if right else "left"
        width = 16 if folds else None
        table.add_column(name, overflow="fold", no_wrap=not folds, justify=justify, min_width=width)
    for row in found:
        texts = {name: row.get(name) for name in _COLUMNS}
        texts["run"] = os.path.relpath(row["run"], place)
        if row.get("accuracy") is not None:
            texts["accuracy"] = f"{row['accuracy']:.1%} @{row['accuracy_after']}"
        if row.get("bytes") is not None:
            texts["size"] = size(row["bytes"])
        cells = [NOTHING if text is None else printable(str(text)) for text in texts.values()]
        table.add_row(*cells)
        for task, accuracy in row["accuracy_of_tasks"].items():
            table.add_row(f"  {printable(task)}", "", "", f"{accuracy:.1%}")
    open_console().print(table, highlight=False, markup=False)
