"""Seeds and the order of questions: functions of their arguments and of nothing else."""

import random
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.seeds import derive_seed, epoch_positions, permutation


def test_golden_seeds() -> None:
    """Another value here means that no earlier run can be reproduced."""
    # int.from_bytes(sha256(b"0/sample/3/1").digest()[:8], "big") % 2**62
    assert derive_seed(0, "sample", 3, 1) == 3062196143145127074
    assert permutation(0, "epoch", 8, 0) == [4, 0, 2, 3, 6, 7, 5, 1]


@given(st.integers(0, 2**40), st.text(max_size=10), st.lists(st.integers(0, 2**31), max_size=3))
def test_seeds_fit_the_column(seed: int, purpose: str, indices: list[int]) -> None:
    found = derive_seed(seed, purpose, *indices)
    assert 0 <= found < 2**62  # and a whole group's seed + j fits an int64 too
    assert derive_seed(seed, purpose, *indices) == found


def test_every_argument_counts() -> None:
    indices = [(), (0,), (1,), (0, 0), (1, 0), (0, 1), (10,), (1, 10), (11, 0)]
    arguments = [(1, "a"), (0, "b"), *((0, "a", *rest) for rest in indices)]
    assert len({derive_seed(*a) for a in arguments}) == len(arguments)


def test_seeds_of_groups_are_far_apart() -> None:
    """Rollout j has the group's seed + j: no two groups of a run may come near each other."""
    found = sorted(
        derive_seed(0, "sample", step, group) for step in range(50) for group in range(40)
    )
    assert min(b - a for a, b in pairwise(found)) > 10**6


def test_global_state_does_not_matter() -> None:
    before = derive_seed(0, "x"), permutation(0, "x", 9), epoch_positions(0, 9, 2, 4)
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    assert (derive_seed(0, "x"), permutation(0, "x", 9), epoch_positions(0, 9, 2, 4)) == before


@given(st.integers(0, 99), st.integers(1, 20), st.integers(1, 30), st.integers(1, 12))
def test_each_epoch_has_every_question_once(seed: int, size: int, count: int, steps: int) -> None:
    stream = [p for step in range(steps) for p in epoch_positions(seed, size, step, count)]
    assert len(stream) == steps * count
    for start in range(0, len(stream) - size + 1, size):
        assert sorted(stream[start : start + size]) == list(range(size))


def test_what_an_epoch_leaves_over_opens_the_next_step() -> None:
    first, second = permutation(0, "epoch", 5, 0), permutation(0, "epoch", 5, 1)
    assert epoch_positions(0, 5, 0, 3) == first[:3]
    assert epoch_positions(0, 5, 1, 3) == [*first[3:], second[0]]
    assert epoch_positions(0, 5, 2, 3) == second[1:4]


def test_a_step_may_span_several_epochs() -> None:
    assert Counter(epoch_positions(0, 2, 0, 6)) == {0: 3, 1: 3}


@pytest.mark.parametrize("other", [1, 2, 3])
def test_epochs_and_runs_differ_in_order(other: int) -> None:
    assert permutation(0, "epoch", 20, 0) != permutation(0, "epoch", 20, other)
    assert permutation(0, "epoch", 20, 0) != permutation(other, "epoch", 20, 0)
