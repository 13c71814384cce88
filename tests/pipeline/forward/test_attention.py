"""Attention by plain products agrees with torch's own, forward and backward."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from pipeline.forward.attention import _by_products, _Products, causal, masked

SHAPES = [(1, 2, 1, 5, 5), (3, 4, 2, 4, 7), (2, 3, 3, 1, 6)]
"""B, H, H_kv, L, S."""


def drawn(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return query, key, value, and which of S keys the last L positions see."""
    batch, heads, of_keys, length, keys = shape
    generator = torch.Generator().manual_seed(0)

    def one(heads: int, length: int) -> Tensor:
        values = torch.randn(batch, heads, length, 8, generator=generator, dtype=torch.float64)
        return values.to(dtype).requires_grad_()

    seen = torch.arange(keys) <= torch.arange(keys - length, keys)[:, None]
    return one(heads, length), one(of_keys, keys), one(of_keys, keys), seen


@pytest.mark.parametrize("shape", SHAPES)
def test_products_in_float64_are_the_formula(shape: tuple[int, ...]) -> None:
    *inputs, seen = drawn(shape, torch.float64)
    mask = torch.zeros(seen.shape, dtype=torch.float64).masked_fill(~seen, -torch.inf)
    found = _Products.apply(*inputs, mask, 0.3)
    expected = scaled_dot_product_attention(*inputs, attn_mask=seen, scale=0.3, enable_gqa=True)
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)
    toward = torch.randn(expected.shape, dtype=torch.float64)
    gradients = [torch.autograd.grad(output, inputs, toward) for output in (found, expected)]
    for ours, theirs in zip(*gradients, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_bfloat16_stays_within_its_rounding(shape: tuple[int, ...]) -> None:
    *inputs, seen = drawn(shape, torch.float32)
    square = shape[3] == shape[4]
    expected = masked(*inputs, seen, None)
    with torch.autocast("cpu", torch.bfloat16):
        found = causal(*inputs, None) if square else masked(*inputs, seen, None)
    assert found.dtype == torch.bfloat16
    toward = torch.randn(expected.shape)
    exact = torch.autograd.grad(expected, inputs, toward)
    rounded = torch.autograd.grad(found, inputs, toward.bfloat16())
    for ours, theirs in zip((found, *rounded), (expected, *exact), strict=True):
        # Inputs, weights and gradients are each rounded to 8 bits: 2^-9 of their size.
        assert float((ours - theirs).detach().norm() / theirs.detach().norm()) < 4 * 2**-9


def test_float32_and_scores_that_are_too_many_are_left_to_torch() -> None:
    query = torch.empty(1, 1, 8192, 1, device="cpu")
    assert not _by_products(query[:, :, :8], query[:, :, :8])
    with torch.autocast("cpu", torch.bfloat16):
        assert _by_products(query[:, :, :8], query)
        assert not _by_products(query, query)
