"""Chunked, packed scoring against plain transformers forward passes in float64."""

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pipeline.forward.packing import TokenSequence, pack, response_targets_N
from pipeline.forward.projection import Distribution, train_logprobs
from pipeline.forward.scoring import (
    Component,
    Forward,
    response_hidden_ND,
    score_student,
    score_teacher,
)
from pipeline.policy.policy import Policy
from tests.conftest import OpenPolicy

LENGTHS = [(7, 5), (1, 1), (12, 3), (3, 9), (5, 2)]
KEPT = 6


def sequences(seed: int = 0) -> list[TokenSequence]:
    """Return random sequences with prompts and responses of unequal lengths."""
    generator = torch.Generator().manual_seed(seed)

    def draw(length: int) -> list[int]:
        return torch.randint(5, 100, (length,), generator=generator).tolist()

    return [TokenSequence(draw(prompt), draw(response)) for prompt, response in LENGTHS]


def temperatures(batch: Sequence[TokenSequence], *values: float) -> Tensor:
    """Return the temperature of each response token, taking the values in turn by sequence."""
    per_sequence = [[values[i % len(values)]] * len(s.response_ids) for i, s in enumerate(batch)]
    return torch.tensor([t for row in per_sequence for t in row])


def plain_logits(model: Any, sequence: TokenSequence) -> Tensor:
    """Return the logits of one response, from one unpadded float64 forward pass, no cache."""
    wide = copy.deepcopy(model).double()
    ids = torch.tensor([sequence.prompt_ids + sequence.response_ids])
    with torch.no_grad():
        logits = wide(input_ids=ids, use_cache=False).logits[0]
    first = len(sequence.prompt_ids) - 1
    return logits[first : first + len(sequence.response_ids)]


def plain_logprobs(model: Any, batch: Sequence[TokenSequence], temperature_N: Tensor) -> Tensor:
    logits = torch.cat([plain_logits(model, s) for s in batch])
    return (logits / temperature_N[:, None].double()).log_softmax(-1)


def positions(chunk: int) -> float:
    """Return the MiB that hold the float32 logits of so many positions, V = 100."""
    return (chunk + 0.5) * 400 / 2**20


def few(policy: Policy) -> Forward:
    """Return forward passes with the logits of four positions at a time."""
    return policy.forward(positions(4))


def student(policy: Policy, batch: Sequence[TokenSequence], chunk: int = 4) -> Distribution:
    forward = policy.forward(positions(chunk))
    return score_student(policy.model, batch, temperatures(batch, 0.7, 1.3), KEPT, forward)


def close(found: Tensor, expected: Tensor, atol: float) -> None:
    torch.testing.assert_close(found.double(), expected.double(), rtol=0, atol=atol)


def test_student_scores_are_those_of_plain_forward_passes(tiny_policy: OpenPolicy) -> None:
    policy, batch = tiny_policy(), sequences()
    found = student(policy, batch)
    logprobs = plain_logprobs(policy.model, batch, temperatures(batch, 0.7, 1.3))
    targets = torch.tensor([t for s in batch for t in s.response_ids])
    top = logprobs.topk(KEPT)
    close(found.logprob_N, logprobs[torch.arange(len(targets)), targets], 1e-5)
    close(found.entropy_N, -(logprobs.exp() * logprobs).sum(-1), 1e-5)
    assert found.ids_NK.equal(top.indices)
    close(found.logprobs_NK, top.values, 1e-5)
    close(found.log_tail_N, (1 - top.values.exp().sum(-1)).log(), 1e-5)
    assert all(part.dtype == torch.float32 for part in found if part is not found.ids_NK)


def test_the_distributions_of_these_tests_are_neither_flat_nor_sure(
    tiny_policy: OpenPolicy,
) -> None:
    found = student(tiny_policy(), sequences())
    assert 0.1 < float(found.entropy_N.mean()) < 4.0
    assert float(found.entropy_N.std()) > 0.1
    assert float(found.log_tail_N.exp().mean()) > 0.05


@pytest.mark.parametrize("mix", [0.0, 0.05, 1.0])
def test_teacher_scores_mix_logits_before_the_softmax(tiny_policy: OpenPolicy, mix: float) -> None:
    policy, batch = tiny_policy("trust_region", mix=mix), sequences()
    shift(policy)
    temperature_N = temperatures(batch, 0.7, 1.3)
    ids_NK = torch.randint(0, 100, (len(temperature_N), KEPT), generator=torch.Generator())
    components = policy.teacher_components()
    found = score_teacher(components, batch, temperature_N, ids_NK, policy.forward(positions(3)))
    frozen = torch.cat([plain_logits(policy.teacher_model, s) for s in batch])
    live = torch.cat([plain_logits(policy.model, s) for s in batch])
    mixed = (1 - mix) * frozen + mix * live
    logprobs = (mixed / temperature_N[:, None].double()).log_softmax(-1)
    targets = torch.tensor([t for s in batch for t in s.response_ids])
    close(found.logprob_N, logprobs.gather(-1, targets[:, None])[:, 0], 1e-5)
    close(found.entropy_N, -(logprobs.exp() * logprobs).sum(-1), 1e-5)
    close(found.logprobs_NK, logprobs.gather(-1, ids_NK), 1e-5)


