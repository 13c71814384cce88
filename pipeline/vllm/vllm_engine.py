"""The engine `vllm` as stages call it, on rank 0: every rank's sampler samples its share."""

from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Any

from pipeline.config.sections import Config
from pipeline.distributed import ranks
from pipeline.errors import PolicyError
from pipeline.policy.checkpoint import unwrap_rank_errors
from pipeline.policy.policy import Policy
from pipeline.sampling.engine import Sample, SamplingSettings
from pipeline.vllm import rank_sampler
from pipeline.vllm.replica import Group, SamplingRequest

_numbers = count()


class VllmEngine:
    """Sampling with vLLM (see `pipeline.sampling.engine.Engine`).

    Before sampling, every replica must hold the weights of the policy's current version. If one
    does not, the weights are sent and checked by their log-probabilities.
    """

    name = "vllm"

    def __init__(self, config: Config, policy: Policy) -> None:
        self.policy = policy
        self._timeout = config.generate.timeout
        self._number = next(_numbers)
        self.facts: Mapping[str, Any] = {}
        ranks.together(rank_sampler.open_sampler, policy, self._number, config)

    @property
    def sampler(self) -> rank_sampler.RankSampler:
        """Return rank 0's sampler."""
        return rank_sampler.samplers[self._number]

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[Sequence[int]],
        settings: SamplingSettings,
        progress: Callable[[int, int], None],
    ) -> list[list[Sample]]:
        """Sample responses (see `Engine.sample`); `progress` is that of rank 0's share.

        Raises:
            EngineError: a replica does not answer in time, or samples from other weights; or all
                replicas of a rank are lost and can't be started again.
        """
        groups = _groups(prompts, seeds)
        request = SamplingRequest(settings, sorted(self.policy.eos_ids), self._timeout)
        with unwrap_rank_errors():
            parts = ranks.together(
                rank_sampler.sample_share,
                self.policy,
                self._number,
                groups,
                request,
                progress=progress,
            )
        self.facts = {"engine_probe_gap": parts[0].gap}
        answers = {number: found for part in parts for number, found in part.answers.items()}
        return [answers[group.number] for group in groups]

    def close(self) -> None:
        """Close the samplers; ranks that an error left in mid-call end by themselves."""
        if ranks.broken_off():
            rank_sampler.close_sampler(None, self._number)
        else:
            ranks.together(rank_sampler.close_sampler, None, self._number)


def _groups(prompts: Sequence[Sequence[int]], seeds: Sequence[Sequence[int]]) -> list[Group]:
    """Return the groups; vLLM counts up the seeds of a request, so ours must be consecutive."""
    groups = []
    for index, (prompt, own) in enumerate(zip(prompts, seeds, strict=True)):
        if list(own) != list(range(own[0], own[0] + len(own))):
            raise PolicyError(
                f"seeds of group {index} are {list(own)}; expected consecutive numbers"
            )
        groups.append(Group(index, prompt, own[0], len(own)))
    return groups
