"""The guard of a process: everything below it ends, whoever dies first."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

SCRIPT = "import subprocess, sys, time; p = subprocess.Popen(['sleep', '100']); time.sleep(100)"


def guarded() -> tuple["subprocess.Popen[bytes]", list[int]]:
    """Start a guard over a process with a child, and return both processes' ids."""
    guard = subprocess.Popen(
        [sys.executable, "-m", "pipeline.vllm.process_guard", sys.executable, "-c", SCRIPT],
        stdin=subprocess.PIPE,
    )
    limit = time.monotonic() + 20
    while time.monotonic() < limit:
        below = psutil.Process(guard.pid).children(recursive=True)
        if len(below) == 2:
            return guard, [p.pid for p in below]
        time.sleep(0.05)
    raise AssertionError("the guard started nothing")


def gone(ids: list[int], seconds: float = 15) -> bool:
    """Wait until none of the processes lives."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        if not any(psutil.pid_exists(i) and psutil.Process(i).status() != "zombie" for i in ids):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.slow
def test_a_guard_ends_everything_when_its_input_closes() -> None:
    guard, below = guarded()
    assert guard.stdin is not None
    guard.stdin.close()
    assert gone(below)
    guard.wait(10)


@pytest.mark.slow
def test_a_guard_ends_children_of_a_process_that_died() -> None:
    guard, below = guarded()
    os.kill(below[0], signal.SIGKILL)
    assert gone(below)
    guard.wait(10)
