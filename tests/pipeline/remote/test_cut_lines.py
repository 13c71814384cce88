"""Whatever request is the last that succeeds, the store has the old state or the new one."""

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import StoreError
from pipeline.remote import client
from pipeline.remote.mirror_paths import run_path
from pipeline.run.lock import RunLock
from tests.conftest import OpenPolicy
from tests.faults.commit_operations import Operation, operations
from tests.pipeline.conftest import UseMachine

NAMES = ("run", "longer run", "table", "record", "snapshot", "removed snapshot", "set aside")


class BrokenLine:
    """Counts the requests of a block, and cuts the line at one of them.

    Attributes:
        at: number of the request that is the last; -1: none is cut.
        done: whether the store gets that one, and only its answer is lost.
    """

    def __init__(self, at: int = -1, done: bool = False) -> None:
        self.at, self.done, self.calls = at, done, 0
        self._real = client.persistently
        self._thread = threading.current_thread()

    def __call__(self, address: client.Address, call: Callable[..., Any]) -> Any:
        if threading.current_thread() is not self._thread:  # it renews the lease
            return self._real(address, call)
        number, self.calls = self.calls, self.calls + 1
        if self.at < 0 or number < self.at:
            return self._real(address, call)
        if number == self.at and self.done:
            self._real(address, call)
        raise StoreError("the line is cut")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_no_cut_line_leaves_a_third_state(
    name: str,
    bucket: str,
    machine: UseMachine,
    monkeypatch: pytest.MonkeyPatch,
    tiny_policy: OpenPolicy,
) -> None:
    policy = tiny_policy()
    operation = operations(lambda: policy)[name]
    counting = BrokenLine()
    expected = _act(operation, _prepared(operation, f"{bucket}/whole"), counting, monkeypatch)
    assert counting.calls >= 1
    for at in range(counting.calls):
        for done in (False, True):
            machine("here")
            url = f"{bucket}/{at}-{done}"
            old = operation.look(_prepared(operation, url))
            with contextlib.suppress(StoreError):
                _act(operation, run_path(url), BrokenLine(at, done), monkeypatch)
            machine(f"reader of {at}-{done}")
            seen = operation.look(run_path(url))
            assert seen in (old, expected), f"after request {at}, {done=}"
            machine("here" if at % 2 else f"other of {at}-{done}")
            if seen == old and old != expected:
                assert _act(operation, run_path(url), BrokenLine(), monkeypatch) == expected
            machine(f"second reader of {at}-{done}")
            assert operation.look(run_path(url)) == expected


def _prepared(operation: Operation, url: str) -> Path:
    root = run_path(url)
    with RunLock(root):
        if operation.prepare is not Path.mkdir:
            operation.prepare(root)
    return root


def _act(
    operation: Operation, root: Path, line: BrokenLine, monkeypatch: pytest.MonkeyPatch
) -> object:
    """Act under the run's lock, and return what a reader finds then."""
    with RunLock(root), monkeypatch.context() as patch:
        patch.setattr(client, "persistently", line)
        operation.act(root)
    return operation.look(root)
