"""Token losses against values worked out by hand (docs/method.md, sections 5, 7 and 9)."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pipeline.audit.token_losses import (
    TaughtTokens,
    divergence_T,
    shares_T,
    token_losses_T,
)
from pipeline.config.sections import UpdateSection

HALF, QUARTER = math.log(0.5), math.log(0.25)
JSD = 0.25 * math.log(16 / 15) + 0.5 * (0.25 * math.log(2 / 3) + 0.75 * math.log(6 / 5))


def settings(**changes: Any) -> dict[str, Any]:
    return UpdateSection(**changes).model_dump()


def taught(weight: float = 1.0) -> TaughtTokens:
    """Return one token, K = 1: student (1/2, tail 1/2), teacher (1/4, tail 3/4)."""
    return TaughtTokens(
        student_TK=np.array([[HALF]]),
        teacher_TK=np.array([[QUARTER]]),
        student_tail_T=np.array([HALF]),
        teacher_tail_T=np.array([math.log(0.75)]),
        student_logprob_T=np.array([HALF]),
        teacher_logprob_T=np.array([QUARTER]),
        jsd_T=np.array([0.125]),
        weight_T=np.array([weight]),
    )


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("jsd", JSD),
        ("forward_kl", 0.25 * math.log(0.5) + 0.75 * math.log(1.5)),
        ("reverse_kl", 0.5 * math.log(2) + 0.5 * math.log(2 / 3)),
        ("sampled_token", (HALF - QUARTER) * HALF),
    ],
)
def test_each_divergence(kind: str, value: float) -> None:
    assert divergence_T(taught(), settings(divergence=kind)) == pytest.approx([value], abs=1e-12)


def test_the_teachers_part_in_the_mixture() -> None:
    m = 0.7 * 0.5 + 0.3 * 0.25
    by_student = 0.5 * math.log(0.5 / m) + 0.5 * math.log(0.5 / (1 - m))
    by_teacher = 0.25 * math.log(0.25 / m) + 0.75 * math.log(0.75 / (1 - m))
    expected = 0.7 * by_student + 0.3 * by_teacher
    found = divergence_T(taught(), settings(jsd_alpha=0.3))
    assert found == pytest.approx([expected], abs=1e-12)


@pytest.mark.parametrize("kind", ["jsd", "forward_kl", "reverse_kl"])
def test_the_whole_vocabulary_has_an_empty_tail(kind: str) -> None:
    whole = TaughtTokens(
        student_TK=np.log([[0.5, 0.5]]),
        teacher_TK=np.log([[0.25, 0.75]]),
        student_tail_T=np.array([-np.inf]),
        teacher_tail_T=np.array([-np.inf]),
        student_logprob_T=np.array([HALF]),
        teacher_logprob_T=np.array([QUARTER]),
        jsd_T=np.array([0.125]),
        weight_T=np.ones(1),
    )
    expected = divergence_T(taught(), settings(divergence=kind))
    assert divergence_T(whole, settings(divergence=kind)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("advantage", "ratio", "loss"),
    [
        (0.5, 1.0, -0.5),
        (-0.5, 1.0, 0.5),
        (1.0, 2.0, -1.28),  # clipped above
        (1.0, 0.5, -0.5),
        (-1.0, 0.5, 0.8),  # clipped below
        (-1.0, 2.5, 2.5),
        (-1.0, 5.0, 3.0),  # dual clip
    ],
)
def test_grpo_losses(advantage: float, ratio: float, loss: float) -> None:
    log_ratio = np.array([math.log(ratio)])
    found = token_losses_T("grpo", advantage, np.ones(1), log_ratio, None, settings())
    assert found == pytest.approx([loss])


def test_without_dual_clip() -> None:
    found = token_losses_T("grpo", -1.0, np.ones(1), np.log([5.0]), None, settings(dual_clip=None))
    assert found == pytest.approx([5.0])


def test_weight_and_corrections_multiply_the_divergence() -> None:
    """1.5 x min(ratio 4, 2) x correction 0.8."""
    found = token_losses_T("sdpo", -0.5, np.array([0.8]), np.log([4.0]), taught(1.5), settings())
    assert found == pytest.approx([1.5 * 2 * 0.8 * JSD])


def test_what_is_handed_over_is_added() -> None:
    """Ratio 1.5: w x 1.5 x JSD, and 0.25 x -A x 1.5, both times 0.8."""
    one = replace(taught(0.5), reward_weight_T=np.array([0.25]))
    found = token_losses_T("sdpo", -0.4, np.array([0.8]), np.log([1.5]), one, settings())
    assert found == pytest.approx([0.8 * (0.5 * 1.5 * JSD + 0.25 * 0.4 * 1.5)])


def test_mixed_losses_and_no_route() -> None:
    args = (0.5, np.array([0.8]), np.zeros(1))
    mixed = token_losses_T("mix", *args, taught(), settings())
    assert mixed == pytest.approx([0.8 * (0.9 * -0.5 + 0.1 * JSD)])
    untaught = token_losses_T("mix", *args, None, settings())
    assert untaught == pytest.approx([0.8 * 0.9 * -0.5])
    assert token_losses_T("none", *args, None, settings()) == pytest.approx([0.0])


def test_shares_are_of_absolute_losses() -> None:
    assert shares_T(np.array([-3.0, 1.0])) == pytest.approx([0.75, 0.25])
    assert shares_T(np.zeros(2)) == pytest.approx([0.0, 0.0])
