"""Adapters reach live engines: merged into the base's weights, once, and anew after each update."""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch

from pipeline.config.sections import LoraSection
from pipeline.policy.adapters import AdaptedLinear
from pipeline.policy.policy import Policy
from pipeline.vllm.replica import EngineError
from pipeline.vllm.vllm_engine import VllmEngine
from tests.conftest import OpenPolicy
from tests.live_vllm.live_engine import largest_gap, learn, prompts, running, sample, seeds

pytestmark = pytest.mark.vllm

LORA = LoraSection(rank=4, alpha=8.0)
MOVES = 0.02
"""Size of an update: enough that adapters of another version show."""

Pair = tuple[VllmEngine, Policy]


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def pair(request: pytest.FixtureRequest, demo_policy: OpenPolicy) -> Iterator[Pair]:
    """Return an engine in this process, and its policy, on a base of either type."""
    policy = demo_policy(lora=LORA, base_dtype=request.param)
    with running(policy) as engine:
        yield engine, policy


def test_log_probabilities_are_the_policys_after_each_update(pair: Pair) -> None:
    engine, policy = pair
    asked, of = prompts(policy, 3), seeds(3, 4)
    drawn = []
    for update in range(5):
        answers = sample(engine, asked, of)
        assert largest_gap(policy, asked, answers) < 1e-4
        assert engine.facts["engine_probe_gap"] < 1e-4
        drawn.append([a.response_ids for group in answers for a in group])
        learn(policy, f"{update + 1:06d}-learned", MOVES)
    assert all(a != b for a, b in pairwise(drawn))


def unmerged(layer: AdaptedLinear) -> torch.Tensor:
    return layer.weight.float()


def merged_twice(layer: AdaptedLinear) -> torch.Tensor:
    return layer.weight.float() + 2 * layer.lora_scale * (layer.lora_B @ layer.lora_A)


def unscaled(layer: AdaptedLinear) -> torch.Tensor:
    return layer.weight.float() + layer.lora_B @ layer.lora_A


@pytest.mark.parametrize("wrong", [unmerged, merged_twice, unscaled])
def test_adapters_that_are_merged_wrongly_are_noticed(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, wrong: Callable[[Any], torch.Tensor]
) -> None:
    engine, policy = pair
    asked, of = prompts(policy, 1), seeds(1, 1)
    learn(policy, f"000100-{wrong.__name__}", MOVES)
    monkeypatch.setattr(AdaptedLinear, "merged", wrong)
    with pytest.raises(EngineError, match=f"does not sample from policy 000100-{wrong.__name__}"):
        sample(engine, asked, of)
    monkeypatch.undo()
    assert largest_gap(policy, asked, sample(engine, asked, of)) < 1e-4


def test_adapters_of_one_update_before_are_noticed(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, policy = pair
    asked, of = prompts(policy, 1), seeds(1, 1)
    old = {name: layer.merged() for name, layer in layers(policy)}
    learn(policy, "000201-newer", MOVES)
    names = {id(layer): name for name, layer in layers(policy)}
    monkeypatch.setattr(AdaptedLinear, "merged", lambda layer: old[names[id(layer)]])
    with pytest.raises(EngineError, match="does not sample from policy 000201-newer"):
        sample(engine, asked, of)
    monkeypatch.undo()
    assert largest_gap(policy, asked, sample(engine, asked, of)) < 1e-4


def layers(policy: Policy) -> list[tuple[str, AdaptedLinear]]:
    return [(n, m) for n, m in policy.model.named_modules() if isinstance(m, AdaptedLinear)]


def test_servers_get_them_too(demo_policy: OpenPolicy) -> None:
    policy = demo_policy(lora=LORA, base_dtype="bfloat16")
    asked, of = prompts(policy, 4), seeds(4, 2)
    with running(policy, "vllm.servers=2") as engine:
        for update in range(3):
            learn(policy, f"{update + 300:06d}-served", MOVES)
            assert largest_gap(policy, asked, sample(engine, asked, of)) < 1e-4
            assert engine.facts["engine_probe_gap"] < 1e-4
