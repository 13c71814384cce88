"""Entropy-aware weights (docs/method.md, section 6)."""

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.sections import Survival
from pipeline.stage.contract import Handles
from stages.weigh import (
    STAGE,
    log_raw_weights_N,
    normalised_weights_N,
    survival_columns,
)
from tests.builders.tables import config, tables, with_column

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


KINDS: list[Survival] = ["weight", "unnormalised", "hand_over"]
ONE_BATCH = np.zeros(3, dtype=np.int64)


@pytest.mark.parametrize(
    ("kind", "raw", "weight"),
    [
        # exp(-H) = 1, 1/2, 1/4 with S = 1, 1/2, 1/4: 1, 1/4, 1/16, over their mean 7/16
        ("weight", [1, 1 / 4, 1 / 16], [16 / 7, 4 / 7, 1 / 7]),
        # w = 12/7, 6/7, 3/7, times S
        ("unnormalised", [1, 1 / 2, 1 / 4], [12 / 7, 3 / 7, 3 / 28]),
        ("hand_over", [1, 1 / 2, 1 / 4], [12 / 7, 3 / 7, 3 / 28]),
    ],
)
def test_survival_by_hand(kind: Survival, raw: list[float], weight: list[float]) -> None:
    halves = -np.log([1.0, 2.0, 4.0])
    found = survival_columns(kind, halves, halves, ONE_BATCH)
    assert found["raw_weight"] == pytest.approx(raw)
    assert found["weight"] == pytest.approx(weight)
    assert found["survival"] == pytest.approx([1, 1 / 2, 1 / 4])
    assert ("reward_weight" in found) is (kind == "hand_over")
    if kind == "hand_over":
        assert found["reward_weight"] == pytest.approx([0, 1 / 2, 3 / 4])


@given(st.lists(st.tuples(st.floats(0, 12), st.floats(0, 900)), min_size=1, max_size=60))
def test_weights_with_survival_are_finite_and_their_mean_is_at_most_1(
    drawn: list[tuple[float, float]],
) -> None:
    """S of e^-900 is 0 in float64."""
    entropy, lost = np.array([[0.0, 0.0], *drawn]).T
    log_raw, log_survival = log_raw_weights_N(entropy, 1.0), -np.cumsum(lost)
    batch = np.zeros(len(entropy), dtype=np.int64)
    plain = normalised_weights_N(log_raw, batch)
    for kind in KINDS:
        found = survival_columns(kind, log_raw, log_survival, batch)["weight"]
        assert np.isfinite(found).all() and (found >= 0).all()
        if kind == "weight":
            assert found.mean() == pytest.approx(1.0)
        else:
            assert (found <= plain).all()


@pytest.mark.parametrize("kind", KINDS)
def test_where_teacher_and_student_agree_survival_changes_no_weight(kind: Survival) -> None:
    log_raw = log_raw_weights_N(np.array([0.5, 1.0, 0.0]), 1.0)
    found = survival_columns(kind, log_raw, np.zeros(3), ONE_BATCH)
    assert (found["weight"] == normalised_weights_N(log_raw, ONE_BATCH)).all()
    assert (found["survival"] == 1).all()
    assert (found.get("reward_weight", np.zeros(3)) == 0).all()


def test_the_stage_adds_columns_only_where_they_are_asked_for() -> None:
    # log q - log s of the first of two tokens is -1: S = 1, 1/e.
    made = tables()
    made["teacher"] = with_column(made["teacher"], "teacher_logprob", [-2.25, -2.5])
    found = {
        kind: STAGE.run(
            made, config(weigh={"survival": kind, "beta": 0.0}), Handles(seed=0, step=3)
        ).tables["weights"]
        for kind in ("off", *KINDS)
    }
    assert found["off"].column_names == [
        "rollout_id",
        "position",
        "entropy",
        "raw_weight",
        "weight",
    ]
    assert (
        found["weight"].column_names[5:] == found["unnormalised"].column_names[5:] == ["survival"]
    )
    assert found["hand_over"].column_names[5:] == ["survival", "reward_weight"]
    assert found["off"]["weight"].to_pylist() == [1.0, 1.0]
    share = 2 / (1 + math.exp(-1))
    assert found["weight"]["weight"].to_pylist() == pytest.approx([share, share * math.exp(-1)])
    for kind in ("unnormalised", "hand_over"):
        assert found[kind]["weight"].to_pylist() == pytest.approx([1.0, math.exp(-1)])
    assert found["hand_over"]["reward_weight"].to_pylist() == pytest.approx([0, 1 - math.exp(-1)])
