"""Floating-point operations of a model's matrix products, and how many a second the machine does.

One multiply-add is two operations. Counted: the weights of the model's `nn.Linear` modules, once
per token. Not counted: attention scores and their values (they grow with the length; at 128 tokens
they are a few percent), norms, activations, softmax, embedding look-ups. So a share of the measured
rate is an underestimate.
"""

import statistics
from time import perf_counter
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from pipeline.machine.phases import clock

TRAINING = 3
"""The cost of forward and backward together, in forward passes."""

_SIZES = {"cpu": 1024, "cuda": 8192}
_SECONDS, _MOST = 0.8, 20
_WEIGHTS: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()


def forward_flops(model: Any, tokens: int) -> float:
    """Return the operations of the body (all layers below the output projection), forward.

    Training takes `TRAINING` times as many. In a mixture of experts, every expert made of
    `nn.Linear` is counted, though a token passes through only a few; experts stacked in one
    parameter are not. Adapters count like any other `nn.Linear`.

    Args:
        model: a causal language model of transformers.
        tokens: positions that pass through the body.
    """
    body = model.get_decoder()
    if body not in _WEIGHTS:
        linear = [m.weight for m in body.modules() if isinstance(m, nn.Linear)]
        _WEIGHTS[body] = sum(weight.numel() for weight in linear)
    return 2.0 * _WEIGHTS[body] * tokens


def projection_flops(model: Any, tokens: int) -> float:
    """Return the operations of the output projection over the vocabulary at `tokens` positions."""
    weights: int = model.get_output_embeddings().weight.numel()
    return 2.0 * weights * tokens


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return the operations per second of square matrix products: a median, in under 1 s.

    A CPU uses the threads that torch is set to now.
    """
    size = _SIZES.get(device.type, 1024)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    end = perf_counter() + _SECONDS
    torch.mm(a, b)
    seconds: list[float] = []
    while len(seconds) < _MOST and (not seconds or perf_counter() < end):
        started = clock()
        torch.mm(a, b)
        seconds.append(clock() - started)
    return float(2 * size**3 / statistics.median(seconds))
