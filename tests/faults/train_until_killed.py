"""A run with adapters on the demo policy, killed by SIGKILL at a place that is chosen.

    python -m tests.faults.train_until_killed RUN PLACE

update     in the second step's update, when the optimizer has moved A and B
snapshot   while the snapshot of that step is written, in the middle of the teacher's file
"""

import os
import signal
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from flows.session.session import Session
from flows.training import loop
from pipeline.config.load import load_config
from pipeline.policy import checkpoint
from pipeline.policy.policy import Policy

SETTINGS = (
    "run.steps=3",
    "generate.questions=4",
    "evaluate.questions=2",
    "evaluate.rollouts=2",
    "verify.workers=1",
    "model.lora.rank=4",
)
FILES_BEFORE = 6
"""Files of tensors until the second snapshot's teacher: 2 of the first, 3 of the next, 1."""
TENSORS_BEFORE = 5


def train(run: Path) -> None:
    """Begin a run, or go on with it, to its end."""
    if (run / "run.json").exists():
        session = Session.resume(run)
    else:
        session = Session.create(run, load_config("demo", list(SETTINGS)))
    with closing(session):
        loop.train(session, session.run_stage, [], lambda: False)


def _die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _die_in_update() -> None:
    advance, calls = Policy.advance_teacher, iter(range(2))

    def dying(policy: Policy, steps_done: int) -> None:
        if next(calls) < 1:
            advance(policy, steps_done)
            return
        while not (
            Path(sys.argv[1]) / "steps/000001/weights.json"
        ).exists():  # written beside the update
            time.sleep(0.01)
        _die()

    Policy.advance_teacher = dying  # type: ignore[method-assign]


def _die_in_snapshot() -> None:
    save, write_at = checkpoint.save, checkpoint.write_at
    files, tensors = iter(range(99)), iter(range(99))

    def write(*arguments: Any) -> None:
        _die() if next(tensors) == TENSORS_BEFORE else write_at(*arguments)

    def dying(*arguments: Any) -> None:
        if next(files) == FILES_BEFORE:
            checkpoint.write_at = write
        save(*arguments)

    checkpoint.save = dying  # type: ignore[assignment]


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"update": _die_in_update, "snapshot": _die_in_snapshot}[sys.argv[2]]()
    train(Path(sys.argv[1]))
