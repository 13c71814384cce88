"""The warm start's loss: cross-entropy of the solutions' tokens, one denominator for a step.

L = -(sum of log pi(token) over all response tokens of the step's examples) / N, with N the number
of these tokens, stop tokens included: one number for all micro-batches, as in docs/method.md,
section 8. Temperature 1.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.config.sections import Config
from pipeline.errors import NumericalError
from pipeline.forward.backward import add_gradient
from pipeline.forward.packing import TokenSequence, response_targets_N
from pipeline.forward.projection import Head, train_logprobs
from pipeline.policy.policy import Policy
from stages.update.stage import set_hyperparameters, take_step


class StepResult(NamedTuple):
    """One optimizer step.

    Attributes:
        loss: L, nats per token, by the weights before the step.
        tokens: its N.
        grad_norm: before clipping.
    """

    loss: float
    tokens: int
    grad_norm: float


def learn_step(
    policy: Policy, sequences: Sequence[TokenSequence], config: Config, version: str
) -> StepResult:
    """Make one AdamW step on worked solutions; the policy has `version` then.

    Raises:
        NumericalError: loss or gradient is not finite; the policy is unusable then.
    """
    section = config.warmstart
    numbers = {"learning_rate": section.learning_rate, "warmup_steps": 0}
    set_hyperparameters(policy.optimizer, config.update.model_copy(update=numbers), 0)
    policy.begin_update()
    loss = accumulate_gradient(
        policy, sequences, section.micro_batch_tokens, config.update.projection_mb
    )
    norm = take_step(policy, config.update.max_grad_norm, "the step's worked solutions")
    policy.finish_update(version)
    return StepResult(loss, sum(len(s.response_ids) for s in sequences), norm)


def accumulate_gradient(
    policy: Policy, sequences: Sequence[TokenSequence], budget: int, megabytes: float
) -> float:
    """Set each trained parameter's gradient to that of L over all sequences; return L.

    Args:
        budget: tokens of one forward and backward pass at most.
        megabytes: memory for logits.
    """
    for parameter in policy.trainable().values():
        parameter.grad = torch.zeros_like(parameter)
    forward, total = policy.forward(megabytes), 0.0
    tokens = sum(len(sequence.response_ids) for sequence in sequences)
    with policy.passing():
        for members in forward.batches(sequences, budget):
            batch = [sequences[index] for index in members]
            chunk_loss = _chunk_loss(response_targets_N(batch, policy.device), tokens)
            total += sum(add_gradient(policy.model, batch, forward, chunk_loss))
    if not math.isfinite(total):
        raise NumericalError(f"the loss of the step's worked solutions is {total / tokens}")
    return total / tokens


def _chunk_loss(targets_N: Tensor, tokens: int) -> Callable[..., tuple[Tensor, float]]:
    """Return what `add_gradient` asks for: a chunk's part of L, and the sum of its token losses."""

    def chunk_loss(head: Head, hidden_ND: Tensor, part: slice) -> tuple[Tensor, float]:
        loss_N = cross_entropy_N(head, hidden_ND, targets_N[part])
        return loss_N.sum() / tokens, float(loss_N.detach().double().sum())

    return chunk_loss


def cross_entropy_N(head: Head, hidden_ND: Tensor, targets_N: Tensor) -> Tensor:
    """Return -log pi of each target, nats, with gradient."""
    count = len(targets_N)
    nobody = targets_N.new_zeros(0)  # no position has a teacher, whose K ids are wanted too
    ones_N = torch.ones(count, device=targets_N.device)
    logprob_N, _ = train_logprobs(head, hidden_ND, targets_N, ones_N, nobody, nobody.reshape(0, 1))
    return -logprob_N