def shift(policy: Policy) -> None:
    """Move the live weights away from the teacher's."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def test_the_teachers_tail_is_what_its_ids_leave(tiny_policy: OpenPolicy) -> None:
    policy, batch = tiny_policy(), sequences()
    ids_NK = student(policy, batch).ids_NK
    temperature_N = temperatures(batch, 1.0)
    found = teacher(policy, batch, temperature_N, ids_NK)
    kept = plain_logprobs(policy.model, batch, temperature_N).gather(-1, ids_NK)
    close(found.log_tail_N.exp(), 1 - kept.exp().sum(-1), 1e-6)


def teacher(
    policy: Policy, batch: Sequence[TokenSequence], temperature_N: Tensor, ids_NK: Tensor
) -> Distribution:
    return score_teacher([Component(policy.model, 1.0)], batch, temperature_N, ids_NK, few(policy))


def test_keeping_the_whole_vocabulary_leaves_no_tail(tiny_policy: OpenPolicy) -> None:
    policy, batch = tiny_policy(), sequences()
    temperature_N = temperatures(batch, 1.0)
    found = score_student(policy.model, batch, temperature_N, 100, few(policy))
    assert (found.log_tail_N == -torch.inf).all()
    close(found.logprobs_NK.exp().sum(-1), torch.ones(len(temperature_N)), 1e-6)
    seen = teacher(policy, batch, temperature_N, found.ids_NK)
    assert (seen.log_tail_N == -torch.inf).all()
    close(seen.logprobs_NK, found.logprobs_NK, 1e-6)


@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_chunks_do_not_matter(tiny_policy: OpenPolicy, chunk: int) -> None:
    policy, batch = tiny_policy(), sequences()
    expect_equal(student(policy, batch, chunk), student(policy, batch, 4))


def expect_equal(found: Distribution, expected: Distribution) -> None:
    """Expect the same ids and, to float32's precision at values of some nats, the same numbers."""
    assert found.ids_NK.equal(expected.ids_NK)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-6)


def test_packing_and_padding_do_not_matter(tiny_policy: OpenPolicy) -> None:
    """Each sequence by itself, without any padding, scores as in one padded batch."""
    policy, batch = tiny_policy(), sequences()
    together = score_student(policy.model, batch, temperatures(batch, 0.7), KEPT, few(policy))
    alone = [
        score_student(policy.model, [s], temperatures([s], 0.7), KEPT, few(policy)) for s in batch
    ]
    columns = [torch.cat(column) for column in zip(*alone, strict=True)]
    expect_equal(Distribution(*columns), together)


def test_a_long_neighbour_does_not_matter(tiny_policy: OpenPolicy) -> None:
    policy, batch = tiny_policy(), sequences()
    count = sum(len(s.response_ids) for s in batch)
    long = TokenSequence(list(range(5, 95)) * 3, [7])
    with_it = score_student(
        policy.model,
        [*batch, long],
        temperatures([*batch, long], 0.7),
        KEPT,
        few(policy),
    )
    without = score_student(policy.model, batch, temperatures(batch, 0.7), KEPT, few(policy))
    expect_equal(Distribution(*[column[:count] for column in with_it]), without)


def test_order_does_not_matter(tiny_policy: OpenPolicy) -> None:
    policy, batch = tiny_policy(), sequences()
    order = [3, 0, 4, 2, 1]
    turned = [batch[i] for i in order]
    there = score_student(policy.model, batch, temperatures(batch, 0.7), KEPT, few(policy))
    back = score_student(policy.model, turned, temperatures(turned, 0.7), KEPT, few(policy))
    lengths = [len(s.response_ids) for s in batch]
    for mine, theirs in zip(there, back, strict=True):
        parts = theirs.split([lengths[i] for i in order])
        restored = torch.cat([parts[order.index(i)] for i in range(len(batch))])
        torch.testing.assert_close(restored, mine, rtol=1e-6, atol=1e-6)


def test_empty_responses_among_others_have_no_rows(tiny_policy: OpenPolicy) -> None:
    policy, batch = tiny_policy(), sequences()
    empty = TokenSequence([5, 6, 7], [])
    found = student(policy, [empty, *batch, empty])
    temperature_N = temperatures([empty, *batch, empty], 0.7, 1.3)
    expected = score_student(policy.model, batch, temperature_N, KEPT, few(policy))
    expect_equal(found, expected)


def test_nothing_but_empty_responses(tiny_policy: OpenPolicy) -> None:
    policy, batch = tiny_policy(), [TokenSequence([5, 6, 7], [])]
    found = student(policy, batch)
    assert [len(column) for column in found] == [0] * 5
    assert found.ids_NK.shape == (0, KEPT)
    seen = teacher(policy, batch, torch.zeros(0), found.ids_NK)
    assert [len(column) for column in seen] == [0] * 5


