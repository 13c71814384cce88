"""The engine `vllm` as stages call it, on rank 0: it has every rank's station sample its share."""

from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Any

from pipeline.config.sections import Config
from pipeline.distributed import ranks
from pipeline.errors import PolicyError
from pipeline.policy.checkpoint import causes
from pipeline.policy.policy import Policy
from pipeline.sampling.engine import Sample, SamplingSettings
from pipeline.vllm import station
from pipeline.vllm.host import Ask, Group

_numbers = count()


class VllmEngine:
    """Sampling with vLLM (see `pipeline.sampling.engine.Engine`).

    Before it samples, every host must hold the weights of the policy's very version; hosts that
    don't get them, and are checked by log-probabilities.
    """

    name = "vllm"

    def __init__(self, config: Config, policy: Policy) -> None:
        self.policy = policy
        self._timeout = config.generate.timeout
        self._number = next(_numbers)
        self.facts: Mapping[str, Any] = {}
        ranks.together(station.begin, policy, self._number, config)

    @property
    def station(self) -> station.Station:
        """Return rank 0's own."""
        return station.stations[self._number]

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[Sequence[int]],
        settings: SamplingSettings,
        progress: Callable[[int, int], None],
    ) -> list[list[Sample]]:
        """Sample responses (see `Engine.sample`); `progress` is that of rank 0's share.

        Raises:
            EngineError: a host does not answer in time, samples from other weights, or every host
                of a rank is lost and can't be started again.
        """
        groups = _groups(prompts, seeds)
        ask = Ask(settings, sorted(self.policy.eos_ids), self._timeout)
        with causes():
            parts = ranks.together(
                station.sample, self.policy, self._number, groups, ask, progress=progress
            )
        self.facts = {"engine_probe_gap": parts[0].gap}
        answers = {number: found for part in parts for number, found in part.answers.items()}
        return [answers[group.number] for group in groups]

    def close(self) -> None:
        """End what was started; ranks that were left in the middle of a call end by themselves."""
        if ranks.broken_off():
            station.end(None, self._number)
        else:
            ranks.together(station.end, None, self._number)


def _groups(prompts: Sequence[Sequence[int]], seeds: Sequence[Sequence[int]]) -> list[Group]:
    """Return the groups; vLLM numbers the seeds of a request itself, so they must be in a row."""
    groups = []
    for index, (prompt, own) in enumerate(zip(prompts, seeds, strict=True)):
        if list(own) != list(range(own[0], own[0] + len(own))):
            raise PolicyError(f"seeds of group {index} are {list(own)}; expected numbers in a row")
        groups.append(Group(index, prompt, own[0], len(own)))
    return groups
