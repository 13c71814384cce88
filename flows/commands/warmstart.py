"""`srpo warmstart`: a short supervised start from a task's own worked solutions."""

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from flows.commands.completion import presets_starting_with
from flows.commands.options import INTERRUPTED, Set
from flows.terminal.progress_bars import bars
from pipeline.text import command, count, duration, number

POLICIES = Path("policies")
"""Where a policy goes that is given no folder."""


def warmstart(
    config: Annotated[
        str, typer.Argument(help="A TOML file or a preset.", autocompletion=presets_starting_with)
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder to write; else policies/ and the file's name.")
    ] = None,
    overrides: Set = None,
) -> None:
    """Teach a model a task's format from its worked solutions, so that training can begin.

    The folder that comes out is a `model.path`. After an interruption, the same command goes on.

    Example: srpo warmstart words.toml --out policies/words --set warmstart.steps=30
    """
    from flows.session.open_run import expect_model
    from pipeline.config.load import load_config

    settings = load_config(config, overrides or [])
    expect_model(settings.model.path)
    target = out if out is not None else POLICIES / Path(config).stem[:100]

    from flows.warmstart.learning import StepResult
    from flows.warmstart.work import RECORD, warm_start

    begin = last = time.monotonic()
    steps = settings.warmstart.steps
    with bars(f"{target}: learning") as (advance,):

        def show(done: int, result: StepResult) -> None:
            nonlocal last
            now = time.monotonic()
            print(
                f"step {done}/{steps}  loss {number(result.loss)}  grad {number(result.grad_norm)}"
                f"  tokens {count(result.tokens)}  {duration(now - last)}",
                flush=True,
            )
            advance(done, steps)
            last = now

        try:
            made = warm_start(settings, target, show)
        except KeyboardInterrupt:
            print("interrupted; the same command goes on", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from None
    tokens = sum(step.tokens for step in made.steps)
    print(
        f"loss {number(made.steps[0].loss)} to {number(made.steps[-1].loss)} nats a token, "
        f"{made.examples} worked solutions, {made.taught} of them behind the teacher's prompt, "
        f"{count(tokens)} tokens, {duration(time.monotonic() - begin)}"
    )
    print(f"policy {made.policy_version}: {target} (losses in {target / RECORD})")
    begins = "model.path" if settings.model.lora is None else "model.lora.adapter"
    given = [word for setting in overrides or [] for word in ("--set", setting)]
    print(f"train it: {command('train', config, *given, '--set', f'{begins}={target}')}")
