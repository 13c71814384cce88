"""What a replica is: one vLLM with a copy of the policy's weights, which samples groups."""

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from pipeline.errors import SrpoError
from pipeline.sampling.engine import Sample, SamplingSettings


class EngineError(SrpoError):
    """vLLM can't be started, answers wrongly, or does not answer in time."""


class ReplicaLost(EngineError):
    """A replica is gone; another one can sample the groups that it left unanswered."""


class Group(NamedTuple):
    """The rollouts of one prompt: rollout j has seed `seed` + j."""

    number: int
    prompt_ids: Sequence[int]
    seed: int
    rollouts: int


class SamplingRequest(NamedTuple):
    """What is asked of a replica beside the groups themselves.

    Attributes:
        stop_ids: token ids that end a response and belong to it.
        timeout: seconds within which a group must be answered.
    """

    settings: SamplingSettings
    stop_ids: Sequence[int]
    timeout: float

    def parameters(self, group: Group) -> dict[str, Any]:
        """Return vLLM's sampling parameters, under its names."""
        return {
            "n": group.rollouts,
            "seed": group.seed,
            "temperature": self.settings.temperature,
            "top_p": self.settings.top_p,
            "top_k": self.settings.top_k,
            "max_tokens": self.settings.max_response_length,
            "stop_token_ids": list(self.stop_ids),
            "ignore_eos": True,
            "logprobs": 0,
        }


class GroupQueue:
    """Groups that wait for a replica, and their answers; safe for concurrent replicas."""

    def __init__(self, groups: Sequence[Group], answered: Callable[[int], None]) -> None:
        self._waiting = list(reversed(groups))
        self._answered = answered
        self._lock = threading.Lock()
        self.answers: dict[int, list[Sample]] = {}

    def take(self) -> Group | None:
        """Return a group that nobody has taken, or None."""
        with self._lock:
            return self._waiting.pop() if self._waiting else None

    def peek(self) -> Group | None:
        """Return the next group without taking it."""
        with self._lock:
            return self._waiting[-1] if self._waiting else None

    def abandon(self) -> None:
        """Empty the queue, so that no replica takes another group."""
        with self._lock:
            self._waiting.clear()

    def give(self, group: Group, samples: list[Sample]) -> None:
        """Hand in a group's samples."""
        if len(samples) != group.rollouts:
            raise EngineError(
                f"vLLM answered {len(samples)} rollouts where {group.rollouts} were asked for"
            )
        with self._lock:
            self.answers[group.number] = samples
            self._answered(group.rollouts)


class WeightClient(Protocol):
    """vLLM's weight-transfer calls, under vLLM's own names, in process or over HTTP."""

    def init_weight_transfer_engine(self, init_info: Mapping[str, Any]) -> None:
        """Connect; once per engine."""

    def start_weight_update(self) -> None:
        """Begin a transfer."""

    def update_weights(self, update_info: Any) -> None:
        """Hand over weights."""

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """End a transfer, and give the weights a version."""


class Replica(WeightClient, Protocol):
    """One vLLM.

    Attributes:
        workers: processes or GPUs that hold a copy or a part of the weights.
    """

    workers: int

    @property
    def label(self) -> str:
        """Return the name for messages."""

    def start(self) -> bool:
        """Start it unless it runs; return whether it was started and so has no weights yet."""

    def sample(self, queue: GroupQueue, request: SamplingRequest) -> None:
        """Sample groups of the queue until it is empty, and give each one back once it is answered.

        Raises:
            ReplicaLost: it is gone.
            EngineError: it does not answer in time, or wrongly.
        """

    def weight_version(self) -> str | None:
        """Return the version that the last transfer gave the weights."""

    def reset_prefix_cache(self) -> None:
        """Drop cached keys and values of prompts: they were computed with older weights."""

    def sleep(self) -> None:
        """Release GPU memory until `wake`; the weights are lost. Does nothing on a CPU."""

    def wake(self) -> None:
        """Allocate GPU memory for the weights again, which must then be sent."""

    def wake_cache(self) -> None:
        """Allocate GPU memory for keys and values again, once the weights are there."""

    def close(self) -> None:
        """End it, unless somebody else started it."""


def checked_sample(
    token_ids: Sequence[int],
    logprobs: Sequence[float | None],
    reason: str | None,
    request: SamplingRequest,
) -> Sample:
    """Return an answer of vLLM as a `Sample`.

    Raises:
        EngineError: ids and log-probabilities don't match, or it ended otherwise than by a stop
            token or at the limit.
    """
    ids, found = list(token_ids), [value for value in logprobs if value is not None]
    if not ids or len(found) != len(ids):
        raise EngineError(f"vLLM answered {len(ids)} tokens with {len(found)} log-probabilities")
    if reason == "stop" and ids[-1] in request.stop_ids:
        return Sample(ids, found, "stop")
    if reason == "length" and len(ids) == request.settings.max_response_length:
        return Sample(ids, found, "length")
    limit = request.settings.max_response_length
    raise EngineError(
        f"vLLM ended a response of {len(ids)} tokens (limit {limit}) by {reason!r}, last token "
        f"{ids[-1]}; expected stop by one of {list(request.stop_ids)}, or length at the limit"
    )
