"""Options that several commands share."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.commands.completion import settings_starting_with
from pipeline.remote.mirror_paths import run_path

INTERRUPTED = 130
"""Exit code of a command that Ctrl-C ended."""
RUNS = Path("runs")
"""Where a run goes that is given no folder."""

RUN: dict[str, Any] = {"parser": run_path, "metavar": "RUN"}
"""How a command takes a run: by its folder or its URL."""
FOLDER: dict[str, Any] = {"parser": run_path, "metavar": "FOLDER"}
"""How a command takes the folder of a new run, or one that holds runs."""


class OutputFormat(StrEnum):
    """How a command writes what it found."""

    TABLE = "table"
    JSON = "json"


Output = Annotated[OutputFormat, typer.Option("--format", help="table or json.")]

Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="A setting; may be given several times.",
        autocompletion=settings_starting_with,
    ),
]

Runner = Annotated[
    str | None,
    typer.Option(
        metavar="KIND:N",
        help="Spread the work over N workers: processes:N, ray:N, dask:N, or KIND:N@ADDRESS of a "
        "cluster (docs/runners.md).",
    ),
]
