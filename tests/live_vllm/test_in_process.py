"""A live engine in this process: exact weights after every update, mistakes that stop it."""

from collections.abc import Iterator

import pytest

from pipeline.policy.adapters import plain_weights
from pipeline.policy.policy import Policy
from pipeline.vllm import in_process_replica, vllm_engine, weights
from pipeline.vllm.replica import EngineError
from pipeline.vllm.vllm_engine import VllmEngine
from tests.conftest import OpenPolicy
from tests.live_vllm.live_engine import (
    SETTINGS,
    largest_gap,
    learn,
    prompts,
    running,
    sample,
    seeds,
)

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def pair(demo_policy: OpenPolicy) -> Iterator[tuple[VllmEngine, Policy]]:
    """Return one engine for all tests of this module, and its policy."""
    policy = demo_policy()
    with running(policy) as engine:
        yield engine, policy


Pair = tuple[VllmEngine, Policy]


def test_log_probabilities_are_the_policys_after_each_of_20_updates(pair: Pair) -> None:
    engine, policy = pair
    asked, of = prompts(policy, 3), seeds(3, 4)
    gaps = []
    for update in range(20):
        learn(policy, f"{update + 1:06d}-learned")
        answers = sample(engine, asked, of)
        gaps.append(largest_gap(policy, asked, answers))
        assert engine.facts["engine_probe_gap"] < 1e-4
    assert max(gaps) < 1e-4
    assert len({tuple(a.response_ids) for group in answers for a in group}) > 6


@pytest.mark.parametrize("heat", [0.6, 1.7])
def test_log_probabilities_are_those_after_the_temperature(pair: Pair, heat: float) -> None:
    engine, policy = pair
    asked = prompts(policy, 2)
    answers = sample(engine, asked, seeds(2, 3), SETTINGS._replace(temperature=heat))
    assert largest_gap(policy, asked, answers, heat) < 1e-4


def test_a_rollout_depends_on_its_seed_alone(pair: Pair) -> None:
    engine, policy = pair
    asked, of = prompts(policy, 6), seeds(6, 8)
    told: list[tuple[int, int]] = []
    together = sample(engine, asked, of, progress=lambda *call: told.append(call))
    assert told[-1] == (48, 48)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    backwards = sample(engine, asked[::-1], of[::-1])[::-1]
    alone = [sample(engine, [p], [s])[0] for p, s in zip(asked[:3], of[:3], strict=True)]
    assert sum(a == b for a, b in zip(_ids(together), _ids(backwards), strict=True)) >= 48 * 0.99
    assert sum(a == b for a, b in zip(_ids(together[:3]), _ids(alone), strict=True)) >= 24 * 0.95
    assert len(set(map(tuple, _ids(together)))) > 40


def test_responses_end_at_eos_or_the_limit(pair: Pair) -> None:
    engine, policy = pair
    answers = sample(engine, prompts(policy, 4), seeds(4, 8))
    for answer in (a for group in answers for a in group):
        stopped = answer.response_ids[-1] in policy.eos_ids
        assert answer.finish_reason == ("stop" if stopped else "length")
        assert len(answer.response_ids) == 48 or stopped
        assert not policy.eos_ids & set(answer.response_ids[:-1])


def test_weights_that_were_not_sent_are_noticed(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, policy = pair
    asked, of = prompts(policy, 1), seeds(1, 1)
    sample(engine, asked, of)

    class Forgetful:
        def send(self, replicas, model, version, restarted):  # type: ignore[no-untyped-def]
            for replica in replicas:
                replica._version = version

    monkeypatch.setattr(engine.sampler, "_sender", Forgetful())
    learn(policy, "000101-one-behind", scale=1e-3)
    with pytest.raises(EngineError, match="does not sample from policy 000101-one-behind"):
        sample(engine, asked, of)
    monkeypatch.undo()
    learn(policy, "000102-fine")
    assert largest_gap(policy, asked, sample(engine, asked, of)) < 1e-4


def test_a_version_that_somebody_else_set_is_refused(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, policy = pair
    learn(policy, "000201-ours")
    replica = engine.sampler._replicas[0]
    monkeypatch.setattr(replica, "finish_weight_update", lambda version: None)
    with pytest.raises(EngineError, match="the step needs 000201-ours"):
        sample(engine, prompts(policy, 1), seeds(1, 1))
    monkeypatch.undo()
    engine.sampler._replicas[0]._llm.finish_weight_update("000200-older")  # type: ignore[attr-defined]
    sample(engine, prompts(policy, 1), seeds(1, 1))


def test_a_stale_projection_is_noticed(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, policy = pair
    asked, of = prompts(policy, 1), seeds(1, 1)
    sample(engine, asked, of)
    every = plain_weights

    def without_head(model, dtype):  # type: ignore[no-untyped-def]
        return ((name, part) for name, part in every(model, dtype) if name != "lm_head.weight")

    monkeypatch.setattr(weights, "plain_weights", without_head)
    learn(policy, "000301-stale-head", scale=0.02)
    for _ in range(2):  # trying again makes it no better
        with pytest.raises(EngineError, match="tied projection"):
            sample(engine, asked, of)
    monkeypatch.undo()
    assert largest_gap(policy, asked, sample(engine, asked, of)) < 1e-4
    learn(policy, "000302-fine")
    assert largest_gap(policy, asked, sample(engine, asked, of)) < 1e-4


def test_a_prefix_cache_that_was_kept_is_noticed(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, policy = pair
    asked, of = prompts(policy, 1), seeds(1, 1)
    sample(engine, asked, of)
    monkeypatch.setattr(engine.sampler._replicas[0], "reset_prefix_cache", lambda: None)
    learn(policy, "000401-old-cache", scale=0.02)
    with pytest.raises(EngineError, match="prefix cache"):
        sample(engine, asked, of)
    monkeypatch.undo()
    learn(policy, "000402-fine")
    assert largest_gap(policy, asked, sample(engine, asked, of)) < 1e-4


def test_an_engine_that_slept_is_awake_when_it_samples(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CPU keeps its memory, but vLLM's scheduler rests until all that sleeps has been woken."""
    engine, policy = pair
    asked, of = prompts(policy, 2), seeds(2, 2)
    replica = engine.sampler._replicas[0]
    monkeypatch.setattr(in_process_replica, "sleeps", lambda launch: True)
    sample(engine, asked, of)
    assert replica._llm.llm_engine.is_sleeping()  # type: ignore[attr-defined]
    assert replica.weight_version() is None
    learn(policy, "000501-after-sleep", scale=0.02)
    assert largest_gap(policy, asked, sample(engine, asked, of)) < 1e-4
    monkeypatch.undo()
    assert largest_gap(policy, asked, sample(engine, asked, of)) < 1e-4
    assert not replica._llm.llm_engine.is_sleeping()  # type: ignore[attr-defined]


def test_threads_are_the_trainers_again(pair: Pair) -> None:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


def _ids(answers: list[list[vllm_engine.Sample]]) -> list[list[int]]:
    return [answer.response_ids for group in answers for answer in group]
