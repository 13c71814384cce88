"""`srpo doctor`: does this machine have all that a run needs?"""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from flows.commands.options import FOLDER, RUNS


def doctor(
    run_root: Annotated[Path, typer.Option(help="Folder that holds runs.", **FOLDER)] = RUNS,
) -> None:
    """Say what is installed, what the machine offers, and what will run where.

    Example: srpo doctor
    """
    from flows.terminal.machine_report import print_report

    if not print_report(Console(), run_root):
        raise typer.Exit(1)
