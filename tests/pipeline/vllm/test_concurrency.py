"""Calls side by side: all run, and the first error is raised."""

import threading

import pytest

from pipeline.vllm.concurrency import errors_of, run_concurrently


def test_calls_side_by_side() -> None:
    meeting = threading.Barrier(3, timeout=5)
    run_concurrently([lambda: [None for _ in [meeting.wait()]] and None] * 3)

    def fail() -> None:
        raise ValueError("second")

    found = errors_of([lambda: None, fail, fail])
    assert [str(error) for error in found] == ["None", "second", "second"]
    with pytest.raises(ValueError, match="second"):
        run_concurrently([lambda: None, fail])
