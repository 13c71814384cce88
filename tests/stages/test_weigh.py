"""Entropy-aware weights (docs/method.md, section 6)."""

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.weigh import log_raw_weights_N, normalised_weights_N

ENTROPIES = st.lists(st.floats(0, 12), min_size=1, max_size=200)


def test_by_hand() -> None:
    # H = 0, ln 2, ln 4 at beta 1: raw 1, 1/2, 1/4; mean 7/12; weights 12/7, 6/7, 3/7.
    raw = log_raw_weights_N(np.log([1.0, 2.0, 4.0]), beta=1.0)
    assert np.exp(raw) == pytest.approx([1, 0.5, 0.25])
    weights = normalised_weights_N(raw, np.zeros(3, dtype=np.int64))
    assert weights == pytest.approx([12 / 7, 6 / 7, 3 / 7])


def test_each_mini_batch_has_its_own_normaliser() -> None:
    raw = np.log([1.0, 0.5, 0.1, 0.3])
    weights = normalised_weights_N(raw, np.array([0, 0, 2, 2]))
    assert weights == pytest.approx([4 / 3, 2 / 3, 0.5, 1.5])


@given(ENTROPIES, st.floats(0, 4))
def test_mean_is_one(entropies: list[float], beta: float) -> None:
    raw = log_raw_weights_N(np.array(entropies), beta)
    weights = normalised_weights_N(raw, np.zeros(len(raw), dtype=np.int64))
    assert math.isclose(weights.mean(), 1.0, rel_tol=1e-12)
    assert (weights >= 0).all()


@given(ENTROPIES)
def test_beta_zero_weighs_nothing(entropies: list[float]) -> None:
    raw = log_raw_weights_N(np.array(entropies), beta=0.0)
    weights = normalised_weights_N(raw, np.zeros(len(raw), dtype=np.int64))
    assert (weights == 1.0).all()


@given(ENTROPIES)
def test_a_surer_teacher_weighs_more(entropies: list[float]) -> None:
    raw = log_raw_weights_N(np.array(sorted(entropies)), beta=1.0)
    assert (np.diff(raw) <= 0).all()


def test_a_large_beta_does_not_underflow_to_nothing() -> None:
    raw = log_raw_weights_N(np.array([11.0, 12.0, 12.0]), beta=10_000.0)
    weights = normalised_weights_N(raw, np.zeros(3, dtype=np.int64))
    assert weights == pytest.approx([3.0, 0.0, 0.0])


def test_no_taught_token_is_no_error() -> None:
    empty = np.empty(0)
    assert len(normalised_weights_N(empty, np.empty(0, dtype=np.int64))) == 0
    assert pa.array(empty).null_count == 0
