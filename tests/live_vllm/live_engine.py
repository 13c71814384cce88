"""What the tests of live engines share: a policy that learns, and independent log-probabilities."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import psutil
import torch

from pipeline.config.load import load_config
from pipeline.config.sections import Config
from pipeline.policy.policy import Policy
from pipeline.sampling.engine import Sample, SamplingSettings
from pipeline.vllm.vllm_engine import VllmEngine

SETTINGS = SamplingSettings(
    temperature=1.0, top_p=1.0, top_k=0, max_response_length=48, batch_size=64
)


def config(*settings: str) -> Config:
    """Return the demo's configuration with vLLM as its engine."""
    return load_config("demo", ["generate.engine=vllm", *settings])


@contextmanager
def running(policy: Policy, *settings: str) -> Iterator[VllmEngine]:
    """Have an engine, and end it."""
    engine = VllmEngine(config(*settings), policy)
    try:
        yield engine
    finally:
        engine.close()


def prompts(policy: Policy, count: int, length: int = 60) -> list[list[int]]:
    """Return prompts of random ids."""
    generator = np.random.Generator(np.random.Philox(7))
    return [generator.integers(0, policy.vocabulary, length - i).tolist() for i in range(count)]


def seeds(count: int, each: int) -> list[list[int]]:
    """Return seeds of groups, far apart."""
    return [[1_000 * (i + 1) + j for j in range(each)] for i in range(count)]


def sample(
    engine: VllmEngine,
    asked: list[list[int]],
    of: list[list[int]],
    settings: SamplingSettings = SETTINGS,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[list[Sample]]:
    """Sample without telling anybody."""
    return engine.sample(asked, of, settings, progress)


@torch.no_grad()
def logprobs(policy: Policy, prompt: list[int], response: list[int], heat: float) -> list[float]:
    """Return log-probabilities by a plain forward pass over one sequence, in float64."""
    ids = torch.tensor([prompt + response])
    logits_TV = policy.model(input_ids=ids, use_cache=False).logits[0].double() / heat
    found_T = logits_TV.log_softmax(-1)[len(prompt) - 1 : -1]
    return [float(found_T[t, token]) for t, token in enumerate(response)]


def largest_gap(
    policy: Policy, asked: list[list[int]], answers: list[list[Sample]], heat: float = 1.0
) -> float:
    """Return the largest difference between engine and policy over all tokens, nats."""
    return max(
        abs(theirs - ours)
        for prompt, group in zip(asked, answers, strict=True)
        for answer in group
        for theirs, ours in zip(
            answer.logprobs, logprobs(policy, prompt, answer.response_ids, heat), strict=True
        )
    )


@torch.no_grad()
def learn(policy: Policy, version: str, scale: float = 1e-3) -> None:
    """Change every weight a little, as an update does, and name the new policy."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(len(version) + sum(map(ord, version)))
        for parameter in policy.trainable().values():
            parameter.add_(torch.randn_like(parameter), alpha=scale)
    policy.version = version


def children() -> set[int]:
    """Return the processes below this one that are alive."""
    below = psutil.Process().children(recursive=True)
    return {p.pid for p in below if p.is_running() and p.status() != psutil.STATUS_ZOMBIE}


def guards() -> set[int]:
    """Return the guards of vLLM's servers on this machine, also those whose parent is gone."""
    every = psutil.process_iter(["cmdline"])
    return {p.pid for p in every if "pipeline.vllm.process_guard" in (p.info["cmdline"] or ())}


def servers_of(engine: VllmEngine) -> list[Any]:
    """Return the processes of vLLM's servers, below their guards."""
    found = psutil.Process().children(recursive=True)
    return [
        p
        for p in found
        if "vllm.entrypoints.openai.api_server" in p.cmdline()
        and "pipeline.vllm.process_guard" not in p.cmdline()
    ]


def cores_of(process: psutil.Process) -> list[psutil.Process]:
    """Return the processes in which engines compute: children of servers, below a process."""
    below = process.children(recursive=True)
    servers = [
        p
        for guard in below
        if "pipeline.vllm.process_guard" in guard.cmdline()
        for p in guard.children()
    ]
    return [p for s in servers for p in s.children() if "resource_tracker" not in str(p.cmdline())]
