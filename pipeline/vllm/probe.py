"""The check after every transfer of weights: do the engine's log-probabilities match the policy's?

That an engine names the right version proves little: it may have missed weights, kept an old copy
of a tied projection, or answer from a cache that older weights filled. So it continues a few fixed
prompts, and its log-probabilities of the tokens that it drew must be the policy's. The prompts are
the same each time, and longer than a block of the prefix cache: an engine that kept its cache would
use it.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch

from pipeline.distributed import ranks
from pipeline.forward.packing import TokenSequence
from pipeline.forward.scoring import score_student
from pipeline.policy.policy import Policy
from pipeline.sampling.engine import Sample, SamplingSettings
from pipeline.vllm.replica import EngineError, Group, GroupQueue, Replica, SamplingRequest

BOUND = {"float32": 1e-4, "bfloat16": 0.2}
"""Difference of log-probabilities that rounding explains, nats: of each in float32 (measured:
6e-6), of their mean in bfloat16. There one unlikely token of a right engine may be off by more: of
SmolLM2's by 0.24 (docs/vllm.md)."""

_PROMPTS, _PROMPT_TOKENS, _NEW_TOKENS = 4, 272, 8
_TEMPERATURE = 0.75
"""Not 1, so that an engine whose log-probabilities ignore the temperature fails too."""
_SEED = 20260402
_MEGABYTES = 64.0


class Gap(NamedTuple):
    """The largest difference between engine and policy, and where it is.

    Attributes:
        nats: the absolute difference.
        mean: of the absolute differences of all tokens.
        prompt, position: the probe prompt, and the token of its answer.
        engine, policy: the two log-probabilities.
    """

    nats: float
    mean: float
    prompt: int
    position: int
    engine: float
    policy: float


def probe_groups(vocabulary: int, length: int) -> list[Group]:
    """Return the fixed prompts: random ids, all different from their first block on."""
    tokens = max(1, min(_PROMPT_TOKENS, length - _NEW_TOKENS))
    generator = np.random.Generator(np.random.Philox(_SEED))
    ids_PS = generator.integers(0, vocabulary, size=(_PROMPTS, tokens))
    return [Group(i, row.tolist(), _SEED + i, 1) for i, row in enumerate(ids_PS)]


class Probe(NamedTuple):
    """A replica's name, and its answers to the fixed prompts."""

    label: str
    answers: list[Sample]


def run_probe(replica: Replica, vocabulary: int, length: int, request: SamplingRequest) -> Probe:
    """Have a replica continue the fixed prompts.

    Args:
        length: tokens of prompt and response that the engine holds.
        request: its stop tokens and timeout hold here too; its settings do not.
    """
    groups = probe_groups(vocabulary, length)
    queue = GroupQueue(groups, lambda _: None)
    settings = SamplingSettings(_TEMPERATURE, 1.0, 0, _NEW_TOKENS, len(groups))
    replica.sample(queue, request._replace(settings=settings))
    return Probe(replica.label, [queue.answers[group.number][0] for group in groups])


def largest_gap(
    policy: Policy, length: int, dtype: Literal["float32", "bfloat16"], probes: Sequence[Probe]
) -> float:
    """Return the largest difference on any rank, in nats; every rank must call it.

    A forward pass of a sharded policy needs all ranks. So all make the same number of passes: a
    rank with fewer replicas than others, or none, repeats the pass of another rank.

    Args:
        probes: those of this rank's replicas.

    Raises:
        EngineError: log-probabilities differ by more than their dtype explains.
    """
    groups = probe_groups(policy.vocabulary, length)
    all_probes, first, worst = ranks.exchanged(probes), ranks.FirstError(), 0.0
    for turn in range(max(map(len, all_probes))):
        mine = turn < len(probes)
        probe = probes[turn] if mine else next(p[turn] for p in all_probes if turn < len(p))
        gap = _gap(policy, groups, probe.answers)
        if mine:
            with first.kept():
                _expect_explained(gap, dtype, probe.label, policy.version)
            worst = max(worst, gap.nats)
    first.expect_none()
    return max(ranks.exchanged(worst))


def _expect_explained(
    gap: Gap, dtype: Literal["float32", "bfloat16"], label: str, version: str
) -> None:
    if not (gap.mean if dtype == "bfloat16" else gap.nats) <= BOUND[dtype]:
        allowed = f"{dtype} allows {BOUND[dtype]:g}" + " on average" * (dtype == "bfloat16")
        raise EngineError(
            f"{label} does not sample from policy {version}: log-probability "
            f"{gap.engine:.6g} of token {gap.position} after probe prompt {gap.prompt} where the "
            f"policy has {gap.policy:.6g} (they differ by {gap.nats:.3g} nats, all by "
            f"{gap.mean:.3g} on average; {allowed}); its weights, its copy of a tied projection "
            "or its prefix cache are not the policy's"
        )


def _logprobs(policy: Policy, sequences: Sequence[TokenSequence]) -> list[float]:
    """Return the policy's log-probabilities of the responses' tokens, one after the other."""
    count = sum(len(sequence.response_ids) for sequence in sequences)
    temperature_N = torch.full((count,), _TEMPERATURE, device=policy.device)
    forward = policy.forward(_MEGABYTES)
    with policy.passing():
        scores = score_student(policy.model, sequences, temperature_N, 1, forward)
    found: list[float] = scores.logprob_N.tolist()
    return found


def _gap(policy: Policy, groups: Sequence[Group], answers: Sequence[Sample]) -> Gap:
    sequences = [
        TokenSequence(list(group.prompt_ids), answer.response_ids)
        for group, answer in zip(groups, answers, strict=True)
    ]
    found = _logprobs(policy, sequences)
    places = [(g, t) for g, answer in enumerate(answers) for t in range(len(answer.response_ids))]
    engine = [answers[g].logprobs[t] for g, t in places]
    mean = float(np.abs(np.subtract(engine, found)).mean())
    gaps = [
        Gap(abs(value - theirs), mean, g, t, theirs, value)
        for (g, t), theirs, value in zip(places, engine, found, strict=True)
    ]
    return max(gaps, key=lambda gap: gap.nats if gap.nats == gap.nats else float("inf"))  # NaN
