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

_SIZES = {"cpu": 1024, "cuda": 8192}
_SECONDS, _MOST = 0.8, 20
_WEIGHTS: WeakKeyDictionary[nn.Module, tuple[int, int]] = WeakKeyDictionary()
"""Of a body: the entries of its matrices, and of those that have gradients."""


def forward_flops(model: Any, tokens: int) -> float:
    """Return the operations of the body (all layers below the output projection), forward.

    In a mixture of experts, every expert made of `nn.Linear` is counted, though a token passes
    through only a few; experts stacked in one parameter are not. Adapters count, as two matrices.

    Args:
        model: a causal language model of transformers.
        tokens: positions that pass through the body.
    """
    return 2.0 * _matrices(model.get_decoder())[0] * tokens


def backward_flops(model: Any, tokens: int) -> float:
    """Return the operations of the body's backward pass: input gradients, and trained weights'.

    A frozen matrix has no gradient of its own, which is half of its backward pass.
    """
    return 2.0 * sum(_matrices(model.get_decoder())) * tokens


def projection_flops(model: Any, tokens: int) -> float:
    """Return the operations of the output projection over the vocabulary at `tokens` positions."""
    weights: int = model.get_output_embeddings().weight.numel()
    return 2.0 * weights * tokens


def projection_training_flops(model: Any, tokens: int) -> float:
    """Return those of its forward and backward passes together."""
    trained: bool = model.get_output_embeddings().weight.requires_grad
    return (3 if trained else 2) * projection_flops(model, tokens)


def _matrices(body: Any) -> tuple[int, int]:
    """Return the entries of a body's matrices, and of those that have gradients."""
    if body not in _WEIGHTS:
        matrices = [
            parameter
            for module in body.modules()
            if isinstance(module, nn.Linear)
            for parameter in module.parameters(recurse=False)
            if parameter.dim() == 2
        ]
        trained = [parameter for parameter in matrices if parameter.requires_grad]
        _WEIGHTS[body] = (sum(m.numel() for m in matrices), sum(m.numel() for m in trained))
    return _WEIGHTS[body]


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
