"""What a sampling engine is: token ids in, token ids and their log-probabilities out."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

from pipeline.config.sections import EvaluateSection, GenerateSection


class SamplingSettings(NamedTuple):
    """How to draw tokens.

    Attributes:
        temperature: divides the logits before the softmax, above 0.
        top_p: keep the smallest set of likeliest tokens with at least this mass; 1: all.
        top_k: keep this many likeliest tokens; 0: all.
        max_response_length: tokens after which a response is cut, EOS included.
        batch_size: responses sampled at the same time.
    """

    temperature: float
    top_p: float
    top_k: int
    max_response_length: int
    batch_size: int


def sampling_settings(section: GenerateSection | EvaluateSection) -> SamplingSettings:
    """Return the settings of a configuration section."""
    return SamplingSettings(**{name: getattr(section, name) for name in SamplingSettings._fields})


class Sample(NamedTuple):
    """One sampled response.

    Attributes:
        response_ids: token ids, with EOS if it was sampled.
        logprobs: log-probability of each under the distribution it was drawn from, nats.
        finish_reason: stop (EOS) or length (cut at the limit).
    """

    response_ids: list[int]
    logprobs: list[float]
    finish_reason: Literal["stop", "length"]


class Engine(Protocol):
    """A sampling engine. Text never passes through it.

    Attributes:
        facts: about the last call of `sample`, for the manifest of the stage.
    """

    name: str
    facts: Mapping[str, Any]

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[Sequence[int]],
        settings: SamplingSettings,
        progress: Callable[[int, int], None],
    ) -> list[list[Sample]]:
        """Sample len(seeds[i]) responses to prompt i.

        A response depends on its own seed, not on its neighbours in the batch.

        Args:
            prompts: token ids.
            seeds: those of a prompt are consecutive numbers.
            settings: how tokens are drawn.
            progress: called with (responses done, responses in all).
        """
