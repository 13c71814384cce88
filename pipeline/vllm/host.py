"""What a host is: one vLLM that samples groups of rollouts and takes new weights."""

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from pipeline.errors import SrpoError
from pipeline.sampling.engine import Sample, SamplingSettings


class EngineError(SrpoError):
    """vLLM can't be started, answers something wrong, or not in time."""


class HostLost(EngineError):
    """A host is gone; what it had not answered can be asked of another one."""


class Group(NamedTuple):
    """The rollouts of one prompt: rollout j has seed `seed` + j."""

    number: int
    prompt_ids: Sequence[int]
    seed: int
    rollouts: int


class Ask(NamedTuple):
    """How a host shall sample.

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


class Work:
    """Groups that wait for a host, and answers; hosts take from it side by side."""

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
        """Return the group that is next, and leave it there."""
        with self._lock:
            return self._waiting[-1] if self._waiting else None

    def abandon(self) -> None:
        """Let nobody take another group."""
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
    """vLLM's weight-transfer calls, under its own names, whatever lies between."""

    def init_weight_transfer_engine(self, init_info: Mapping[str, Any]) -> None:
        """Connect; once per engine."""

    def start_weight_update(self) -> None:
        """Begin a transfer."""

    def update_weights(self, update_info: Any) -> None:
        """Hand over weights."""

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """End a transfer, and name the weights."""


class Host(WeightClient, Protocol):
    """One vLLM.

    Attributes:
        workers: processes or GPUs that hold a copy or a part of the weights.
    """

    workers: int

    @property
    def label(self) -> str:
        """Return the name for errors."""

    def start(self) -> bool:
        """Have it running; True: it was not, and holds no weights of ours."""

    def sample(self, work: Work, ask: Ask) -> None:
        """Take groups until none waits; each answered group is given back at once.

        Raises:
            HostLost: it is gone.
            EngineError: it does not answer in time, or wrongly.
        """

    def weight_version(self) -> str | None:
        """Return what the last transfer was named."""

    def reset_prefix_cache(self) -> None:
        """Forget keys and values of prompts, which older weights made."""

    def sleep(self) -> None:
        """Give GPU memory back until `wake`; weights are lost. Nothing on a CPU."""

    def wake(self) -> None:
        """Take GPU memory for weights again, which must then be sent."""

    def wake_cache(self) -> None:
        """Take GPU memory for keys and values again, once the weights are there."""

    def close(self) -> None:
        """End it, if it is ours."""


def checked_sample(
    token_ids: Sequence[int], logprobs: Sequence[float | None], reason: str | None, ask: Ask
) -> Sample:
    """Return an answer as a `Sample`, if it is one.

    Raises:
        EngineError: ids and log-probabilities don't match, or it ended otherwise than by a stop
            token or at the limit.
    """
    ids, found = list(token_ids), [value for value in logprobs if value is not None]
    if not ids or len(found) != len(ids):
        raise EngineError(f"vLLM answered {len(ids)} tokens with {len(found)} log-probabilities")
    if reason == "stop" and ids[-1] in ask.stop_ids:
        return Sample(ids, found, "stop")
    if reason == "length" and len(ids) == ask.settings.max_response_length:
        return Sample(ids, found, "length")
    limit = ask.settings.max_response_length
    raise EngineError(
        f"vLLM ended a response of {len(ids)} tokens (limit {limit}) by {reason!r}, last token "
        f"{ids[-1]}; expected stop by one of {list(ask.stop_ids)}, or length at the limit"
    )
