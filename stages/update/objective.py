"""Token losses: routes, weights and corrections put together (docs/method.md, section 8)."""

from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.config.sections import UpdateSection
from pipeline.forward.distributions import buckets_NC, log_tail_N
from pipeline.forward.projection import Head, train_logprobs
from stages.update.batch import FlatBatch
from stages.update.losses import (
    clipped_N,
    divergence_N,
    grpo_loss_N,
    mixed_loss_N,
    ratio_N,
    sampled_token_loss_N,
    truncated_weight_N,
)


class TokenLosses(NamedTuple):
    """Per-token results; only `loss_N` has a gradient.

    `divergence_N` is NaN where there is no teacher; the gap, log pi_old - log pi_engine, where the
    trainer has no value of its own.
    """

    loss_N: Tensor
    ratio_N: Tensor
    clipped_N: Tensor
    tis_N: Tensor
    gap_N: Tensor
    divergence_N: Tensor


def token_losses(
    head: Head, hidden_ND: Tensor, batch: FlatBatch, settings: UpdateSection
) -> TokenLosses:
    """Return every token's loss, with its weight and corrections but before the division by N.

    Args:
        hidden_ND: the hidden states that predict the batch's tokens; their logits exist at once.
    """
    logprob_N, kept_MK = train_logprobs(
        head,
        hidden_ND,
        batch.targets_N,
        batch.temperature_N,
        batch.taught_N.nonzero()[:, 0],
        batch.topk_ids_MK,
    )
    return losses_of(logprob_N, kept_MK, head.vocabulary, batch, settings)


def losses_of(
    logprob_N: Tensor, kept_MK: Tensor, vocabulary: int, batch: FlatBatch, settings: UpdateSection
) -> TokenLosses:
    """Return what `token_losses` does, given the policy's log-probabilities, in nats.

    Args:
        logprob_N: of the batch's tokens.
        kept_MK: of the K ids at each taught token.
        vocabulary: V.
    """
    # Without stored values the policy is pi_old itself, detached: rho is 1 and has a gradient.
    old_N = logprob_N.detach() if batch.old_logprob_N is None else batch.old_logprob_N
    own_N = batch.own_correction_N
    gap_N = old_N - batch.sampled_logprob_N
    # Where pi_old is the engine's own value there is no gap to correct.
    tis_N = torch.where(own_N, truncated_weight_N(gap_N, settings.tis_clip), 1.0)
    rho_N = ratio_N(logprob_N, old_N)
    grpo_N = grpo_loss_N(
        rho_N, batch.advantage_N, settings.clip_low, settings.clip_high, settings.dual_clip
    )
    # SDPO's part of every token: 0 where there is no teacher, which is what a mix needs there.
    sdpo_N = torch.zeros_like(grpo_N)
    found_N = torch.full_like(grpo_N.detach(), torch.nan)
    taught_N = batch.taught_N
    if bool(taught_N.any()):
        value_M = _teacher_loss_M(batch, logprob_N[taught_N], kept_MK, settings, vocabulary)
        correction_M = truncated_weight_N((logprob_N - old_N)[taught_N], settings.sdpo_ratio_clip)
        # [M] back into the places of [N] that taught_N marks, in order.
        sdpo_N = sdpo_N.masked_scatter(taught_N, batch.weight_M * correction_M * value_M)
        found_N = found_N.masked_scatter(
            taught_N, _divergence_M(batch, logprob_N, value_M, settings)
        )
    by_clip_N = clipped_N(
        rho_N.detach(),
        batch.advantage_N,
        settings.clip_low,
        settings.clip_high,
        settings.dual_clip,
    )
    capped_N = rho_N.detach() > settings.sdpo_ratio_clip
    if batch.reward_weight_M is not None:
        # Where the teacher is off its path, a taught token learns from its advantage, too.
        handed_N = torch.zeros_like(tis_N).masked_scatter(taught_N, batch.reward_weight_M)
        sdpo_N = sdpo_N + handed_N * grpo_N
        capped_N = capped_N | (by_clip_N & (handed_N > 0))
    # z^SDPO, then the mix, then z^GRPO: each token has one of the three losses.
    by_teacher_N = taught_N & ~batch.mixed_N
    mixed_N = mixed_loss_N(grpo_N, sdpo_N, settings.mix_lambda)
    routed_N = torch.where(by_teacher_N, sdpo_N, torch.where(batch.mixed_N, mixed_N, grpo_N))
    return TokenLosses(
        loss_N=tis_N * routed_N,
        ratio_N=rho_N.detach(),
        clipped_N=torch.where(by_teacher_N, capped_N, by_clip_N),
        tis_N=tis_N,
        gap_N=torch.where(own_N, gap_N.detach(), torch.nan),
        divergence_N=found_N,
    )


def _divergence_M(
    batch: FlatBatch, logprob_N: Tensor, value_M: Tensor, settings: UpdateSection
) -> Tensor:
    """Return the divergence to report; of `sampled_token`, whose loss is none, log s - log q."""
    if settings.divergence == "sampled_token":
        return (logprob_N[batch.taught_N] - batch.teacher_logprob_M).detach()
    return value_M.detach()


def _teacher_loss_M(
    batch: FlatBatch, logprob_M: Tensor, kept_MK: Tensor, settings: UpdateSection, vocabulary: int
) -> Tensor:
    """Return the distillation loss of each taught token, before weight and corrections."""
    if settings.divergence == "sampled_token":
        return sampled_token_loss_N(logprob_M, batch.teacher_logprob_M)
    whole = kept_MK.shape[-1] == vocabulary
    log_s_MC = buckets_NC(kept_MK, None if whole else log_tail_N(kept_MK))
    log_q_MC = buckets_NC(batch.teacher_logprobs_MK, None if whole else batch.teacher_tail_M)
    return divergence_N(settings.divergence, log_s_MC, log_q_MC, settings.jsd_alpha)
