"""Hostile code in responses: each gets the verdict that is documented, and harms nobody."""

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from data.registry import judge, open_task
from pipeline.verification.pool import VerifierPool
from pipeline.verification.sandbox import has_landlock
from tests.paths import PROJECT

HERE = Path(__file__).parent
pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not has_landlock(), reason="only Linux with Landlock confines code"
)


@pytest.fixture
def hostile(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module of hostile code, under a name that children can import too."""
    monkeypatch.syspath_prepend(str(HERE))
    yield importlib.import_module("hostile_code")
    del sys.modules["hostile_code"]


def reference(tests: str) -> str:
    """Tests of a function f."""
    return json.dumps({"functions": ["f"], "setup": "", "names": {"f": "f"}, "tests": tests})


@pytest.mark.slow
def test_hostile_code_is_wrong_and_the_next_response_is_not_its_victim(hostile: Any) -> None:
    tests = reference(hostile.TESTS)
    codes = [code for code, _ in hostile.HELD.values()]
    pairs = [(text, tests) for code in codes for text in (code, hostile.RIGHT)]
    started = time.monotonic()
    with VerifierPool(hostile.judge, "t", 1, 10.0, 2048) as pool:
        assert pool.verify([(hostile.RIGHT, tests)])[0].reward == 1.0
        child = pool._children[0]
        verdicts = pool.verify(pairs)
        assert pool._children == [child]  # none of them ended who judged it
        family = psutil.Process(child.process.pid).children(recursive=True)
        assert len(family) <= 2  # the guard's init and the verifier
    assert time.monotonic() - started < 5.0 * len(codes)
    found = dict(zip(hostile.HELD, verdicts[::2], strict=True))
    for name, (_, feedback) in hostile.HELD.items():
        verdict = found[name]
        assert (verdict.reward, verdict.format_ok, verdict.error) == (0.0, True, None), name
        assert feedback in str(verdict.feedback) and len(str(verdict.feedback)) < 800, name
        if not feedback.startswith("Perm"):
            assert str(verdict.feedback).startswith(feedback), name
    assert {(verdict.reward, verdict.feedback) for verdict in verdicts[1::2]} == {(1.0, None)}
    assert not os.path.exists("/dev/shm/left-by-a-response")


def test_odd_code_that_is_right_is_right(hostile: Any) -> None:
    pairs = [(code, reference(hostile.TESTS)) for code in hostile.HARMLESS.values()]
    with VerifierPool(judge, "code", 1, 10.0, 2048, prepare=open_task) as pool:
        assert [verdict.reward for verdict in pool.verify(pairs)] == [1.0] * len(pairs)


@pytest.mark.slow
def test_code_that_never_ends_is_wrong_within_the_default_limits() -> None:
    endless = "def f(x):\n    while True: pass"
    with VerifierPool(judge, "code", 1, 10.0, 2048, prepare=open_task) as pool:
        (verdict,) = pool.verify([(endless, reference("assert f(1) == 1"))])
    assert (verdict.reward, verdict.error) == (0.0, None)
    assert str(verdict.feedback).startswith("f(1) gave no answer within ")


def test_a_confinement_in_which_nothing_starts_is_no_verdict(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipeline.verification.confinement._READABLE", ())
    monkeypatch.setattr("sys.prefix", "/none")
    monkeypatch.setattr("sys.base_prefix", "/none")
    with pytest.raises(RuntimeError, match="does not start in its confinement"):
        judge("code", "f = abs", reference("assert f(1) == 1"))


WITHOUT_LANDLOCK = """
import errno, json, sys
from pipeline.verification import sandbox as s
rules = [(s.EQUAL, 0, 1, 444), (s.END, 0, 0, s.REFUSE | errno.ENOSYS), (s.END, 0, 0, s.ALLOW)]
assert s.seccomp([(s.LOAD, 0, 0, 0), *rules]) and not s.has_landlock()
from data.code import verify
for code in json.loads(sys.argv[1]):
    print(verify(code, sys.argv[2]).feedback)
"""
"""Landlock's first call has this number on all machines."""


def test_the_judge_stays_out_of_reach_where_there_is_no_landlock(hostile: Any) -> None:
    names = ("parent's memory", "kills parent", "signals by file", "limits parent", "forks")
    codes = json.dumps([hostile.RIGHT, *(hostile.HELD[name][0] for name in names)])
    found = subprocess.run(
        [sys.executable, "-c", WITHOUT_LANDLOCK, codes, reference(hostile.TESTS)],
        capture_output=True,
        text=True,
        check=True,
        cwd=PROJECT,
    )
    right, *others = found.stdout.splitlines()
    assert right == "None"
    assert len(others) == len(names)
    assert all(line.startswith("f([1, 2]) raised PermissionError: ") for line in others)
