"""Token losses worked out by hand, and their properties (docs/method.md, sections 5, 7 and 9)."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from stages.update.losses import (
    clipped_N,
    divergence_N,
    engine_kl_N,
    grpo_loss_N,
    mixed_loss_N,
    ratio_N,
    sampled_token_loss_N,
    truncated_weight_N,
)

LN2, LN3, LN5 = math.log(2), math.log(3), math.log(5)


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def grpo(ratio: float, advantage: float, dual_clip: float | None = 3.0) -> float:
    loss = grpo_loss_N(column(ratio), column(advantage), 0.2, 0.28, dual_clip)
    return float(loss)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss"),
    [
        (1.0, 0.5, -0.5),
        (1.2, 0.5, -0.6),  # inside the clip
        (1.5, 0.5, -0.64),  # clipped at 1.28: -(1.28 * 0.5)
        (0.5, 0.5, -0.25),  # a falling ratio of a good token is not clipped
        (1.0, -0.5, 0.5),
        (0.5, -0.5, 0.4),  # clipped at 0.8: -(0.8 * -0.5)
        (2.0, -0.5, 1.0),  # a rising ratio of a bad token is not clipped ...
        (10.0, -0.5, 1.5),  # ... but capped at 3 * 0.5
        (7.0, 0.0, 0.0),
    ],
)
def test_clipped_surrogate_by_hand(ratio: float, advantage: float, loss: float) -> None:
    assert grpo(ratio, advantage) == pytest.approx(loss, abs=1e-12)


def test_divergence_from_the_engine_by_hand() -> None:
    found = engine_kl_N(column(LN2, -LN2, 0.0, 500.0))
    wanted = [1 - LN2, LN2 - 0.5, 0.0, math.exp(20) - 21]
    assert found.tolist() == pytest.approx(wanted, abs=1e-12)


@given(st.floats(-20, 20), st.floats(-20, 20))
def test_divergence_from_the_engine_is_never_negative_and_grows(one: float, two: float) -> None:
    near, far = sorted((abs(one), abs(two)))
    for sign in (1, -1):
        small, large = engine_kl_N(column(sign * near, sign * far)).tolist()
        assert 0 <= small <= large
    assert near == 0 or near < 1e-8 or float(engine_kl_N(column(near))) > 0


def test_its_mean_under_the_engine_is_the_divergence() -> None:
    engine, trainer = column(0.5, 0.3, 0.2), column(0.2, 0.5, 0.3)
    exact = float((engine * (engine / trainer).log()).sum())
    assert float((engine * engine_kl_N((trainer / engine).log())).sum()) == pytest.approx(exact)


def test_dual_clip_can_be_turned_off() -> None:
    assert grpo(10.0, -0.5, dual_clip=None) == pytest.approx(5.0)
    assert grpo(10.0, 0.5, dual_clip=3.0) == grpo(10.0, 0.5, dual_clip=None)


def test_on_policy_gradient_is_minus_advantage() -> None:
    logprob = column(-1.0, -2.0).requires_grad_()
    rho = ratio_N(logprob, logprob.detach())
    grpo_loss_N(rho, column(0.5, -0.25), 0.2, 0.28, 3.0).sum().backward()
    assert logprob.grad is not None
    assert logprob.grad.tolist() == pytest.approx([-0.5, 0.25])


def test_clips_count_where_they_take_the_gradient() -> None:
    ratio = column(1.5, 0.5, 0.5, 2.0, 10.0, 1.0, 0.5).requires_grad_()
    advantage = column(0.5, 0.5, -0.5, -0.5, -0.5, 0.5, 0.0)
    grpo_loss_N(ratio, advantage, 0.2, 0.28, 3.0).sum().backward()
    found = clipped_N(ratio.detach(), advantage, 0.2, 0.28, 3.0)
    assert found.tolist() == [True, False, True, False, True, False, False]
    assert ratio.grad is not None
    assert (ratio.grad == 0).tolist() == [True, False, True, False, True, False, True]


def test_ratio_is_clamped() -> None:
    assert float(ratio_N(column(0.0), column(-50.0))) == pytest.approx(math.exp(20))
    assert float(ratio_N(column(-50.0), column(0.0))) == pytest.approx(math.exp(-20))


def test_importance_weights_are_capped_and_have_no_gradient() -> None:
    log_ratio = column(math.log(1.5), math.log(5.0), -1.0).requires_grad_()
    weight = truncated_weight_N(log_ratio, 2.0)
    assert weight.tolist() == pytest.approx([1.5, 2.0, math.exp(-1)])
    assert not weight.requires_grad


# Student 1/2, 1/3, 1/6; teacher 1/5, 3/10, 1/2.
S = torch.tensor([[1 / 2, 1 / 3, 1 / 6]], dtype=torch.float64).log()
Q = torch.tensor([[1 / 5, 3 / 10, 1 / 2]], dtype=torch.float64).log()


def test_divergences_by_hand() -> None:
    # KL(q||s) = .2 ln .4 + .3 ln .9 + .5 ln 3; KL(s||q) = .5 ln 2.5 + ln(10/9)/3 - ln(3)/6.
    forward = 0.2 * math.log(0.4) + 0.3 * math.log(0.9) + 0.5 * LN3
    reverse = 0.5 * math.log(2.5) + math.log(10 / 9) / 3 - LN3 / 6
    assert float(divergence_N("forward_kl", S, Q, 0.5)) == pytest.approx(forward, rel=1e-12)
    assert float(divergence_N("reverse_kl", S, Q, 0.5)) == pytest.approx(reverse, rel=1e-12)
    # alpha = 1/4: m = 3/4 s + 1/4 q = 0.425, 0.325, 0.25.
    m = (0.425, 0.325, 0.25)
    kl_s = sum(p * math.log(p / v) for p, v in zip((1 / 2, 1 / 3, 1 / 6), m, strict=True))
    kl_q = sum(p * math.log(p / v) for p, v in zip((0.2, 0.3, 0.5), m, strict=True))
    expected = 0.75 * kl_s + 0.25 * kl_q
    assert float(divergence_N("jsd", S, Q, 0.25)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kind", ["jsd", "forward_kl", "reverse_kl"])
@given(
    logits=st.lists(st.floats(-30, 30), min_size=8, max_size=8),
    closeness=st.sampled_from([0.0, 1e-6, 1e-3, 1.0]),
)
def test_divergences_are_never_negative(kind: str, logits: list[float], closeness: float) -> None:
    s = torch.tensor([logits[:4]], dtype=torch.float32).log_softmax(-1)
    q = (s + closeness * torch.tensor([logits[4:]], dtype=torch.float32)).log_softmax(-1)
    s.requires_grad_()
    value = divergence_N(kind, s, q, 0.5)  # type: ignore[arg-type]
    assert float(value.detach()) >= 0
    value.backward()
    assert s.grad is not None and bool(torch.isfinite(s.grad).all())


def test_the_teacher_gets_no_gradient() -> None:
    teacher = Q.clone().requires_grad_()
    divergence_N("jsd", S.clone().requires_grad_(), teacher, 0.5).sum().backward()
    assert teacher.grad is None


def test_sampled_token_is_the_reverse_kl_estimator() -> None:
    logprob = column(-LN2).requires_grad_()
    loss = sampled_token_loss_N(logprob, column(-LN5))
    # (ln(1/2) - ln(1/5)) * ln(1/2); its gradient is the bracket alone.
    assert float(loss.detach()) == pytest.approx((LN5 - LN2) * -LN2)
    loss.backward()
    assert logprob.grad is not None
    assert float(logprob.grad) == pytest.approx(LN5 - LN2)
    # Its expectation over the student's tokens has the gradient of KL(s || q).
    logits = torch.tensor([0.3, -0.2, 0.9], dtype=torch.float64, requires_grad=True)
    log_s = logits.log_softmax(-1)
    (log_s.exp().detach() * sampled_token_loss_N(log_s, Q[0])).sum().backward()
    estimated, logits.grad = logits.grad, None
    log_s = logits.log_softmax(-1)
    divergence_N("reverse_kl", log_s[None], Q, 0.5).sum().backward()
    assert estimated is not None and logits.grad is not None
    assert estimated.tolist() == pytest.approx(logits.grad.tolist(), abs=1e-12)


def test_mix_weighs_both_losses() -> None:
    assert float(mixed_loss_N(column(2.0), column(-1.0), 0.9)) == pytest.approx(1.7)
