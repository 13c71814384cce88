"""The output projection: what is kept of logits, and gradients without keeping them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pipeline.forward.projection import (
    Head,
    _likeliest,
    describe,
    logits_NV,
    train_logprobs,
)

D, V, K = 7, 90, 5


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


class Problem:
    """A projection with 12 positions, 8 of them taught, and what autograd makes of it."""

    def __init__(self, biased: bool) -> None:
        self.hidden, self.weight = random(12, D), random(V, D, seed=1)
        self.bias = random(V, seed=2) if biased else None
        self.temperature = torch.tensor([1.0, 0.7, 1.3] * 4, dtype=torch.float64)
        self.taught = torch.tensor([0, 1, 2, 5, 6, 7, 10, 11])
        ids = [torch.randperm(V, generator=torch.Generator().manual_seed(i))[:K] for i in range(8)]
        self.ids = torch.stack(ids)
        self.targets = torch.arange(12) * 7 % V
        self.targets[self.taught[::2]] = self.ids[::2, 1]  # a target may be among the kept ids
        self.leaves = [t for t in (self.hidden, self.weight, self.bias) if t is not None]

    def ours(self) -> tuple[Tensor, Tensor]:
        head = Head(self.weight, self.bias, bfloat16=False, megabytes=1)
        return train_logprobs(
            head, self.hidden, self.targets, self.temperature, self.taught, self.ids
        )

    def naive(self) -> tuple[Tensor, Tensor]:
        logits = self.hidden @ self.weight.T
        logits = logits if self.bias is None else logits + self.bias
        logprobs = (logits / self.temperature[:, None]).log_softmax(-1)
        return (
            logprobs.gather(1, self.targets[:, None])[:, 0],
            logprobs[self.taught].gather(1, self.ids),
        )

    def gradients(self, found: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        total = (found[0] * random(12, seed=3)).sum() + (found[1] * random(8, K, seed=4)).sum()
        return torch.autograd.grad(total, self.leaves)


@pytest.mark.parametrize("biased", [False, True])
def test_values_and_gradients_are_autograds(biased: bool) -> None:
    problem = Problem(biased)
    for leaf in problem.leaves:
        leaf.requires_grad_()
    ours, naive = problem.ours(), problem.naive()
    for mine, theirs in zip(ours, naive, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)
    for mine, theirs in zip(problem.gradients(ours), problem.gradients(naive), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


def test_a_second_backward_pass_is_refused() -> None:
    problem = Problem(biased=False)
    problem.hidden.requires_grad_()
    logprob_N, _ = problem.ours()
    logprob_N.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        logprob_N.sum().backward()


def test_chunks_fill_the_memory_evenly() -> None:
    head = Head(torch.zeros(1000, 4), None, bfloat16=False, megabytes=0.04)  # 10 positions
    assert [p.stop - p.start for p in head.chunks(21)] == [7, 7, 7]
    assert [p.stop - p.start for p in head.chunks(10)] == [10]
    assert [p.stop - p.start for p in head.chunks(0)] == [0]
    tight = Head(torch.zeros(1000, 4), None, bfloat16=False, megabytes=1e-9)
    assert [p.stop - p.start for p in tight.chunks(2)] == [1, 1]


@given(st.integers(0, 10**6), st.integers(1, 300), st.integers(1, 60), st.booleans())
def test_the_likeliest_are_those_of_a_full_search(
    seed: int, vocabulary: int, kept: int, ties: bool
) -> None:
    kept = min(kept, vocabulary)
    x = random(3, vocabulary * 8, seed=seed).float()
    x = (x * 3).round() if ties else x
    values, ids = _likeliest(x, kept)
    assert values.equal(x.topk(kept).values)
    assert values.equal(x.gather(1, ids))
    assert all(len(set(row)) == kept for row in ids.tolist())


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_a_large_vocabulary_is_described_to_float32s_precision(scale: float) -> None:
    logits = scale * random(2, 150_000)
    targets, temperature = torch.tensor([3, 149_999]), torch.tensor([0.7, 1.0])
    found = describe(logits.float(), targets, temperature, 20)
    exact = (logits.float().double() / temperature[:, None].double()).log_softmax(-1)
    top = exact.topk(20)
    # Logits near 200 divided by 0.7 are known to 1.5e-5, the spacing of float32 there.
    close = {"rtol": 1e-6, "atol": 4e-6 if scale <= 1 else 2e-5}
    assert found.ids_NK.equal(top.indices)
    torch.testing.assert_close(found.logprobs_NK.double(), top.values, **close)
    torch.testing.assert_close(
        found.logprob_N.double(), exact.gather(1, targets[:, None])[:, 0], **close
    )
    entropy = -(exact.exp() * exact).sum(-1)
    torch.testing.assert_close(found.entropy_N.double(), entropy, **close)
    tail = (-top.values.exp().sum(-1)).log1p()
    if scale <= 1:  # at 30 the tail is below the mass of 1e-7 that it is capped at
        torch.testing.assert_close(found.log_tail_N.double(), tail, rtol=1e-4, atol=1e-5)


def test_tokens_of_no_probability_and_logits_that_are_no_numbers() -> None:
    logits = torch.tensor([[0.0, -torch.inf, 0.0], [0.0, torch.nan, 0.0]])
    found = describe(logits, torch.tensor([0, 0]), torch.ones(2), 2)
    assert found.entropy_N[0] == pytest.approx(0.6931472)
    assert found.logprob_N[0] == pytest.approx(-0.6931472)
    assert found.logprob_N[1].isnan()  # what scoring looks at, to stop the run


def test_bfloat16_only_multiplies() -> None:
    head = Head(random(V, D, seed=1).float(), None, bfloat16=True, megabytes=1)
    found = logits_NV(head, random(4, D).float())
    exact = random(4, D) @ random(V, D, seed=1).T
    assert found.dtype == torch.float32
    assert 1e-4 < float((found - exact).abs().max()) < 0.1
