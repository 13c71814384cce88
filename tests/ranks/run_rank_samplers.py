"""Two ranks with an engine each: `python -m tests.ranks.run_rank_samplers FOLDER`, by torchrun.

Engines are stand-ins for vLLM: they hold the weights that they were sent, and answer with
log-probabilities of their own. What rank 0 finds is left in FOLDER/found.json.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from pipeline.config.load import load_config
from pipeline.distributed import ranks
from pipeline.errors import SrpoError
from pipeline.policy.policy import Policy
from pipeline.sampling.engine import Sample, SamplingSettings
from pipeline.vllm import rank_sampler
from pipeline.vllm.launch import Launch
from pipeline.vllm.replica import EngineError, GroupQueue, ReplicaLost, SamplingRequest
from pipeline.vllm.vllm_engine import VllmEngine
from tests.ranks.launcher import launch
from tests.stages.steps import open_tiny

PROMPTS = [[5, 6, 7 + i] for i in range(5)]
SEEDS = [[100 * i, 100 * i + 1] for i in range(5)]
SETTINGS = SamplingSettings(0.7, 1.0, 0, 6, 16)


class StandIn:
    """A replica that computes with what it was sent.

    Attributes:
        how: what it does wrong, if anything, and how often.
    """

    workers = 1

    def __init__(self, config: Launch) -> None:
        self._launch, self._model, self._version = config, None, None  # type: ignore[var-annotated]
        self.how: tuple[str, int] = ("", 0)
        self.loads = 0

    @property
    def label(self) -> str:
        """Name it."""
        return f"the engine of rank {ranks.rank()}"

    def _wrong(self, how: str) -> bool:
        name, left = self.how
        if name != how or not left:
            return False
        self.how = (name, left - 1)
        return True

    def start(self) -> bool:
        """Have a model of its own, of no weights that mean anything."""
        if self._wrong("refuses"):
            raise EngineError(f"{self.label} did not start")
        if self._model is not None:
            return False
        config = AutoConfig.from_pretrained(self._launch.folder, trust_remote_code=False)
        self._model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        self._version = None
        return True

    def sample(self, queue: GroupQueue, request: SamplingRequest) -> None:
        """Answer with ids of the seed and their log-probabilities."""
        while (group := queue.take()) is not None:
            if self._wrong("dies"):
                self._model = None
                raise ReplicaLost(f"{self.label} is gone")
            seeds = range(group.seed, group.seed + group.rollouts)
            queue.give(group, [self._one(list(group.prompt_ids), seed, request) for seed in seeds])
        if self._wrong("changes"):
            self._version = "somebody's"

    @torch.no_grad()
    def _one(self, prompt: list[int], seed: int, request: SamplingRequest) -> Sample:
        chance = torch.Generator().manual_seed(seed)
        ids = torch.randint(
            5, 50, (request.settings.max_response_length,), generator=chance
        ).tolist()
        logits_TV = self._model(torch.tensor([prompt + ids])).logits[0].float()
        found_TV = (logits_TV / request.settings.temperature).log_softmax(-1)[len(prompt) - 1 : -1]
        return Sample(ids, [float(found_TV[t, i]) for t, i in enumerate(ids)], "length")

    def update_weights(self, update_info: Mapping[str, Any]) -> None:
        """Load the file, unless it is missed."""
        self.loads += 1
        if not self._wrong("misses"):
            self._model.load_state_dict(load_file(update_info["path"]))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Take the name."""
        self._version = weight_version

    def weight_version(self) -> str | None:
        """Return the name."""
        return self._version

    def nothing(self, *_: Any) -> None:
        """Whatever else is asked of a replica."""

    init_weight_transfer_engine = start_weight_update = reset_prefix_cache = nothing
    sleep = wake = wake_cache = close = nothing


def stand_ins(config: Launch, _: Path) -> list[StandIn]:
    """Return a rank's replicas."""
    return [StandIn(config)]


def replica(number: int) -> StandIn:
    """Return this rank's replica."""
    found = rank_sampler.samplers[number]._replicas[0]
    assert isinstance(found, StandIn)
    return found


def behave(_: Policy, number: int, rank: int, how: str, times: int) -> None:
    """Have one rank's replica do something wrong."""
    if ranks.rank() == rank:
        replica(number).how = (how, times)


def loads(_: Policy, number: int) -> int:
    """Return how often this rank's replica got weights."""
    return replica(number).loads


def left(_: Policy) -> int:
    """Return how many samplers this rank has."""
    return len(rank_sampler.samplers)


@torch.no_grad()
def learn(policy: Policy, version: str) -> None:
    """Change every weight, and name the new policy."""
    for parameter in policy.trainable().values():
        parameter.mul_(1.05)
    policy.version = version


def all_cases(folder: Path) -> dict[str, Any]:
    """Go through what can happen, as rank 0."""
    policy = open_tiny(folder / "policy")
    config = load_config("demo", ["generate.engine=vllm"])
    engine = VllmEngine(config, policy)
    number, found = engine._number, dict[str, Any]()

    def sampled() -> Any:
        try:
            answers = engine.sample(PROMPTS, SEEDS, SETTINGS, lambda done, total: None)
        except SrpoError as error:
            return str(error)
        return [[(a.response_ids, a.logprobs) for a in group] for group in answers]

    found["first"], found["gap"] = sampled(), engine.facts["engine_probe_gap"]
    found["same weights"] = sampled() == found["first"], ranks.together(loads, policy, number)
    ranks.together(learn, policy, "000001-learned")
    found["learned"] = sampled()
    for rank in range(ranks.size()):
        for how, times in (("dies", 1), ("dies", 9), ("changes", 1), ("refuses", 1), ("misses", 1)):
            name = f"{how} {times} on {rank}"
            ranks.together(learn, policy, f"000002-{name}")
            ranks.together(behave, policy, number, rank, how, times)
            found[name] = sampled()
            ranks.together(behave, policy, number, rank, "", 0)
            found[f"{name}, then"] = sampled()
    engine.close()
    found["left"] = ranks.together(left, policy)
    return found


def on_two_ranks(folder: Path) -> dict[str, Any]:
    """Go through them on two ranks, in processes of their own."""
    launch("tests.ranks.run_rank_samplers", 2, folder, str(folder))
    found: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return found


def main() -> None:
    """Be one of the ranks."""
    torch.set_num_threads(1)
    rank_sampler._make_replicas = stand_ins  # type: ignore[assignment]
    folder = Path(sys.argv[1])
    with ranks.joined():
        if ranks.rank():
            ranks.follow()
            return
        (folder / "found.json").write_text(json.dumps(all_cases(folder)))


if __name__ == "__main__":
    main()
