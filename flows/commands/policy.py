"""`srpo policy`: the policy of any step, rebuilt from the event log."""

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from flows.terminal.progress_bars import bars
from pipeline.errors import ConfigError, StoreError


def policy(
    state: Annotated[str, typer.Argument(metavar="RUN@STEP", help="The state after STEP steps.")],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
) -> None:
    """Rebuild the policy after STEP steps as a Hugging Face folder, with teacher and optimizer.

    The nearest earlier snapshot is opened and `update` replayed from the saved tables: no
    sampling, no teacher pass. On the same machine every bit is that of the uninterrupted run.

    Example: srpo policy runs/first@37 models/first-37
    """
    from flows.session.open_run import split_state
    from flows.session.session import Session
    from pipeline.policy.snapshots import save_snapshot

    run, step = split_state(state)
    if step is None:
        raise ConfigError(f"{state}: which state? Give RUN@STEP, for example {state}@10")
    if out.exists():
        raise StoreError(f"{out}: there is something already; choose another folder")
    with contextlib.closing(Session.resume(run, writes=False)) as session:
        start = max((s for s in session.run.snapshots() if s <= step), default=0)
        with bars(f"replaying updates {start} to {step - 1}") as (replayed,):
            made = session.prepare(step, replayed)
        save_snapshot(made, out, step)
    how = "it was kept" if start == step else f"{step - start} updates replayed from {start}"
    print(f"policy {made.version} after {step} steps ({how}): {out}")
