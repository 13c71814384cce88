"""The gradient's norm in float64, by hand and where float32 fails, and clipping by it."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from stages.update.clipping import clip_gradients, gradient_dot, gradient_norm


def parameters(*gradients: list[float]) -> list[Tensor]:
    made = [torch.zeros(len(values), requires_grad=True) for values in gradients]
    for parameter, values in zip(made, gradients, strict=True):
        parameter.grad = torch.tensor(values)
    return made


def test_the_norm_is_one_over_all_parameters() -> None:
    # 3, 4 and 12: 9 + 16 + 144 = 169
    assert gradient_norm([torch.tensor([3.0, 4.0]), torch.tensor([[12.0]])]) == 13.0
    assert gradient_norm([]) == gradient_norm([torch.empty(0)]) == 0.0


def test_small_entries_after_a_large_one_count() -> None:
    # In float32, 1 + 1e-8 is 1 however often it is added: 10^6 squares of 1e-4 make 0.01.
    entries = torch.full((1_000_001,), 1e-4)
    entries[0] = 1.0
    exact = math.sqrt(1 + 1e6 * float(np.float32(1e-4)) ** 2)
    assert gradient_norm([entries]) == pytest.approx(exact, rel=1e-12)


def test_many_entries_have_the_norm_that_torch_misses() -> None:
    entries = torch.full((20_000_000,), 1e-3)
    exact = math.sqrt(2e7) * float(np.float32(1e-3))
    assert gradient_norm([entries]) == pytest.approx(exact, rel=1e-12)


def test_squares_beyond_float32_are_finite() -> None:
    assert gradient_norm([torch.tensor([3e30, 4e30])]) == pytest.approx(5e30, rel=1e-6)


def test_the_inner_product_is_one_over_all_parameters() -> None:
    left = [torch.tensor([3.0, 4.0]), torch.tensor([[12.0]])]
    assert gradient_dot(left, left) == 169.0 == gradient_norm(left) ** 2
    assert gradient_dot(left, [torch.tensor([4.0, -3.0]), torch.tensor([[0.0]])]) == 0.0
    assert gradient_dot(left, [torch.tensor([1.0, 2.0]), torch.tensor([[-1.0]])]) == -1.0
    assert gradient_dot([], []) == 0.0
    with pytest.raises(ValueError, match="zip"):
        gradient_dot(left, left[:1])


def test_small_products_after_a_large_one_count() -> None:
    entries = torch.full((1_000_001,), 1e-4)
    entries[0] = 1.0
    exact = 1 + 1e6 * float(np.float32(1e-4)) ** 2
    assert gradient_dot([entries], [entries]) == pytest.approx(exact, rel=1e-12)


def test_what_is_not_contiguous_counts_once() -> None:
    entries = torch.arange(12.0).reshape(3, 4)
    assert gradient_norm([entries.T]) == pytest.approx(math.sqrt(506))  # 0 + 1 + 4 + … + 121


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=50), st.floats(1e-3, 1e4))
def test_clipped_gradients_keep_their_direction(values: list[float], limit: float) -> None:
    (parameter,) = parameters(values)
    before = torch.tensor(values, dtype=torch.float64)
    norm = clip_gradients([parameter], limit)
    assert norm == pytest.approx(float(before.norm()), rel=1e-9, abs=1e-12)
    assert parameter.grad is not None
    scale = min(1.0, limit / (norm + 1e-6))
    assert torch.allclose(parameter.grad.double(), scale * before, rtol=1e-6, atol=1e-12)
    assert float(parameter.grad.double().norm()) <= limit * (1 + 1e-6)


def test_a_norm_within_the_limit_changes_no_bit() -> None:
    made = parameters([0.3, 0.4], [0.1])
    before = [p.grad.clone() for p in made if p.grad is not None]
    clip_gradients(made, 1.0)
    assert all(torch.equal(p.grad, b) for p, b in zip(made, before, strict=True))


@pytest.mark.parametrize("broken", [math.inf, math.nan])
def test_a_norm_that_is_not_finite_scales_nothing(broken: float) -> None:
    made = parameters([1.0, broken])
    assert not math.isfinite(clip_gradients(made, 1.0))
    assert made[0].grad is not None
    assert float(made[0].grad[0]) == 1.0


def test_a_parameter_without_a_gradient_is_no_obstacle() -> None:
    idle = torch.zeros(3, requires_grad=True)
    assert clip_gradients([idle, *parameters([3.0, 4.0])], 1.0) == 5.0
