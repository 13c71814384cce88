"""The check after every transfer of weights: what the engine samples has the policy's own odds.

A version in a name proves little: an engine can have missed the weights, kept a copy of a tied
projection, or answer from a cache that older weights filled. So it continues a few fixed prompts,
and its log-probabilities of what it drew must be those of the policy. The prompts are the same each
time and longer than a block of the prefix cache, which an engine that kept its cache would use.
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
from pipeline.vllm.host import Ask, EngineError, Group, Host, Work

BOUND = {"float32": 1e-4, "bfloat16": 0.2}
"""Largest difference of a log-probability that rounding explains, nats. Measured: 6e-6 in float32,
0.04 to 0.09 in bfloat16."""

_PROMPTS, _PROMPT_TOKENS, _NEW_TOKENS = 4, 272, 8
_TEMPERATURE = 0.75
"""Not 1: an engine whose log-probabilities ignore the temperature shall fail too."""
_SEED = 20260402
_MEGABYTES = 64.0


class Gap(NamedTuple):
    """Where engine and policy differ most: in absolute terms, nats."""

    nats: float
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
    """What a host, of this name, answered to the fixed prompts."""

    label: str
    answers: list[Sample]


def probed(host: Host, vocabulary: int, length: int, ask: Ask) -> Probe:
    """Have a host continue the fixed prompts.

    Args:
        length: tokens of prompt and response that the engine holds.
        ask: whose stop tokens and timeout hold here too.
    """
    groups = probe_groups(vocabulary, length)
    work = Work(groups, lambda _: None)
    settings = SamplingSettings(_TEMPERATURE, 1.0, 0, _NEW_TOKENS, len(groups))
    host.sample(work, ask._replace(settings=settings))
    return Probe(host.label, [work.answers[group.number][0] for group in groups])


def largest_gap(
    policy: Policy, length: int, dtype: Literal["float32", "bfloat16"], probes: Sequence[Probe]
) -> float:
    """Return how far any rank's hosts are from the policy, nats; every rank must call it.

    A pass of a policy that is spread over ranks needs them all, so ranks with fewer hosts than
    others, or none, repeat another's pass.

    Args:
        probes: of this rank's hosts.

    Raises:
        EngineError: a log-probability differs by more than its dtype explains.
    """
    groups = probe_groups(policy.vocabulary, length)
    everybodys, first, worst = ranks.exchanged(probes), ranks.FirstError(), 0.0
    for turn in range(max(map(len, everybodys))):
        mine = turn < len(probes)
        probe = probes[turn] if mine else next(p[turn] for p in everybodys if turn < len(p))
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
    if not gap.nats <= BOUND[dtype]:
        raise EngineError(
            f"{label} does not sample from policy {version}: log-probability "
            f"{gap.engine:.6g} of token {gap.position} after probe prompt {gap.prompt} where the "
            f"policy has {gap.policy:.6g} (they differ by {gap.nats:.3g} nats, {dtype} allows "
            f"{BOUND[dtype]:g}); its weights, its copy of a tied projection or its prefix cache "
            "are not the policy's"
        )


def _logprobs(policy: Policy, sequences: Sequence[TokenSequence]) -> list[float]:
    """Score a probe's answers."""
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
    gaps = [
        Gap(abs(value - answers[g].logprobs[t]), g, t, answers[g].logprobs[t], value)
        for (g, t), value in zip(places, found, strict=True)
    ]
    return max(gaps, key=lambda gap: gap.nats if gap.nats == gap.nats else float("inf"))
