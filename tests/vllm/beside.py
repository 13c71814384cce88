"""Two ranks with a live engine beside each: `python -m tests.vllm.beside FOLDER`, by torchrun.

What rank 0 finds is left in FOLDER/found.json.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch

from pipeline import ranks
from pipeline.config import ModelSection
from pipeline.errors import SrpoError
from pipeline.policy import Policy, TeacherSettings
from pipeline.snapshots import open_policy
from pipeline.vllm import station
from pipeline.vllm.engine import VllmEngine
from pipeline.vllm.host import Host
from tests.vllm import live

FOLDER = Path(__file__).parents[2] / "data" / "demo" / "policy"
TIMEOUT = 8.0


def learn(policy: Policy, version: str) -> None:
    """Change every weight and name the new policy."""
    live.learn(policy, version, scale=0.02)


def forget(_: Policy, number: int, rank: int) -> None:
    """Have a rank write its rows as all do, and not tell its engine of the file."""
    own = station.stations[number]
    send = own._sender.send

    def unsent(hosts: list[Host], model: Any, version: str, anew: bool) -> None:
        send([], model, version, anew)
        for host in hosts:
            host.start_weight_update()
            host.finish_weight_update(version)

    if ranks.rank() == rank:
        own._sender.send = unsent  # type: ignore[method-assign,assignment]


def remember(_: Policy, number: int) -> None:
    """Have all ranks send what they have again."""
    station.stations[number]._sender.__dict__.pop("send", None)


def core_of(_: Policy) -> int:
    """Return the process in which this rank's engine computes."""
    return next(
        p.pid for p in psutil.Process().children(recursive=True) if "EngineCore" in p.name()
    )


def all_cases(policy: Policy) -> dict[str, Any]:
    """Go through what can happen, as rank 0."""
    engine = VllmEngine(live.config(f"generate.timeout={TIMEOUT}"), policy)
    asked, of = live.prompts(policy, 24), live.seeds(24, 8)

    def sampled(told: Callable[[int, int], None] = lambda done, total: None) -> Any:
        try:
            answers = live.sample(engine, asked, of, progress=told)
        except SrpoError as error:
            return str(error)
        return [[a.response_ids for a in group] for group in answers]

    found: dict[str, Any] = {"first": sampled(), "gaps": [engine.facts["engine_probe_gap"]]}
    ranks.together(learn, policy, "000001-one-behind")
    ranks.together(forget, policy, engine._number, 1)
    found["unsent"] = sampled()
    ranks.together(remember, policy, engine._number)
    found["learned"] = sampled()
    cores = ranks.together(core_of, policy)
    killed: list[int] = []

    def kill(done: int, total: int) -> None:
        if not killed:
            killed.append(done)
            os.kill(cores[1], signal.SIGKILL)

    found["killed"] = sampled(kill)
    found["cores"] = cores, ranks.together(core_of, policy)
    found["gaps"].append(engine.facts["engine_probe_gap"])
    os.kill(ranks.together(core_of, policy)[1], signal.SIGSTOP)
    started = time.monotonic()
    found["hangs"], found["seconds"] = sampled(), time.monotonic() - started
    engine.close()
    return found


def main() -> None:
    """Be one of the ranks."""
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    with ranks.joined():
        if ranks.rank():
            ranks.follow()
            return
        section = ModelSection(path=str(FOLDER), device="cpu")
        policy = open_policy(str(FOLDER), section, TeacherSettings("ema", 0.05, 0.05))
        (folder / "found.json").write_text(json.dumps(all_cases(policy)))


if __name__ == "__main__":
    main()
