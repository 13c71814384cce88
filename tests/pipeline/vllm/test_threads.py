"""Calls side by side: all run, and the first error is raised."""

import threading

import pytest

from pipeline.vllm.threads import outcomes, side_by_side


def test_calls_side_by_side() -> None:
    meeting = threading.Barrier(3, timeout=5)
    side_by_side([lambda: [None for _ in [meeting.wait()]] and None] * 3)

    def fail() -> None:
        raise ValueError("second")

    found = outcomes([lambda: None, fail, fail])
    assert [str(error) for error in found] == ["None", "second", "second"]
    with pytest.raises(ValueError, match="second"):
        side_by_side([lambda: None, fail])
