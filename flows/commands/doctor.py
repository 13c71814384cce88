"""`srpo doctor`: does this machine have all that a run needs? What does it make of this model?"""

import shlex
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated

import typer

from flows.commands.completion import tasks_starting_with
from flows.commands.options import FOLDER, RUNS, Set
from flows.terminal.console import open_console
from pipeline.errors import ConfigError


def doctor(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODEL_OR_TASK]",
            help="A model's folder or name; a task's name or file, or a TOML file; none: this "
            "machine.",
            autocompletion=tasks_starting_with,
        ),
    ] = None,
    run_root: Annotated[Path, typer.Option(help="Folder that holds runs.", **FOLDER)] = RUNS,
    overrides: Set = None,
) -> None:
    """Say what is installed, what the machine offers, and what will run where.

    Of a model: the prompt that its chat template makes, what ends a response and who says so,
    whether its tokenizer gives texts back, and whether prompts are packed. Of a task: ten
    questions, what its verifier says of its gold answers, and prompts that occur twice.

    Example: srpo doctor models/Qwen3-8B --set model.system_role=fold
    """
    if target is None:
        from flows.terminal.machine_report import print_report

        well = print_report(open_console(), run_root)
    elif _is_task(target):
        from flows.terminal.task_report import print_task_report

        well = print_task_report(open_console(), target, overrides or [])
    else:
        from flows.session.open_run import expect_model

        expect_model(target)  # first: what follows is heavy
        from flows.terminal.model_report import print_model_report

        well = print_model_report(open_console(), target, overrides or [])
    if not well:
        raise typer.Exit(1)


def _is_task(target: str) -> bool:
    """Tell a task, or a file that configures one, from a model.

    Raises:
        ConfigError: it is a file of data, or a task's name with a slip in it.
    """
    from data.registry import task_names
    from data.sources import SUFFIXES

    if target in task_names() or Path(target).suffix.lower() in (".py", ".toml"):
        return True
    if target.lower().endswith(SUFFIXES):
        setting = shlex.quote(f"data.path={target}")
        raise ConfigError(f"{target}: data of which task? srpo doctor TASK --set {setting}")
    near = get_close_matches(target, task_names(), 1, cutoff=0.8)
    if near and not Path(target).exists():
        raise ConfigError(
            f"{target}: no task of this name, nor a model here; did you mean {near[0]}?"
        )
    return False
