"""`srpo doctor`: does this machine have all that a run needs? And what of this model?"""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from flows.commands.options import FOLDER, RUNS, Set


def doctor(
    model: Annotated[
        str | None,
        typer.Argument(metavar="[MODEL]", help="A model folder or name; none: this machine."),
    ] = None,
    run_root: Annotated[Path, typer.Option(help="Folder that holds runs.", **FOLDER)] = RUNS,
    overrides: Set = None,
) -> None:
    """Say what is installed, what the machine offers, and what will run where.

    Of a model: the prompt that its chat template makes, what ends a response and who says so,
    whether its tokenizer gives texts back, and whether prompts are packed.

    Example: srpo doctor models/Qwen3-8B --set model.system_role=fold
    """
    if model is not None:
        from flows.terminal.model_report import print_model_report

        well = print_model_report(Console(), model, overrides or [])
    else:
        from flows.terminal.machine_report import print_report

        well = print_report(Console(), run_root)
    if not well:
        raise typer.Exit(1)
