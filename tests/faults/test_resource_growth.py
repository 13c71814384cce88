"""Threads and open files of a training do not grow; benchmarks.flatness shows memory, too."""

import contextlib
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows.session.session import Session
from flows.training.loop import Watcher, train
from pipeline.config.load import load_config

SMALL = [
    "run.steps=13",
    "run.snapshot_every=5",
    "generate.questions=2",
    "generate.rollouts=2",
    "evaluate.every=5",
    "evaluate.questions=2",
    "evaluate.rollouts=2",
]
WARM = 3


class Samples(Watcher):
    """Counts threads and descriptors of this process when a step has ended."""

    def __init__(self) -> None:
        self.threads: list[int] = []
        self.files: list[int] = []

    def step_ended(self, steps_done: int, metrics: dict[str, Any]) -> None:
        process = psutil.Process()
        self.threads.append(process.num_threads())
        self.files.append(process.num_fds())


@pytest.mark.slow
def test_ten_steps_leave_no_thread_and_no_file_behind(tmp_path: Path) -> None:
    samples = Samples()
    with contextlib.closing(Session.create(tmp_path / "run", load_config("demo", SMALL))) as run:
        train(run, run.run_stage, [samples], lambda: False)
    assert len(samples.files) == 13
    assert samples.files[-1] <= max(samples.files[:WARM])
    assert samples.threads[-1] <= max(samples.threads[:WARM])
