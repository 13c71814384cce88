"""The gradient's norm and inner product, in float64, and clipping (docs/method.md, section 8).

torch sums a norm on a CPU in float32, one entry after the other in a few lanes: the sum stops
growing while entries are still to come. Measured: 3.6e-5 low for 135M parameters, 2.5% low for an
embedding of 200M entries, 12% low for one of 622M (Qwen3-8B).
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from pipeline.distributed.ranks import exchanged, rank
from pipeline.distributed.sharding import is_spread, local

_ON_CPU, _ON_GPU = 2**14, 2**24
"""Entries that are float64 at a time: what fits a processor's cache, and few kernels on a GPU."""
_FLOOR = 1e-6
"""What torch adds to the norm, so that a norm of 0 divides nothing by 0."""


@torch.no_grad()
def clip_gradients(parameters: Iterable[Tensor], limit: float) -> float:
    """Scale the gradients so that their joint norm is at most `limit`; return the norm before.

    g <- g min(1, limit / (norm + 1e-6)), with one norm for all parameters on all ranks; every rank
    must call it. Gradients whose norm is not finite stay as they are.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = gradient_norm(gradients)
    scale = limit / (norm + _FLOOR)
    if math.isfinite(norm) and scale < 1:
        for gradient in gradients:
            local(gradient).mul_(scale)
    return norm


@torch.no_grad()
def gradient_norm(gradients: Iterable[Tensor]) -> float:
    """Return the Euclidean norm of all gradients together, summed in float64; exchanges sums.

    Of a gradient that ranks share, each adds its own part; one that every rank holds whole counts
    once.
    """
    own = [local(g) for g in gradients if is_spread(g) or rank() == 0]
    return math.sqrt(sum(exchanged(_squares(own))))


@torch.no_grad()
def gradient_dot(left: Iterable[Tensor], right: Iterable[Tensor]) -> float:
    """Return the inner product of two whole gradients, summed in float64."""
    sums: list[Tensor] = []
    for ours, theirs in zip(left, right, strict=True):
        chunk = _ON_GPU if ours.is_cuda else _ON_CPU
        parts = (torch.split(tensor.reshape(-1), chunk) for tensor in (ours, theirs))
        sums += [(a.double() * b.double()).sum() for a, b in zip(*parts, strict=True)]
    return float(torch.stack(sums).sum()) if sums else 0.0


def _squares(tensors: Iterable[Tensor]) -> float:
    """Return the sum of all squares. One number leaves the device, at the end."""
    sums: list[Tensor] = []
    for tensor in tensors:
        chunk = _ON_GPU if tensor.is_cuda else _ON_CPU
        sums += [part.double().square_().sum() for part in torch.split(tensor.reshape(-1), chunk)]
    return float(torch.stack(sums).sum()) if sums else 0.0
