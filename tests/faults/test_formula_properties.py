"""The method's formulas in float32 against float64 written out here, at their ranges' ends."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from pipeline.forward.distributions import buckets_NC, cool_, entropy_N, log_tail_N
from pipeline.methods import Method
from stages.route.decisions import demonstrating_sibling, group_statistics, route_of
from stages.update.losses import (
    divergence_N,
    engine_kl_N,
    grpo_loss_N,
    mixed_loss_N,
    ratio_N,
    truncated_weight_N,
)
from stages.weigh import log_raw_weights_N, normalised_weights_N

FLOAT32 = 3e-6
"""Relative error that a handful of float32 operations may make."""

METHODS: tuple[Method, ...] = (
    "srpo", "grpo", "sdpo", "sdpo_incorrect_only", "sdpo_correct_only", "advantage_mix",
    "rlsd",
)  # fmt: skip
LOGPROBS = st.one_of(st.floats(-30, 0, width=32), st.floats(-1e4, 0, width=32))
LOGITS = st.one_of(
    st.floats(-10, 10, width=32),
    st.floats(-200, 200, width=32),
    st.floats(-(2.0**99), 2.0**99, width=32),
)
VOCABULARIES = st.integers(2, 40)
REWARDS = st.lists(
    st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1, width=32)), min_size=2, max_size=64
)


def row(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


def log_softmax(logits: Sequence[float], temperature: float) -> Tensor:
    """Of a list of float32 numbers, in float64."""
    return (torch.tensor(logits, dtype=torch.float64) / temperature).log_softmax(-1)


def naive_entropy(logp: Tensor) -> float:
    return sum(-math.exp(value) * value for value in logp.tolist())


@given(st.lists(LOGITS, min_size=2, max_size=40), st.sampled_from([0.25, 0.6, 1.0, 4.0]))
@example([0.0] * 40, 1.0)
@example([1e30, -1e30], 1.0)
@example([0.0, 0.0], 0.25)
def test_entropy_at_every_sharpness(logits: list[float], temperature: float) -> None:
    cooled = row(logits)[None].clone()
    cool_(cooled, row([temperature]))
    found = float(entropy_N(cooled, cooled.exp()))
    wanted = naive_entropy(log_softmax(logits, temperature))
    spread = max(logits) - min(logits)
    allowed = FLOAT32 * (1 + min(spread / temperature, 100.0))
    assert found == pytest.approx(wanted, abs=allowed)
    assert -1e-6 <= found <= math.log(len(logits)) + 1e-5


@given(st.lists(LOGITS, min_size=3, max_size=40), st.data())
def test_tails_are_no_nan_and_never_empty(logits: list[float], data: st.DataObject) -> None:
    kept = data.draw(st.integers(1, len(logits) - 1))
    logp = log_softmax(logits, 1.0)
    order = logp.argsort(descending=True)
    found = float(log_tail_N(logp[order[:kept]][None].float()))
    mass = max(float(logp[order[kept:]].exp().sum()), 1e-7)
    assert math.log(1e-7) - 1e-3 <= found <= 0
    # One float32 step of the kept mass, 6e-8, is what the rest can't be known better than.
    assert math.exp(found) == pytest.approx(mass, rel=1e-5, abs=4e-7)


def naive_divergence(kind: str, s: Sequence[float], q: Sequence[float], alpha: float) -> float:
    """Over buckets of log-probabilities in float64; 0 log 0 = 0."""

    def kl(a: Sequence[float], b: Sequence[float]) -> float:
        return sum(math.exp(x) * (x - y) for x, y in zip(a, b, strict=True) if math.exp(x) > 0)

    if kind == "forward_kl":
        return kl(q, s)
    if kind == "reverse_kl":
        return kl(s, q)
    m = [
        float(np.logaddexp(math.log(1 - alpha) + x, math.log(alpha) + y))
        for x, y in zip(s, q, strict=True)
    ]
    return (1 - alpha) * kl(s, m) + alpha * kl(q, m)


@pytest.mark.parametrize("kind", ["jsd", "forward_kl", "reverse_kl"])
@given(size=VOCABULARIES, alpha=st.sampled_from([0.01, 0.5, 0.99]), data=st.data())
def test_divergences_with_and_without_a_tail(
    kind: str, size: int, alpha: float, data: st.DataObject
) -> None:
    kept = data.draw(st.integers(1, size), label="K")
    logits = [data.draw(st.lists(LOGITS, min_size=size, max_size=size)) for _ in range(2)]
    both = torch.stack([log_softmax(values, 1.0) for values in logits]).float()
    ids = both[0].topk(kept).indices
    s, q = (part[ids][None] for part in both)
    s_C = buckets_NC(s, None if kept == size else log_tail_N(s)).requires_grad_()
    q_C = buckets_NC(q, None if kept == size else log_tail_N(q))
    found = divergence_N(kind, s_C, q_C, alpha)  # type: ignore[arg-type]
    wanted = naive_divergence(kind, s_C[0].tolist(), q_C[0].tolist(), alpha)
    largest = float((s_C - q_C).detach().abs().max())
    value = float(found.detach())
    assert value >= 0
    assert value == pytest.approx(max(wanted, 0), rel=1e-5, abs=1e-6 * (1 + largest))
    found.backward()
    assert s_C.grad is not None and bool(s_C.grad.isfinite().all())


@given(LOGPROBS, LOGPROBS, st.floats(-8, 8, width=32), st.sampled_from([None, 1.5, 3.0]))
@example(0.0, -1e4, -1.0, None)
@example(-1e4, 0.0, 1.0, 3.0)
@example(0.0, -1e4, 8.0, 3.0)
def test_the_clipped_surrogate(
    new: float, old: float, advantage: float, dual_clip: float | None
) -> None:
    logprob = row([new]).requires_grad_()
    rho = ratio_N(logprob, row([old]))
    found = grpo_loss_N(rho, row([advantage]), 0.2, 0.28, dual_clip)
    exact = math.exp(min(max(new - old, -20.0), 20.0))
    wanted = -min(exact * advantage, min(max(exact, 0.8), 1.28) * advantage)
    if advantage < 0 and dual_clip is not None:
        wanted = min(wanted, -dual_clip * advantage)
    # The exponent, up to 20 nats of up to 1e4, carries its own rounding into the ratio.
    slack = FLOAT32 + 2e-7 * (abs(new) + abs(old))
    assert float(found.detach()) == pytest.approx(wanted, rel=slack, abs=1e-12)
    found.backward()
    assert logprob.grad is not None and math.isfinite(float(logprob.grad))


@given(LOGPROBS, LOGPROBS, st.sampled_from([1.0, 2.0, 10.0]))
def test_importance_weights_are_truncated_above_only(old: float, engine: float, cap: float) -> None:
    found = float(truncated_weight_N(row([old]) - row([engine]), cap))
    wanted = min(math.exp(min(old - engine, 700.0)), cap)
    assert found == pytest.approx(wanted, rel=FLOAT32 + 2e-7 * (abs(old) + abs(engine)), abs=1e-37)
    assert math.isfinite(float(engine_kl_N(row([old]) - row([engine]))))


@given(st.floats(-1e6, 1e6), st.floats(0, 1e3), st.floats(0, 1))
def test_a_mixed_loss_is_between_both(grpo: float, sdpo: float, share: float) -> None:
    double = [torch.tensor([value], dtype=torch.float64) for value in (grpo, sdpo)]
    found = float(mixed_loss_N(double[0], double[1], share))
    assert found == pytest.approx(share * grpo + (1 - share) * sdpo, rel=1e-12, abs=1e-9)
    assert min(grpo, sdpo) - 1e-6 <= found <= max(grpo, sdpo) + 1e-6


@given(REWARDS, st.booleans())
@example([1.0] + [0.0] * 63, True)
@example([0.5, float(np.nextafter(np.float32(0.5), np.float32(1)))], True)
def test_advantages(rewards: list[float], scaled: bool) -> None:
    found = group_statistics(rewards, scaled)
    mean = math.fsum(rewards) / len(rewards)
    std = math.sqrt(math.fsum((r - mean) ** 2 for r in rewards) / (len(rewards) - 1))
    wanted = [(r - mean) / (std + 1e-6 if scaled else 1.0) for r in rewards]
    assert found.mean == pytest.approx(mean, abs=1e-14)
    assert found.std == pytest.approx(std, abs=1e-14)
    assert found.advantages_G == pytest.approx(wanted, rel=1e-7, abs=1e-9)
    assert max(map(abs, found.advantages_G)) <= (math.sqrt(len(rewards)) if scaled else 1.0)
    stored = np.array(found.advantages_G, dtype=np.float32)  # as in the table
    assert abs(float(stored.astype(np.float64).sum())) <= 1e-5 * len(rewards)


@given(st.lists(st.booleans(), min_size=2, max_size=64), st.data())
def test_routes_of_whole_groups(correct: list[bool], data: st.DataObject) -> None:
    lengths = data.draw(
        st.lists(st.integers(1, 8192), min_size=len(correct), max_size=len(correct))
    )
    for policy in ("first", "longest"):
        siblings = [
            demonstrating_sibling(policy, correct, lengths, i)  # type: ignore[arg-type]
            for i in range(len(correct))
        ]
        for index, sibling in enumerate(siblings):
            others = [j for j, right in enumerate(correct) if right and j != index]
            assert (sibling is None) == (not others)
            if sibling is not None:
                assert sibling in others
                assert policy == "first" or lengths[sibling] == max(lengths[j] for j in others)
    for method in METHODS:
        routes = [
            route_of(method, right, sibling is not None)
            for right, sibling in zip(correct, siblings, strict=True)
        ]
        taught = sum(route == "sdpo" for route in routes)
        right = sum(correct)
        wanted = {
            "srpo": len(correct) - right if right else 0,
            "grpo": 0,
            "sdpo": len(correct) - (right == 1) if right else 0,
            "sdpo_incorrect_only": len(correct) - right if right else 0,
            "sdpo_correct_only": right if right > 1 else 0,
            "advantage_mix": 0,
            "rlsd": 0,
        }
        assert taught == wanted[method], method


@given(
    st.lists(st.floats(0, 12, width=32), min_size=1, max_size=100),
    st.sampled_from([0.0, 0.1, 1.0, 50.0, 1e4]),
    st.integers(1, 4),
)
def test_weights_of_every_sharpness(entropies: list[float], beta: float, batches: int) -> None:
    entropy = np.array(entropies, dtype=np.float64)
    batch = np.arange(len(entropies)) % batches
    found = normalised_weights_N(log_raw_weights_N(entropy, beta), batch)
    stored = found.astype(np.float32).astype(np.float64)  # as in the table
    for number in set(batch.tolist()):
        omega = [h for h, b in zip(entropies, batch, strict=True) if b == number]
        lowest = min(omega)  # exp(-beta H) over its mean, both times exp(beta min H)
        raw = [math.exp(-beta * (h - lowest)) for h in omega]
        wanted = [value / (math.fsum(raw) / len(raw)) for value in raw]
        assert found[batch == number] == pytest.approx(wanted, rel=1e-9, abs=1e-300)
        assert stored[batch == number].mean() == pytest.approx(1.0, abs=1e-6)
