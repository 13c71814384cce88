"""A training that hangs where nothing can interrupt it: it ends in time and says where it stood."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import PROJECT

TRAINING = """
import ctypes, sys
from functools import partial
from pathlib import Path
from flows.training.loop import train
from flows.training.watchdog import Watchdog
from pipeline.tables.arrow_writing import Writer
from tests.flows.training.fake_session import FakeSession

hang = partial(ctypes.{library}(None).sleep, {seconds})

class Hanging(FakeSession):
    def writing_beside(self):
        writer = Writer()
        if "{where}" == "disk":
            writer.submit(Path("rollouts.arrow"), None, hang)
        return writer

    def run_stage(self, name, step, progress=None):
        if "{where}" == "stage" and (name, step) == ("route", 1):
            hang()
        return super().run_stage(name, step, progress)

session = Hanging(Path(sys.argv[1]), "run.steps=3")
with Watchdog(session.run.root, {limit}) as watchdog:
    train(session, session.run_stage, [watchdog], lambda: False)
print("complete")
"""


def training(
    folder: Path, library: str, seconds: int, limit: float | None, where: str = "stage"
) -> "subprocess.Popen[str]":
    code = TRAINING.format(library=library, seconds=seconds, limit=limit, where=where)
    return subprocess.Popen(
        [sys.executable, "-c", code, str(folder)],
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_a_stage_that_hangs_in_c_ends_the_process_and_leaves_its_stacks(tmp_path: Path) -> None:
    run = tmp_path / "hangs"
    hangs = training(run, "CDLL", 600, 2.0)
    locks = training(tmp_path / "locks", "PyDLL", 600, 2.0)  # no other thread can run meanwhile
    slow = training(tmp_path / "slow", "CDLL", 3, None)
    disk = training(tmp_path / "disk", "CDLL", 600, 2.0, where="disk")

    _, errors = hangs.communicate(timeout=180)
    assert hangs.returncode == 2
    (line,) = errors.splitlines()
    assert line.startswith("error: no progress for 2 s (run.stall_seconds) in route of step 1, ")
    stacks = run / "stalled-1.txt"
    assert line.endswith(f"is in {stacks}; go on: srpo train --resume --run {run}")
    assert "in run_stage" in stacks.read_text()

    _, errors = locks.communicate(timeout=180)
    assert locks.returncode == 1
    assert "Timeout" in errors and "in run_stage" in errors

    output, errors = slow.communicate(timeout=180)
    assert (slow.returncode, output, errors) == (0, "complete\n", "")

    _, errors = disk.communicate(timeout=180)
    assert disk.returncode == 2
    assert errors.startswith("error: no progress for 2 s (run.stall_seconds) in snapshot of step 3")
    assert "_twice" in (tmp_path / "disk" / "stalled-1.txt").read_text()
