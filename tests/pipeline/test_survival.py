"""Prefix survival: by hand, against a plain loop, its properties (docs/method.md, section 15)."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.survival import log_survival_N, log_survival_of, off_path_share
from tests.builders.tables import tables, with_column

LOGPROBS = st.tuples(st.floats(-60, 0), st.floats(-60, 0))
RESPONSES = st.lists(st.lists(LOGPROBS, min_size=1, max_size=30), max_size=6)
"""(log q, log s) of each token of some responses."""


def survival(responses: list[list[tuple[float, float]]]) -> list[np.ndarray]:
    """Return S of each response, as the function gives it for all of them at once."""
    pairs = np.array([pair for one in responses for pair in one]).reshape(-1, 2)
    positions = [n for one in responses for n in range(len(one))]
    found = log_survival_N(pairs[:, 0], pairs[:, 1], np.array(positions, dtype=np.int32))
    ends = np.cumsum([len(one) for one in responses])
    return np.split(np.exp(found), ends[:-1]) if responses else []


def test_by_hand() -> None:
    # q/s = 1/2, 4 (counts as 1), 1/5, anything: S = 1, 1/2, 1/2, 1/10; the next response is anew.
    ratios = [0.5, 4.0, 0.2, 0.3]
    first = [(math.log(ratio / 8), math.log(1 / 8)) for ratio in ratios]
    found = survival([first, [(-1.0, -0.5), (-1.0, -0.5)]])
    assert found[0] == pytest.approx([1.0, 0.5, 0.5, 0.1], rel=1e-12)
    assert found[1] == pytest.approx([1.0, math.exp(-0.5)], rel=1e-12)


@given(RESPONSES)
def test_it_is_a_plain_product(responses: list[list[tuple[float, float]]]) -> None:
    for pairs, found in zip(responses, survival(responses), strict=True):
        product = 1.0
        for (log_q, log_s), value in zip(pairs, found, strict=True):
            assert value == pytest.approx(product, rel=1e-11, abs=1e-300)
            product *= min(1.0, math.exp(log_q) / math.exp(log_s))


@given(RESPONSES)
def test_it_falls_from_1(responses: list[list[tuple[float, float]]]) -> None:
    for found in survival(responses):
        assert found[0] == 1.0 and (found >= 0).all() and (np.diff(found) <= 0).all()


@given(RESPONSES)
def test_it_is_1_exactly_as_long_as_the_teacher_agrees(
    responses: list[list[tuple[float, float]]],
) -> None:
    for pairs, found in zip(responses, survival(responses), strict=True):
        lost = 0.0
        for (log_q, log_s), value in zip(pairs, found, strict=True):
            assert (value == 1.0) if lost == 0 else value < 1.0 or lost < 1e-12
            lost += max(log_s - log_q, 0.0)


def test_equal_policies_survive_to_the_end() -> None:
    logs = np.log(np.random.default_rng(0).uniform(1e-6, 1, 500))
    found = log_survival_N(logs, logs, np.arange(500, dtype=np.int32))
    assert (found == 0).all()


def test_a_long_response_stays_finite() -> None:
    length = 20_000
    found = log_survival_N(
        np.full(length, -9.0), np.full(length, -1.0), np.arange(length, dtype=np.int32)
    )
    assert found[-1] == pytest.approx(-8.0 * (length - 1))
    assert np.exp(found[-1]) == 0.0


def test_no_token_is_no_error() -> None:
    empty = np.empty(0)
    assert len(log_survival_N(empty, empty, np.empty(0, dtype=np.int32))) == 0


def test_of_a_table() -> None:
    teacher = with_column(tables()["teacher"], "teacher_logprob", [-2.25, -2.5])
    assert log_survival_of(teacher) == pytest.approx([0.0, -1.0])


def test_the_share_off_the_path_by_hand() -> None:
    # w jsd = 0.2, 0.3, 0.5; S = 1, 0.1, 0.05: the last is off the path, the second just on it.
    weight, jsd = np.array([1.0, 0.5, 2.0]), np.array([0.2, 0.6, 0.25])
    assert off_path_share(weight, jsd, np.log([1.0, 0.1000001, 0.05])) == pytest.approx(0.5)
    assert off_path_share(weight, np.zeros(3), np.zeros(3)) is None
