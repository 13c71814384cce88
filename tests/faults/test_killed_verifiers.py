"""A verifier that somebody kills, such as a system short of memory, changes no verdict."""

import contextlib
import importlib
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pipeline.task import Verdict
from pipeline.verification.pool import VerifierPool
from tests.paths import PROJECT

JUDGES = PROJECT / "tests" / "pipeline" / "verification"
RIGHT = Verdict(1.0, True, "t gold")


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[VerifierPool]:
    monkeypatch.syspath_prepend(str(JUDGES))
    judges = importlib.import_module("misbehaving_judges")
    with contextlib.closing(VerifierPool(judges.judge, "t", 2, 30.0, 256)) as made:
        yield made
    del sys.modules["misbehaving_judges"]
    assert not list(Path(tempfile.gettempdir()).glob(f"srpo-verifier-{os.getpid()}-*"))


def kill_all_once(after: float) -> threading.Timer:
    """Kill the children of this process after some seconds."""

    def kill() -> None:
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()

    timer = threading.Timer(after, kill)
    timer.start()
    return timer


def test_responses_whose_judges_were_killed_are_judged_again(pool: VerifierPool) -> None:
    pool.verify([("fine", "gold")] * 2)
    timer = kill_all_once(1.0)
    assert pool.verify([("naps:3", "gold"), ("naps:3", "gold"), ("fine", "gold")]) == [RIGHT] * 3
    timer.join()


def test_a_judge_that_was_killed_at_its_start_has_a_successor(pool: VerifierPool) -> None:
    starts = threading.Thread(target=lambda: found.extend(pool.verify([("fine", "gold")])))
    found: list[Verdict] = []
    starts.start()
    while not (children := psutil.Process().children()):
        time.sleep(0.001)
    children[0].kill()
    starts.join(60)
    assert found == [RIGHT]


def test_a_response_that_kills_its_judge_twice_has_an_error_verdict(pool: VerifierPool) -> None:
    fatal = "returns:os.kill(os.getpid(), signal.SIGKILL)"
    verdicts = pool.verify([(fatal, "gold"), ("fine", "gold")])
    assert verdicts[0].error == "verifier process was ended by SIGKILL"
    assert verdicts[1] == RIGHT
