"""Two ranks with a live engine each; torchrun starts it.

    python -m tests.live_vllm.run_rank_samplers FOLDER

What rank 0 finds is left in FOLDER/found.json.
"""

import json
import os
import signal
import sys
import time
from itertools import count
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import save_file

from pipeline.config.sections import ModelSection
from pipeline.distributed import ranks
from pipeline.errors import SrpoError
from pipeline.policy.policy import Policy, TeacherSettings
from pipeline.policy.snapshots import open_policy
from pipeline.sampling.engine import Sample
from pipeline.vllm import rank_sampler
from pipeline.vllm.http_replica import HttpReplica
from pipeline.vllm.replica import Group, Replica, SamplingRequest
from pipeline.vllm.vllm_engine import VllmEngine
from pipeline.vllm.weights import named_weights
from tests.live_vllm import live_engine
from tests.paths import PROJECT

FOLDER = PROJECT / "data" / "demo" / "policy"
TIMEOUT = 20.0


def learn(policy: Policy, version: str) -> None:
    """Change every weight and name the new policy."""
    live_engine.learn(policy, version, scale=0.02)


def forget(policy: Policy, number: int, rank: int) -> None:
    """Have a rank's engine get the weights of now under the next one's name."""
    own = rank_sampler.samplers[number]
    send, old = own._sender.send, own._folder / "old.safetensors"
    weights = {name: w.clone() for name, w in named_weights(policy.model, torch.float32)}

    def unsent(replicas: list[Replica], model: Any, version: str, restarted: bool) -> None:
        send([], model, version, restarted)
        for replica in replicas:
            replica.start_weight_update()
            replica.update_weights({"path": str(old), "tensors": len(weights)})
            replica.finish_weight_update(version)

    if ranks.rank() == rank:
        save_file(weights, old)
        own._sender.send = unsent  # type: ignore[method-assign,assignment]


def remember(_: Policy, number: int) -> None:
    """Have all ranks send what they have again."""
    rank_sampler.samplers[number]._sender.__dict__.pop("send", None)


def core_of(_: Policy) -> int:
    """Return the process in which this rank's engine computes."""
    (core,) = live_engine.cores_of(psutil.Process())
    return core.pid


def doom(_: Policy, number: int, rank: int, by: signal.Signals) -> None:
    """Have a rank's engine get a signal when it has begun to sample."""
    (replica,) = rank_sampler.samplers[number]._replicas
    assert isinstance(replica, HttpReplica)
    complete, requests = replica._complete, count()

    def killing(group: Group, request: SamplingRequest) -> list[Sample]:
        if next(requests) == 3:
            os.kill(core_of(_), by)
        return complete(group, request)

    if ranks.rank() == rank:
        replica._complete = killing  # type: ignore[method-assign]


def all_cases(policy: Policy, found: dict[str, Any]) -> None:
    """Go through what can happen, as rank 0."""
    engine = VllmEngine(live_engine.config(f"generate.timeout={TIMEOUT}"), policy)
    asked, of = live_engine.prompts(policy, 24), live_engine.seeds(24, 8)

    def sampled() -> Any:
        try:
            answers = live_engine.sample(engine, asked, of)
        except SrpoError as error:
            return str(error)
        return [[a.response_ids for a in group] for group in answers]

    found["first"], found["gaps"] = sampled(), [engine.facts["engine_probe_gap"]]
    ranks.together(forget, policy, engine._number, 1)
    ranks.together(learn, policy, "000001-one-behind")
    found["unsent"] = sampled()
    ranks.together(remember, policy, engine._number)
    found["learned"] = sampled()
    before = ranks.together(core_of, policy)
    ranks.together(doom, policy, engine._number, 1, signal.SIGKILL)
    found["killed"], found["cores"] = sampled(), [before, ranks.together(core_of, policy)]
    found["gaps"].append(engine.facts["engine_probe_gap"])
    ranks.together(doom, policy, engine._number, 1, signal.SIGSTOP)
    started = time.monotonic()
    found["hangs"], found["seconds"] = sampled(), time.monotonic() - started
    engine.close()


def main() -> None:
    """Be one of the ranks."""
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    with ranks.joined():
        if ranks.rank():
            ranks.follow()
            return
        section = ModelSection(path=str(FOLDER), device="cpu")
        policy = open_policy(str(FOLDER), section, TeacherSettings(kind="ema", rate=0.05, mix=0.05))
        found: dict[str, Any] = {}
        try:
            all_cases(policy, found)
        finally:
            (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
