"""The prompts by which an engine is probed, and what its answers may be off by."""

from typing import Literal

import pytest

from pipeline.forward.packing import TokenSequence
from pipeline.policy.policy import Policy
from pipeline.sampling.engine import Sample
from pipeline.vllm.probe import Probe, _logprobs, largest_gap, probe_groups
from pipeline.vllm.replica import EngineError
from tests.conftest import OpenPolicy

LENGTH = 224
RESPONSE = [5, 6, 7, 8, 9, 10, 11, 12]


def probe_off_by(policy: Policy, *nats: float) -> Probe:
    """Return the answers of an engine whose first tokens are off by so much."""
    groups = probe_groups(policy.vocabulary, LENGTH)
    sequences = [TokenSequence(list(group.prompt_ids), RESPONSE) for group in groups]
    found = _logprobs(policy, sequences)
    found[: len(nats)] = [value + off for value, off in zip(found, nats, strict=False)]
    each = len(RESPONSE)
    answers = [
        Sample(RESPONSE, found[each * i : each * (i + 1)], "length") for i in range(len(groups))
    ]
    return Probe("an engine", answers)


@pytest.mark.parametrize(
    ("dtype", "nats"), [("float32", [9e-5]), ("bfloat16", [1.0]), ("bfloat16", [0.19] * 32)]
)
def test_what_rounding_explains(
    tiny_policy: OpenPolicy, dtype: Literal["float32", "bfloat16"], nats: list[float]
) -> None:
    policy = tiny_policy()
    gap = largest_gap(policy, LENGTH, dtype, [probe_off_by(policy, *nats)])
    assert gap == pytest.approx(max(nats), rel=0.02)


@pytest.mark.parametrize(
    ("dtype", "nats", "words"),
    [
        ("float32", [0.0, 2e-4], r"token 1 after probe prompt 0 .* float32 allows 0.0001\)"),
        ("bfloat16", [-0.21] * 32, "all by 0.21 on average; bfloat16 allows 0.2 on average"),
        ("bfloat16", [float("nan")], "all by nan on average"),
    ],
)
def test_what_it_does_not_explain(
    tiny_policy: OpenPolicy,
    dtype: Literal["float32", "bfloat16"],
    nats: list[float],
    words: str,
) -> None:
    policy = tiny_policy()
    with pytest.raises(EngineError, match=words):
        largest_gap(policy, LENGTH, dtype, [probe_off_by(policy, *nats)])


def test_probe_prompts_are_the_same_and_differ_from_their_start() -> None:
    groups = probe_groups(148, 224)
    assert groups == probe_groups(148, 224)
    assert [len(g.prompt_ids) for g in groups] == [216] * 4
    assert len({tuple(g.prompt_ids[:8]) for g in groups}) == 4
    assert all(0 <= i < 148 for g in groups for i in g.prompt_ids)
