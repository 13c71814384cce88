"""Hostile verifiers: each costs its own response, in bounded time, and leaves nothing behind."""

import importlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows.session import Session
from pipeline.config import Config
from pipeline.loading import load_config
from pipeline.sandbox import holds
from pipeline.task import Verdict
from pipeline.verification import VerifierPool

HERE = Path(__file__).parent
GOOD = Verdict(1.0, True, "good")


@pytest.fixture
def hostile(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module of hostile verifiers; when the test is over, nothing of theirs is left."""
    monkeypatch.syspath_prepend(str(HERE))
    module = importlib.import_module("hostile_verifiers")
    yield module
    assert left(module.LONG_SLEEP) == []
    assert not list(Path(os.environ.get("TMPDIR", "/tmp")).glob(f"srpo-verifier-{os.getpid()}-*"))


def left(sleep: str) -> list[list[str]]:
    """Command lines of what this process's verifiers started and what still lives."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        words = process.info["cmdline"] or []
        ours = any("verification_guard" in word for word in words) and any(
            f'"parent": {os.getpid()},' in word for word in words
        )
        if (ours or sleep in words) and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(words)
    return found


HELD: dict[str, str | None] = {
    "raises badly": "verifier raised _Unspeakable: (its text can't be had: RuntimeError)",
    "names address": "verifier raised ValueError: <object object at 0x…> in $TMPDIR",
    "odd verdict": "verifier raised AttributeError: property 'reward' of '_Odd' object has no setter",
    "returns twice": None,
    "daemon": None,
    "bomb": "verifier process started more than 64 processes",
    "prints": None,
    "recurses": "verifier raised RecursionError: maximum recursion depth exceeded",
    "hoards": "memory limit of 512 MB exceeded",
    "exits": "verifier process ended with exit code 0",
    "closes all": "verifier process ended with exit code 1",
    "garbage": "verifier process broke its connection",
    "uses pair": None,
    "runs program": None,
    "writes much": "verifier raised OSError: [Errno 27] File too large",
    "opens much": "verifier raised OSError: [Errno 24] Too many open files: '/dev/null'",
    "leaves thread": None,
    "infinite": "verifier returned the reward inf, expected a number in [0, 1]",
    "minus infinite": "verifier returned the reward -inf, expected a number in [0, 1]",
}


def test_what_is_held_here(hostile: Any) -> None:
    with VerifierPool(holds, "t", 1, 60.0, 512) as pool:
        print(pool.verify([("", "")])[0].prediction)


def test_hostile_verifiers_cost_their_own_response_only(hostile: Any) -> None:
    pairs = [pair for command in HELD for pair in ((command, ""), ("good", ""))]
    with VerifierPool(hostile.judge, "t", 2, 60.0, 512) as pool:
        verdicts = pool.verify(pairs)
    assert {c: v.error for c, v in zip(HELD, verdicts[::2], strict=True)} == HELD
    assert verdicts[1::2] == [GOOD] * len(HELD)
