"""The token losses (docs/method.md, sections 5, 7, 8 and 9), as pure functions of flat [N] tensors.

None of them divides by a token count: the objective has one denominator, the N of the optimizer
step's batch, which the stage applies.
"""

import torch
from torch import Tensor

from pipeline.config.sections import Divergence
from pipeline.forward.distributions import jsd_N, kl_N

_RATIO_CLAMP = 20.0


def ratio_N(logprob_N: Tensor, old_logprob_N: Tensor) -> Tensor:
    """Return rho = exp(log pi - log pi_old), the difference clamped to +-20 (section 7)."""
    return torch.exp((logprob_N - old_logprob_N).clamp(-_RATIO_CLAMP, _RATIO_CLAMP))


def truncated_weight_N(log_ratio_N: Tensor, cap: float) -> Tensor:
    """Return stopgrad(min(exp(log ratio), cap)): an importance weight without gradient."""
    return torch.exp(log_ratio_N.detach()).clamp(max=cap)


def engine_kl_N(gap_N: Tensor) -> Tensor:
    """Return exp(g) - 1 - g for gaps g = log pi_old - log pi_engine, in nats.

    Of tokens that the engine drew, its mean estimates KL(engine || pi_old) without bias, and no
    token's share is negative (Schulman's k3 estimator). Gaps are clamped to +-20 as ratios are.
    """
    gap_N = gap_N.clamp(-_RATIO_CLAMP, _RATIO_CLAMP)
    return torch.expm1(gap_N) - gap_N


def grpo_loss_N(
    ratio_N: Tensor,
    advantage_N: Tensor,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None,
) -> Tensor:
    """Return -min(rho A, clip(rho, 1 - low, 1 + high) A), for A < 0 at most -c A (section 7).

    Args:
        ratio_N: pi / pi_old of each token, with gradient.
        advantage_N: its rollout's advantage, or what a teacher gives it of that (section 13).
        dual_clip: c, or None for no cap.
    """
    clipped_N = ratio_N.clamp(1 - clip_low, 1 + clip_high)
    loss_N = -torch.minimum(ratio_N * advantage_N, clipped_N * advantage_N)
    if dual_clip is None:
        return loss_N
    capped_N = torch.minimum(loss_N, -dual_clip * advantage_N)
    return torch.where(advantage_N < 0, capped_N, loss_N)


def clipped_N(
    ratio_N: Tensor,
    advantage_N: Tensor,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None,
) -> Tensor:
    """Tell where clip or dual clip decides the GRPO loss, so that the ratio gets no gradient."""
    inside_N = ratio_N.clamp(1 - clip_low, 1 + clip_high)
    by_clip_N = inside_N * advantage_N < ratio_N * advantage_N
    if dual_clip is None:
        return by_clip_N
    return by_clip_N | ((advantage_N < 0) & (ratio_N > dual_clip))


def divergence_N(kind: Divergence, log_s_NC: Tensor, log_q_NC: Tensor, jsd_alpha: float) -> Tensor:
    """Return the divergence of student s and teacher q over K + 1 buckets (section 5), in nats.

    jsd, forward_kl = KL(q || s), reverse_kl = KL(s || q). The teacher gets no gradient. Values
    that rounding makes negative are 0; their gradient is kept.
    """
    log_q_NC = log_q_NC.detach()
    if kind == "jsd":
        value_N = jsd_N(log_s_NC, log_q_NC, jsd_alpha)
    elif kind == "forward_kl":
        value_N = kl_N(log_q_NC, log_s_NC)
    elif kind == "reverse_kl":
        value_N = kl_N(log_s_NC, log_q_NC)
    else:
        raise ValueError(f"{kind} is no divergence over buckets")
    return value_N + (value_N.clamp(min=0) - value_N).detach()


def sampled_token_loss_N(logprob_N: Tensor, teacher_logprob_N: Tensor) -> Tensor:
    """Return the score-function estimator of reverse KL at the sampled token (section 5).

    stopgrad(log s(y) - log q(y)) log s(y); an estimator, so it may be negative.
    """
    return (logprob_N - teacher_logprob_N).detach() * logprob_N


def mixed_loss_N(grpo_N: Tensor, sdpo_N: Tensor, mix_lambda: float) -> Tensor:
    """Return lambda l^GRPO + (1 - lambda) l^SDPO (section 9, advantage_mix)."""
    return mix_lambda * grpo_N + (1 - mix_lambda) * sdpo_N
