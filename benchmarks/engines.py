"""Both sampling engines on the same prompts, in turn: tokens per second, and a transfer of weights.

    python -m benchmarks.engines [--quick] [--rounds 3]

Two policies: the demo's (0.35M parameters, vocabulary 148) and a random one of 30M parameters with
a vocabulary of 32,768. Needs an environment with vLLM (`make install-vllm`). vLLM runs in this
process with one thread and with two, and as one server. Speeds are medians over the rounds after
one of warm-up; a transfer is everything between two versions: weights, cache, check.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from benchmarks.report import surroundings
from data.random_policy import VOCABULARY, write_random_policy
from pipeline.config.load import load_config
from pipeline.config.sections import ModelSection
from pipeline.distributed.process_setup import configure_process
from pipeline.policy.policy import Policy, TeacherSettings
from pipeline.policy.snapshots import open_policy
from pipeline.sampling.engine import Engine, SamplingSettings
from pipeline.sampling.transformers_engine import TransformersEngine
from pipeline.vllm.vllm_engine import VllmEngine

_GROUP = 8
_PROMPT = 64
_CORPUS = "the quick brown fox jumps over the lazy dog and on to the next question of this set"
_KINDS = {
    "transformers": (),
    "vllm, in process, 1 thread": ("vllm.threads=1",),
    "vllm, in process, 2 threads": ("vllm.threads=2",),
    "vllm, one server, 1 thread": ("vllm.servers=1",),
}


class Case(NamedTuple):
    """A policy, and how much is sampled from it."""

    name: str
    folder: Path
    groups: int
    length: int


class Found(NamedTuple):
    """Tokens per second of each round, and seconds of each transfer and of the start."""

    speeds: list[float]
    transfers: list[float]
    start: float


def middle_policy(folder: Path) -> Path:
    """Write a random Qwen3 of 30M parameters: 9 layers, hidden 384, vocabulary 32,768, tied."""
    write_random_policy(folder, [_CORPUS], seed=0)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=384,
        intermediate_size=1152,
        num_hidden_layers=9,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    Qwen3ForCausalLM(config).save_pretrained(folder, safe_serialization=True)
    return folder


def measure(kind: str, case: Case, rounds: int) -> Found:
    """Sample the case's rollouts `rounds` times after one of warm-up, each with new weights."""
    section = ModelSection(path=str(case.folder), device="cpu")
    policy = open_policy(str(case.folder), section, TeacherSettings(kind="live", rate=0.0, mix=0.0))
    engine, close = _engine(kind, case, policy)
    settings = SamplingSettings(1.0, 1.0, 0, case.length, case.groups * _GROUP)
    generator = np.random.Generator(np.random.Philox(0))
    prompts = generator.integers(3, policy.vocabulary, (case.groups, _PROMPT)).tolist()
    seeds = [[1000 * i + j for j in range(_GROUP)] for i in range(case.groups)]
    found = Found([], [], _timed(lambda: engine.sample(prompts[:1], seeds[:1], settings, _silent)))
    try:
        for turn in range(rounds + 1):
            policy.version = f"{turn:06d}-bench"
            short = settings._replace(max_response_length=1)
            empty = _timed(lambda s=short: engine.sample(prompts[:1], seeds[:1], s, _silent))
            again = _timed(lambda s=short: engine.sample(prompts[:1], seeds[:1], s, _silent))
            started = time.perf_counter()
            answers = engine.sample(prompts, seeds, settings, _silent)
            seconds = time.perf_counter() - started
            if turn:
                tokens = sum(len(a.response_ids) for group in answers for a in group)
                found.speeds.append(tokens / seconds)
                found.transfers.append(max(0.0, empty - again))
    finally:
        close()
    return found


def _engine(kind: str, case: Case, policy: Policy) -> tuple[Engine, Callable[[], None]]:
    if kind == "transformers":
        return TransformersEngine(policy), lambda: None
    lengths = (f"generate.max_response_length={case.length}", f"data.max_prompt_length={_PROMPT}")
    batch = f"generate.batch_size={case.groups * _GROUP}"
    engine = VllmEngine(
        load_config("demo", ["generate.engine=vllm", *lengths, batch, *_KINDS[kind]]), policy
    )
    return engine, engine.close


def _timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _silent(done: int, total: int) -> None:
    """Report no progress."""


def show(name: str, found: dict[str, Found], console: Console) -> None:
    """Print one policy's table; ratios are to the engine transformers."""
    table = Table(title=f"{name}: {surroundings()}")
    for column in ("engine", "tokens/s", "ratio", "weights, s", "start, s"):
        table.add_column(column, justify="left" if column == "engine" else "right")
    ours = median(found["transformers"].speeds)
    for kind, figures in found.items():
        speed = median(figures.speeds)
        transfer = f"{median(figures.transfers):.2f}" if kind != "transformers" else "none"
        start = f"{figures.start:.1f}" if kind != "transformers" else "none"
        table.add_row(kind, f"{speed:,.0f}", f"{speed / ours:.2f}", transfer, start)
    console.print(table)


def cases(scratch: Path, quick: bool) -> Sequence[Case]:
    """Return the policies; `quick` is the demo's alone, and less of it."""
    demo = Case("demo policy", Path(str(files("data") / "demo" / "policy")), 32, 96)
    if quick:
        return [demo._replace(groups=8)]
    return [demo, Case("30M parameters", middle_policy(scratch / "middle"), 16, 128)]


def main() -> None:
    """Measure every engine on every policy and print the tables."""
    parser = argparse.ArgumentParser(prog="benchmarks.engines", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="less of the demo policy alone")
    parser.add_argument("--rounds", type=int, default=3, help="of each engine")
    parser.add_argument("--threads", type=int, default=2, help="of the engine transformers")
    arguments = parser.parse_args()
    configure_process(arguments.threads)
    console = Console(width=110, highlight=False)
    with tempfile.TemporaryDirectory() as scratch:
        for case in cases(Path(scratch), arguments.quick):
            show(case.name, {k: measure(k, case, arguments.rounds) for k in _KINDS}, console)


if __name__ == "__main__":
    main()
