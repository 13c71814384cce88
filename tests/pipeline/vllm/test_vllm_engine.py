"""The engine: how its questions become groups."""

import pytest

from pipeline.errors import PolicyError
from pipeline.vllm import vllm_engine
from pipeline.vllm.replica import Group


def test_seeds_of_a_group_must_be_in_a_row() -> None:
    assert vllm_engine._groups([[1], [2]], [[7, 8], [20]]) == [
        Group(0, [1], 7, 2),
        Group(1, [2], 20, 1),
    ]
    with pytest.raises(PolicyError, match=r"seeds of group 1 are \[3, 5\]"):
        vllm_engine._groups([[1], [2]], [[7, 8], [3, 5]])
