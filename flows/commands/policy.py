"""`srpo policy`: the policy of any step, rebuilt from the event log."""

from pathlib import Path
from typing import Annotated

import typer

from flows.terminal.progress_bars import bars
from pipeline.errors import ConfigError, StoreError


def policy(
    state: Annotated[str, typer.Argument(metavar="RUN@STEP", help="The state after STEP steps.")],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    adapter: Annotated[
        bool,
        typer.Option("--adapter", help="Write a LoRA run's adapter, not the model it makes."),
    ] = False,
) -> None:
    """Rebuild the policy after STEP steps as a Hugging Face folder, with teacher and optimizer.

    Of a run with model.lora, the folder holds the model with its adapters merged in, ready for any
    engine; with --adapter, the adapter in peft's format, with teacher and optimizer.

    The nearest earlier snapshot is opened and `update` replayed from the saved tables: no
    sampling, no teacher pass. On the same machine every bit is that of the uninterrupted run.

    Example: srpo policy runs/first@37 models/first-37
    """
    from flows.session.open_run import split_state
    from flows.session.session import Session
    from pipeline.policy.snapshots import save_merged, save_snapshot

    run, step = split_state(state)
    if step is None:
        raise ConfigError(f"{state}: which state? Give RUN@STEP, for example {state}@10")
    if out.exists():
        raise StoreError(f"{out}: there is something already; choose another folder")
    with Session.resume(run, writes=False) as session:
        if adapter and session.config.model.lora is None:
            raise ConfigError(f"{run}: --adapter is for runs with model.lora; leave it out")
        start = max((s for s in session.run.snapshots() if s <= step), default=0)
        with bars(f"replaying updates {start} to {step - 1}") as (replayed,):
            made = session.prepare(step, replayed)
        if made.base is None or adapter:
            save_snapshot(made, out, step)
        else:
            save_merged(made, out)
    how = "it was kept" if start == step else f"{step - start} updates replayed from {start}"
    print(f"policy {made.version} after {step} steps ({how}): {out}")
