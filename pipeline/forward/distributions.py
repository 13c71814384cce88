"""Distributions over a vocabulary: log-probabilities, entropy, the tail bucket, divergences.

docs/method.md, sections 4 and 5. Names that end in _ change their argument in place. Everything is
computed in the dtype it gets (float32 in training, float64 in tests); log-probabilities are
natural, entropies in nats.
"""

import torch
from torch import Tensor

_LARGEST_LOG_MASS = -1e-7


def cool_(logits_NV: Tensor, temperature_N: Tensor) -> Tensor:
    """Turn logits, in place, into x = logits / tau - c with the largest x at 0; return c [N, 1].

    log softmax(logits / tau) is x - log sum exp(x) then, and no exp overflows.
    """
    if bool((temperature_N != 1).any()):
        logits_NV.div_(temperature_N[:, None].to(logits_NV.dtype))
    largest_N1 = logits_NV.amax(-1, keepdim=True)
    logits_NV.sub_(largest_N1)
    return largest_N1


def entropy_N(cooled_NV: Tensor, weights_NV: Tensor) -> Tensor:
    """Return H = -sum_v p log p over the full vocabulary (section 4), in nats.

    With x cooled logits, w = exp(x) and Z = sum w, that is log Z - (sum w x) / Z: nothing cancels,
    as the largest x is 0. A token of probability 0 (x = -inf) contributes 0.

    Args:
        weights_NV: w; overwritten.
    """
    sum_N = weights_NV.sum(-1)
    # 0 times -inf is NaN, and adds 0.
    mean_N = weights_NV.mul_(cooled_NV).nan_to_num_(nan=0.0).sum(-1) / sum_N
    return sum_N.log() - mean_N


def log_tail_N(logprobs_NK: Tensor) -> Tensor:
    """Return the log of the mass outside the K kept tokens (section 5).

    log(1 - sum_k p_k) = log(-expm1(logsumexp_k log p_k)), the sum capped just below 1, so that
    rounding gives neither a log of 0 nor a negative mass.
    """
    log_mass_N = torch.logsumexp(logprobs_NK, dim=-1).clamp(max=_LARGEST_LOG_MASS)
    return torch.log(-torch.expm1(log_mass_N))


def buckets_NC(logprobs_NK: Tensor, log_tail_N: Tensor | None) -> Tensor:
    """Return the K kept log-probabilities and, unless K is the vocabulary, the tail's bucket."""
    if log_tail_N is None:
        return logprobs_NK
    return torch.cat([logprobs_NK, log_tail_N[:, None]], dim=-1)


def kl_N(log_p_NC: Tensor, log_q_NC: Tensor) -> Tensor:
    """Return KL(p || q) = sum p (log p - log q) over buckets, in nats. Buckets with p = 0 add 0."""
    present_NC = log_p_NC > -torch.inf
    # Both are masked before they are subtracted: -inf - -inf would be NaN, also in the gradient.
    difference_NC = torch.where(present_NC, log_p_NC, 0.0) - torch.where(present_NC, log_q_NC, 0.0)
    return (log_p_NC.exp() * difference_NC).sum(-1)


def jsd_N(log_s_NC: Tensor, log_q_NC: Tensor, alpha: float) -> Tensor:
    """Return (1 - a) KL(s || m) + a KL(q || m) with m = (1 - a) s + a q (section 5), in nats.

    Buckets that are empty in both (-inf) add 0, to the value and to the gradient.
    """
    weights = torch.tensor([1 - alpha, alpha], dtype=log_s_NC.dtype, device=log_s_NC.device)
    # log m = log((1 - a) s + a q), without leaving logarithms
    both_2NC = torch.stack([log_s_NC, log_q_NC])
    # logsumexp of two -inf has a gradient of NaN; `kl_N` never looks at m where p is 0.
    both_2NC = both_2NC.masked_fill((both_2NC == -torch.inf).all(0), 0.0)
    log_m_NC = torch.logsumexp(both_2NC + weights.log()[:, None, None], dim=0)
    return (1 - alpha) * kl_N(log_s_NC, log_m_NC) + alpha * kl_N(log_q_NC, log_m_NC)
