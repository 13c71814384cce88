"""What vLLM is asked, and which of its answers are refused."""

import pytest

from pipeline.sampling.engine import Sample, SamplingSettings
from pipeline.vllm.replica import EngineError, Group, SamplingRequest, checked_sample

SETTINGS = SamplingSettings(0.5, 0.9, 7, 4, 16)
ASK = SamplingRequest(SETTINGS, [2], 1.0)
GROUP = Group(3, [5, 6], 100, 2)


def test_what_is_asked_of_vllm() -> None:
    assert ASK.parameters(GROUP) == {
        "n": 2,
        "seed": 100,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "max_tokens": 4,
        "stop_token_ids": [2],
        "ignore_eos": True,
        "logprobs": 0,
    }


@pytest.mark.parametrize(
    ("ids", "logprobs", "reason", "telling"),
    [
        ([5, 6], [-1.0], "length", "2 tokens with 1 log-probabilities"),
        ([5, 6], [-1.0, None], "stop", "2 tokens with 1 log-probabilities"),
        ([], [], "stop", "0 tokens"),
        ([5, 6], [-1.0, -2.0], "length", "by 'length'"),
        ([5, 6], [-1.0, -2.0], "stop", "last token 6"),
        ([5, 2], [-1.0, -2.0], "abort", "by 'abort'"),
        ([5, 2], [-1.0, -2.0], None, "by None"),
    ],
)
def test_answers_that_are_refused(
    ids: list[int], logprobs: list[float | None], reason: str | None, telling: str
) -> None:
    with pytest.raises(EngineError, match=telling):
        checked_sample(ids, logprobs, reason, ASK)


def test_answers_that_are_taken() -> None:
    assert checked_sample([5, 2], [-1.0, -2.0], "stop", ASK) == Sample([5, 2], [-1.0, -2.0], "stop")
    cut = checked_sample([5, 6, 7, 8], [-1.0] * 4, "length", ASK)
    assert cut == Sample([5, 6, 7, 8], [-1.0] * 4, "length")
