"""An engine beside each of two ranks, by stand-ins: shares, weights, and what goes wrong."""

from typing import Any

import pytest

from pipeline.vllm import rank_sampler
from tests.ranks.run_rank_samplers import PROMPTS, all_cases, on_two_ranks, stand_ins

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return on_two_ranks(tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(rank_sampler, "_make_replicas", stand_ins)
        return all_cases(tmp_path_factory.mktemp("one"))


def same(ours: Any, theirs: Any) -> bool:
    """Tell whether ids are equal, and log-probabilities but for rounding."""
    for a, b in zip(ours, theirs, strict=True):
        for (ids, logprobs), (their_ids, theirs_logprobs) in zip(a, b, strict=True):
            if ids != their_ids or logprobs != pytest.approx(theirs_logprobs, abs=1e-4):
                return False
    return True


def test_answers_are_those_of_one_rank(one: dict[str, Any], found: dict[str, Any]) -> None:
    assert len(found["first"]) == len(PROMPTS)
    assert same(found["first"], one["first"])
    assert same(found["learned"], one["learned"])
    assert not same(found["learned"], found["first"])
    assert found["gap"] < 1e-4


def test_weights_are_sent_once_per_version(found: dict[str, Any]) -> None:
    assert found["same weights"] == [True, [1, 1]]


@pytest.mark.parametrize("rank", [0, 1])
def test_what_goes_wrong_on_a_rank(rank: int, found: dict[str, Any]) -> None:
    assert isinstance(found[f"dies 1 on {rank}"], list)  # it came up again, and was asked again
    assert found[f"dies 9 on {rank}"] == f"the engine of rank {rank} is gone"
    assert f"the engine of rank {rank} holds weights of version" in found[f"changes 1 on {rank}"]
    assert found[f"refuses 1 on {rank}"] == f"the engine of rank {rank} did not start"
    missed = found[f"misses 1 on {rank}"]
    assert f"the engine of rank {rank} does not sample from policy 000002-misses" in missed


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("how", ["dies 1", "dies 9", "changes 1", "refuses 1", "misses 1"])
def test_after_that_all_goes_on(rank: int, how: str, found: dict[str, Any]) -> None:
    assert len(found[f"{how} on {rank}, then"]) == len(PROMPTS)


def test_an_engine_that_is_closed_leaves_nothing(found: dict[str, Any]) -> None:
    assert found["left"] == [0, 0]
