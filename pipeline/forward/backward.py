"""The gradient of a sum of token losses, with logits that exist a chunk of tokens at a time."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from pipeline.forward.packing import TokenSequence
from pipeline.forward.projection import Head
from pipeline.forward.scoring import Forward, response_hidden_ND
from pipeline.machine.flops import backward_flops, forward_flops, projection_training_flops
from pipeline.machine.phases import phase

T = TypeVar("T")


def add_gradient(
    model: Any,
    sequences: Sequence[TokenSequence],
    forward: Forward,
    chunk_loss: Callable[[Head, Tensor, slice], tuple[Tensor, T]],
) -> list[T]:
    """Add the gradient of one micro-batch's loss to the parameters'; return what chunks report.

    The projection's forward and backward passes take turns, a chunk of tokens at a time, so that
    logits are neither kept nor computed twice; the network's backward pass follows.

    Args:
        chunk_loss: given the projection, the hidden states [n, D] that predict n response tokens,
            and where these are among the [N] of all sequences, returns the loss (a scalar: the
            losses of a pass are summed) and whatever shall be reported.
    """
    positions = forward.tokens(sequences)
    targets = sum(len(sequence.response_ids) for sequence in sequences)
    with phase("forward", positions, forward_flops(model, positions)):
        hidden_ND = response_hidden_ND(model, sequences, forward)
    head = forward.head(model)
    reports, gradients = [], []
    with phase("projection and losses", targets, projection_training_flops(model, targets)):
        for part in head.chunks(targets):
            leaf_ND = hidden_ND.detach()[part].requires_grad_()  # [n, D]: where this graph ends
            loss, report = chunk_loss(head, leaf_ND, part)
            torch.autograd.backward(loss)
            reports.append(report)
            gradients.append(leaf_ND.grad)
    with phase("backward", positions, backward_flops(model, positions)):
        torch.autograd.backward(hidden_ND, torch.cat([g for g in gradients if g is not None]))
    return reports
