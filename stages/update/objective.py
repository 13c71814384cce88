"""The loss of a micro-batch: routes, weights, corrections put together (METHOD.md, section 8)."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.config import UpdateSection
from pipeline.distributions import buckets_NB, log_tail_N
from pipeline.scoring import Forward, response_hidden_ND, train_logprobs
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


@dataclass(frozen=True)
class TokenLosses:
    """Per-token results of one micro-batch; only `loss_N` has a gradient.

    `divergence_N` is NaN where there is no teacher, the gap where the trainer has no value.
    """

    loss_N: Tensor
    ratio_N: Tensor
    clipped_N: Tensor
    tis_N: Tensor
    gap_N: Tensor
    divergence_N: Tensor


def token_losses(
    model: Any, batch: FlatBatch, settings: UpdateSection, forward: Forward
) -> TokenLosses:
    """Return every token's loss, with its weight and corrections but before the division by N."""
    hidden_ND = response_hidden_ND(model, [r.sequence for r in batch.rollouts], forward)
    logprob_N, kept_MK = _student_logprobs(model, hidden_ND, batch, forward)
    old_N = logprob_N.detach() if batch.old_logprob_N is None else batch.old_logprob_N
    own_N = batch.own_correction_N
    gap_N = old_N - batch.sampled_logprob_N
    tis_N = torch.where(own_N, truncated_weight_N(gap_N, settings.tis_clip), 1.0)
    rho_N = ratio_N(logprob_N, old_N)
    grpo_N = grpo_loss_N(
        rho_N, batch.advantage_N, settings.clip_low, settings.clip_high, settings.dual_clip
    )
    sdpo_N = torch.zeros_like(grpo_N)
    found_N = torch.full_like(grpo_N.detach(), torch.nan)
    taught_N = batch.taught_N
    if bool(taught_N.any()):
        value_M = _teacher_loss_M(batch, logprob_N[taught_N], kept_MK, settings, model)
        correction_M = truncated_weight_N((logprob_N - old_N)[taught_N], settings.sdpo_ratio_clip)
        sdpo_N = sdpo_N.masked_scatter(taught_N, batch.weight_M * correction_M * value_M)
        found_N = found_N.masked_scatter(
            taught_N, _divergence_M(batch, logprob_N, value_M, settings)
        )
    by_teacher_N = taught_N & ~batch.mixed_N
    mixed_N = mixed_loss_N(grpo_N, sdpo_N, settings.mix_lambda)
    routed_N = torch.where(by_teacher_N, sdpo_N, torch.where(batch.mixed_N, mixed_N, grpo_N))
    by_clip_N = clipped_N(
        rho_N.detach(),
        batch.advantage_N,
        settings.clip_low,
        settings.clip_high,
        settings.dual_clip,
    )
    capped_N = rho_N.detach() > settings.sdpo_ratio_clip
    return TokenLosses(
        loss_N=tis_N * routed_N,
        ratio_N=rho_N.detach(),
        clipped_N=torch.where(by_teacher_N, capped_N, by_clip_N),
        tis_N=tis_N,
        gap_N=torch.where(own_N, gap_N.abs(), torch.nan),
        divergence_N=found_N,
    )


def _student_logprobs(
    model: Any, hidden_ND: Tensor, batch: FlatBatch, forward: Forward
) -> tuple[Tensor, Tensor]:
    """Return log s of the sampled tokens [N], and of the K stored ids where taught [M, K]."""
    taught_N, targets_N1 = batch.taught_N, batch.targets_N[:, None]
    ids_MJ = torch.cat([targets_N1[taught_N], batch.topk_ids_MK], dim=-1)
    temperature_N = batch.temperature_N
    plain_P1 = train_logprobs(
        model, hidden_ND[~taught_N], targets_N1[~taught_N], temperature_N[~taught_N], forward
    )
    taught_MJ = train_logprobs(model, hidden_ND[taught_N], ids_MJ, temperature_N[taught_N], forward)
    logprob_N = torch.zeros(len(taught_N), dtype=taught_MJ.dtype, device=taught_MJ.device)
    logprob_N = logprob_N.masked_scatter(~taught_N, plain_P1[:, 0])
    logprob_N = logprob_N.masked_scatter(taught_N, taught_MJ[:, 0])
    return logprob_N, taught_MJ[:, 1:]


def _divergence_M(
    batch: FlatBatch, logprob_N: Tensor, value_M: Tensor, settings: UpdateSection
) -> Tensor:
    """Return the divergence to report; of `sampled_token`, whose loss is none, log s - log q."""
    if settings.divergence == "sampled_token":
        return (logprob_N[batch.taught_N] - batch.teacher_logprob_M).detach()
    return value_M.detach()


def _teacher_loss_M(
    batch: FlatBatch, logprob_M: Tensor, kept_MK: Tensor, settings: UpdateSection, model: Any
) -> Tensor:
    """Return the distillation loss of each taught token, before weight and corrections."""
    if settings.divergence == "sampled_token":
        return sampled_token_loss_N(logprob_M, batch.teacher_logprob_M)
    vocabulary = model.get_output_embeddings().weight.shape[0]
    whole = kept_MK.shape[-1] == vocabulary
    log_s_MB = buckets_NB(kept_MK, None if whole else log_tail_N(kept_MK))
    log_q_MB = buckets_NB(batch.teacher_logprobs_MK, None if whole else batch.teacher_tail_M)
    return divergence_N(settings.divergence, log_s_MB, log_q_MB, settings.jsd_alpha)