def test_targets_are_the_responses_in_a_row() -> None:
    batch = [TokenSequence([1], [2, 3]), TokenSequence([4], []), TokenSequence([5], [6])]
    assert response_targets_N(batch, torch.device("cpu")).tolist() == [2, 3, 6]


# --- with gradients --------------------------------------------------------------------------


def naive_logprobs(
    model: Any, batch: Sequence[TokenSequence], ids_NJ: Tensor, temperature_N: Tensor
) -> Tensor:
    rows = []
    for prompt, response in batch:
        logits = model(input_ids=torch.tensor([prompt + response]), use_cache=False).logits[0]
        rows.append(logits[len(prompt) - 1 : len(prompt) + len(response) - 1])
    return (torch.cat(rows) / temperature_N[:, None]).log_softmax(-1).gather(-1, ids_NJ)


def gradient(model: Any, logprobs_NJ: Tensor) -> Tensor:
    """Return the gradient of a fixed, uneven combination, all parameters in a row."""
    generator = torch.Generator().manual_seed(3)
    weights = torch.randn(logprobs_NJ.shape, generator=generator, dtype=logprobs_NJ.dtype)
    grads = torch.autograd.grad((weights * logprobs_NJ).sum(), list(model.parameters()))
    return torch.cat([g.flatten() for g in grads])


@pytest.mark.parametrize("chunk", [1, 4, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shares", [True, False])
def test_train_logprobs_and_their_gradient_are_the_naive_ones(
    tiny_policy: OpenPolicy, chunk: int, dtype: torch.dtype, shares: bool
) -> None:
    model, batch = tiny_policy().model.to(dtype), sequences()
    forward = Forward(torch.device("cpu"), False, shares, positions(chunk))
    temperature_N = temperatures(batch, 0.7, 1.3).to(dtype)
    generator = torch.Generator().manual_seed(0)
    ids_NK = torch.stack(
        [torch.randperm(100, generator=generator)[:3] for _ in range(len(temperature_N))]
    )
    targets_N = response_targets_N(batch, torch.device("cpu"))
    ids_NK[::2, 0] = targets_N[::2]  # a target may be among the kept ids
    hidden_ND, head = response_hidden_ND(model, batch, forward), forward.head(model)
    parts = []
    for part in head.chunks(len(targets_N)):
        every = torch.arange(len(targets_N[part]))
        logprob_N, kept_NK = train_logprobs(
            head, hidden_ND[part], targets_N[part], temperature_N[part], every, ids_NK[part]
        )
        parts.append(torch.cat([logprob_N[:, None], kept_NK], dim=-1))
    assert len(parts) > 1 or chunk == 1000
    ours = torch.cat(parts)
    naive = naive_logprobs(model, batch, torch.cat([targets_N[:, None], ids_NK], -1), temperature_N)
    assert ours.dtype == dtype
    close(ours.detach(), naive.detach(), 1e-5)
    expected = gradient(model, naive)
    gap = (gradient(model, ours) - expected).norm() / expected.norm()
    assert float(gap) < 1e-6


def test_train_logprobs_of_nothing(tiny_policy: OpenPolicy) -> None:
    head = tiny_policy().forward(1.0).head(tiny_policy().model)
    hidden_ND = torch.zeros(0, 16, requires_grad=True)
    none = torch.zeros(0, dtype=torch.long)
    logprob_N, kept_MK = train_logprobs(
        head, hidden_ND, none, torch.zeros(0), none, torch.zeros(0, 3, dtype=torch.long)
    )
    assert (logprob_N.shape, kept_MK.shape) == ((0,), (0, 3))
    assert logprob_N.dtype == torch.float32


def test_autocast_keeps_the_softmax_in_float32(tiny_policy: OpenPolicy) -> None:
    policy, batch = tiny_policy(precision="bfloat16"), sequences()
    found, exact = student(policy, batch), student(tiny_policy(), batch)
    assert found.logprob_N.dtype == torch.float32
    assert 1e-6 < float((found.entropy_N - exact.entropy_N).abs().max()) < 0.3
    close(found.logprobs_NK.exp().sum(-1) + found.log_tail_N.exp(), torch.ones(20), 1e-5)


# --- packing ---------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 50), max_size=40), st.integers(1, 120))
def test_packs_hold_every_index_once_within_the_budget(lengths: list[int], budget: int) -> None:
    groups = pack(lengths, budget)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    for group in groups:
        padded = max(lengths[i] for i in group) * len(group)
        assert padded <= budget or len(group) == 1


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 120))
def test_packs_are_longest_first_and_stable(lengths: list[int], budget: int) -> None:
    order = [i for group in pack(lengths, budget) for i in group]
    assert order == sorted(order, key=lambda i: (-lengths[i], i))


def test_packs_by_hand() -> None:
    # Longest first: 6 | 4 4 | 4 1 1, each at most 9 when padded (4 + 4 + 4 = 12 is too much).
    assert pack([1, 4, 6, 4, 1, 4], 9) == [[2], [1, 3], [5, 0], [4]]
    assert pack([10], 9) == [[0]]
    assert pack([], 9) == []
