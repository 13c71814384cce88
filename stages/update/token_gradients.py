"""What a loss does to each token: the gradient of L with respect to the logits at its position.

With x_t the policy's V logits at the position of token y_t, before the temperature tau, s the
softmax of x_t / tau, and g_t = dL/dx_t (docs/method.md, section 8):

    size_t = |g_t|_2
    push_t = -<g_t, d log s(y_t) / dx_t> = (<s, g_t> - g_t(y_t)) / tau

A step of length e along -g_t changes log s(y_t) by e push_t + O(e^2): push_t > 0 makes the sampled
token likelier, push_t < 0 less likely. What the step at one position does to others, through the
weights that all share, is in neither.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.config.sections import UpdateSection
from pipeline.forward.projection import logits_NV
from pipeline.forward.scoring import response_hidden_ND
from pipeline.policy.policy import Policy
from stages.update.batch import FlatBatch, Rollout, flatten
from stages.update.objective import losses_of


class TokenGradients(NamedTuple):
    """Of each token: its part of L, and what its gradient does, float64 [N].

    Attributes:
        loss_N: token loss / N; the sum over a mini-batch is L.
        size_N: length of the logits' gradient.
        push_N: rate at which log s(y_t) grows along the negative gradient.
    """

    loss_N: Tensor
    size_N: Tensor
    push_N: Tensor


def token_gradients(
    policy: Policy, rollouts: Sequence[Rollout], kept: int, settings: UpdateSection
) -> dict[str, TokenGradients]:
    """Return what L over one mini-batch does to the tokens of each rollout that has a gradient.

    Parameters and their gradients stay as they are.
    """
    tokens = sum(r.tokens for r in rollouts if r.route != "none")
    computed = [r for r in rollouts if r.computed]
    forward = policy.forward(settings.projection_mb)
    found = {}
    with policy.passing():
        for members in forward.batches([r.sequence for r in computed], settings.micro_batch_tokens):
            batch = flatten([computed[i] for i in members], kept, policy.device)
            sequences = [r.sequence for r in batch.rollouts]
            with torch.no_grad():
                hidden_ND = response_hidden_ND(policy.model, sequences, forward)
            head = forward.head(policy.model)
            parts = [
                logit_gradients(
                    logits_NV(head, hidden_ND[part]), batch.narrow(part), tokens, settings
                )
                for part in head.chunks(len(batch.targets_N))
            ]
            whole = TokenGradients(
                *[torch.cat(column).cpu() for column in zip(*parts, strict=True)]
            )
            for rollout, own in zip(batch.rollouts, batch.slices(), strict=True):
                found[rollout.rollout_id] = TokenGradients(*[column[own] for column in whole])
    return found


def logit_gradients(
    logits: Tensor, batch: FlatBatch, tokens: int, settings: UpdateSection
) -> TokenGradients:
    """Return what the loss of some consecutive tokens does to each of them.

    Args:
        logits: [n, V], before the temperature.
        batch: these n tokens.
        tokens: N of the mini-batch.
    """
    x_NV = logits.detach().requires_grad_()
    temperature_N = batch.temperature_N.to(x_NV.dtype)
    log_s_NV = torch.log_softmax(x_NV / temperature_N[:, None], dim=-1)
    logprob_N = log_s_NV.gather(1, batch.targets_N[:, None])[:, 0]
    taught_M = batch.taught_N.nonzero()[:, 0]
    kept_MK = log_s_NV[taught_M[:, None], batch.topk_ids_MK]
    loss_N = losses_of(logprob_N, kept_MK, log_s_NV.shape[1], batch, settings).loss_N / tokens
    (g_NV,) = torch.autograd.grad(loss_N.sum(), x_NV)
    with torch.no_grad():
        at_sampled_N = g_NV.gather(1, batch.targets_N[:, None])[:, 0].double()
        expected_N = (log_s_NV.exp_() * g_NV).sum(1, dtype=torch.float64)
        return TokenGradients(
            loss_N.detach().double(),
            torch.linalg.vector_norm(g_NV, dim=1, dtype=torch.float64),
            (expected_N - at_sampled_N) / temperature_N,
        )
