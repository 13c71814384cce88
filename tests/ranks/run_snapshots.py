"""What ranks do with snapshots: `python -m tests.ranks.run_snapshots [TASK FROM TO]…`, by torchrun.

start      open the model folder FROM, and keep it as the snapshot TO
again      open the snapshot FROM, and keep it as the snapshot TO
killed     the same, but rank 1 is killed while it writes
alone      the same, but rank 1 can't reach the store at first, and sees no file in any folder
adopt      open the snapshot FROM, and keep it as TO with the teacher that FIRST, a snapshot
           beside it, has as its policy

`start lora` and so on: with adapters on MODEL, the model folder beside FROM.
"""

import errno
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pipeline.config.sections import LoraSection, ModelSection
from pipeline.distributed import ranks
from pipeline.errors import PolicyError, StoreError
from pipeline.policy import checkpoint, snapshots
from pipeline.policy.policy import Policy, TeacherSettings
from pipeline.policy.snapshots import (
    initial_model,
    load_snapshot,
    open_policy,
    save_snapshot,
)

EMA = TeacherSettings(kind="ema", rate=0.25, mix=0.05)
FROZEN = TeacherSettings(kind="frozen", rate=0.25, mix=0.05)
SECTION = ModelSection(path="x", device="cpu")
KILLED_AT = 5
"""The tensor in whose writing rank 1 dies."""


def die_while_writing(_: Policy) -> None:
    """Have rank 1 killed by SIGKILL when it writes its next tensors."""
    if ranks.rank() != 1:
        return
    write_at, count = checkpoint.write_at, iter(range(1, KILLED_AT + 1))

    def write(*arguments: Any) -> None:
        if next(count) == KILLED_AT:
            os.kill(os.getpid(), signal.SIGKILL)
        write_at(*arguments)

    checkpoint.write_at = write


def fill_the_disk(_: Policy) -> None:
    """Leave rank 1 no room for what it writes."""

    def write(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if ranks.rank() == 1:
        checkpoint.write_at = write


def lose_the_store(_: Policy) -> None:
    """Let rank 1 fetch nothing when it next opens a snapshot."""
    fetch = snapshots.fetch_folder

    def failing(*_: Any) -> None:
        snapshots.fetch_folder = fetch
        raise StoreError("the store failed")

    if ranks.rank() == 1:
        snapshots.fetch_folder = failing
        Path.iterdir = lambda folder: iter(())  # as NFS may for some seconds


def section_of(model: Path, lora: bool) -> ModelSection:
    """Return the settings of a model, or of adapters on it."""
    if not lora:
        return SECTION
    return SECTION.model_copy(update={"path": str(model), "lora": LoraSection(rank=2)})


def work(task: str, source: Path, target: Path) -> None:
    """Do a task, as rank 0."""
    task, _, kind = task.partition(" ")
    section = section_of(source.with_name("model"), kind == "lora")
    if task == "start":
        save_snapshot(open_policy(str(source), section, EMA), target, 0)
        return
    if task == "refused":
        try:
            open_policy(str(source), section, EMA)
        except PolicyError as error:
            target.write_text(str(error))
        return
    if task == "alone":
        ranks.together(lose_the_store, None)
        try:
            load_snapshot(source, section, EMA)
        except StoreError as error:
            target.with_suffix(".said").write_text(str(error))
    policy = load_snapshot(source, section, EMA)
    if task == "killed":
        ranks.together(die_while_writing, policy)
    if task == "full":
        ranks.together(fill_the_disk, policy)
        try:
            save_snapshot(policy, target, 2)
        except OSError as error:
            target.with_suffix(".said").write_text(str(error))
            raise
    if task == "adopt":
        first = source.with_name("first")
        initial = partial(initial_model, folder=first, settings=section, teacher=EMA)
        ranks.together(Policy.adopt_teacher, policy, FROZEN, initial)
    save_snapshot(policy, target, 2)


def main() -> None:
    """Be one of the ranks."""
    torch.set_num_threads(1)
    with ranks.joined():
        if ranks.rank():
            ranks.follow()
            return
        for first in range(1, len(sys.argv), 3):
            task, source, target = sys.argv[first : first + 3]
            work(task, Path(source), Path(target))


if __name__ == "__main__":
    main()
