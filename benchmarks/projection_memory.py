"""Peak memory of the passes that touch the vocabulary, at V = 150,000: O(chunk x V), not O(N x V).

Measured as the growth of the process's resident set (VmHWM, reset just before the pass, less VmRSS
then), in a fresh child process per figure, on a CPU. That counts everything: torch's tensors and
workspaces, autograd's, the allocator's. Allocations over 1 MB are mapped one by one and go back to
the system when freed (MALLOC_MMAP_THRESHOLD_), so that the figure is not the heap's history. The
model is made, and a pass over 4 tokens done, before the count begins.

    python benchmarks/projection_memory.py
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

VOCABULARY = 150_000
HIDDEN = 64
KEPT = 100
PROMPT = 16
RESPONSE = 256
PASSES = ("student", "teacher", "update")
CHUNKS = (32, 128, 512)
TOKENS = (2048, 4096)
FIXED_CHUNK = 128
MB = 2**20
PARALLEL = 2


class Case(NamedTuple):
    """One figure to measure."""

    name: str
    chunk: int
    tokens: int

    @property
    def chunk_mb(self) -> float:
        """Return the size of one float32 [chunk, V] tensor."""
        return self.chunk * VOCABULARY * 4 / MB

    @property
    def naive_mb(self) -> float:
        """Return the size of one float32 [N, V] tensor."""
        return self.tokens * VOCABULARY * 4 / MB


class Figure(NamedTuple):
    """What a child measured."""

    peak_mb: float
    seconds: float


def status_mb(key: str) -> float:
    """Return a field of /proc/self/status."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:")) / 1024


def measured(work: Callable[[], object]) -> Figure:
    """Run something and return by how much the resident set grew at its peak."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # VmHWM starts anew
    before, started = status_mb("VmRSS"), time.perf_counter()
    work()
    return Figure(status_mb("VmHWM") - before, time.perf_counter() - started)


def child(case: Case) -> Figure:
    """Measure one case in this process."""
    import torch

    torch.set_num_threads(1)
    model = small_model()
    prepare, work = pass_of(case.name, model)
    work(prepare(4, RESPONSE), case.chunk)
    model.zero_grad(set_to_none=True)
    batch = prepare(case.tokens, RESPONSE)
    return measured(lambda: work(batch, case.chunk))


def small_model() -> Any:
    """Return a random Qwen3 of one narrow layer and a large vocabulary."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=VOCABULARY,
            hidden_size=HIDDEN,
            intermediate_size=128,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=32,
            tie_word_embeddings=True,
        )
    ).eval()


def pass_of(
    name: str, model: Any
) -> tuple[Callable[[int, int], Any], Callable[[Any, int], object]]:
    """Return what makes a batch of N tokens, and the pass over it with a chunk size."""
    import torch

    from pipeline.config import UpdateSection
    from pipeline.scoring import Component, Forward, score_student, score_teacher
    from stages.update.batch import flatten
    from stages.update.objective import token_losses

    cpu = torch.device("cpu")

    def temperature_N(batch: Any) -> Any:
        return torch.ones(sum(r.tokens for r in batch))

    def student(batch: Any, chunk: int) -> object:
        sequences = [r.sequence for r in batch]
        return score_student(
            model, sequences, temperature_N(batch), KEPT, Forward(cpu, False, chunk)
        )

    def teacher(batch: Any, chunk: int) -> object:
        ids_NK = torch.arange(KEPT).expand(sum(r.tokens for r in batch), KEPT)
        return score_teacher(
            [Component(model, 1.0)],
            [r.sequence for r in batch],
            temperature_N(batch),
            ids_NK,
            Forward(cpu, False, chunk),
        )

    def update(batch: Any, chunk: int) -> object:
        flat = flatten(batch, KEPT, cpu)
        losses = token_losses(model, flat, UpdateSection(), Forward(cpu, False, chunk))
        torch.autograd.backward(losses.loss_N.sum() / len(flat.targets_N))
        return None

    return taught_rollouts, {"student": student, "teacher": teacher, "update": update}[name]


def taught_rollouts(tokens: int, length: int) -> Any:
    """Return taught rollouts of at most `length` tokens with `tokens` in all; the worst case."""
    import numpy as np

    from pipeline.scoring import TokenSequence
    from stages.update.batch import Rollout, Taught

    generator = np.random.default_rng(0)
    rollouts = []
    for start in range(0, tokens, length):
        size = min(length, tokens - start)
        ids = generator.integers(0, VOCABULARY, PROMPT + size).tolist()
        uniform = np.full((size, KEPT), -np.log(VOCABULARY), dtype=np.float32)
        taught = Taught(
            topk_ids_TK=np.tile(np.arange(KEPT, dtype=np.int32), (size, 1)),
            teacher_logprobs_TK=uniform,
            teacher_tail_T=np.full(size, np.log1p(-KEPT / VOCABULARY), dtype=np.float32),
            teacher_logprob_T=uniform[:, 0],
            weight_T=np.ones(size, dtype=np.float32),
        )
        rollouts.append(
            Rollout(
                rollout_id=f"000000-0000-{start // length:02d}",
                sequence=TokenSequence(ids[:PROMPT], ids[PROMPT:]),
                temperature=1.0,
                route="sdpo",
                mini_batch=0,
                advantage=0.0,
                sampled_logprobs_T=uniform[:, 0],
                old_source="live",
                old_logprobs_T=None,
                taught=taught,
                computed=True,
            )
        )
    return rollouts


def spawn(case: Case) -> Figure:
    """Measure one case in a fresh process."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(MB), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--child", json.dumps(case)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{case} failed:\n{done.stderr}")
    return Figure(*json.loads(done.stdout.splitlines()[-1]))


def report(console: Console, found: dict[Case, Figure]) -> None:
    """Print peaks, and their ratios to one [chunk, V] and to one [N, V] float32 tensor."""
    table = Table(title=f"peak memory of one pass, V = {VOCABULARY:,}, K = {KEPT}, float32")
    names = ("pass", "chunk", "tokens", "peak MB", "chunk x V MB", "peak / chunk x V")
    for name in (*names, "N x V MB", "peak / N x V", "seconds"):
        table.add_column(name, justify="left" if name == "pass" else "right")
    for case, figure in found.items():
        table.add_row(
            case.name,
            str(case.chunk),
            str(case.tokens),
            f"{figure.peak_mb:.0f}",
            f"{case.chunk_mb:.0f}",
            f"{figure.peak_mb / case.chunk_mb:.2f}",
            f"{case.naive_mb:.0f}",
            f"{figure.peak_mb / case.naive_mb:.3f}",
            f"{figure.seconds:.1f}",
        )
    console.print(table)
    for name in PASSES:
        small, large = (found[Case(name, c, TOKENS[0])] for c in (CHUNKS[0], CHUNKS[-1]))
        slope = (large.peak_mb - small.peak_mb) / ((CHUNKS[-1] - CHUNKS[0]) * VOCABULARY * 4 / MB)
        console.print(f"{name}: {slope:.1f} copies of chunk x V float32 at the peak")
    few, many = (found[Case("update", FIXED_CHUNK, n)] for n in TOKENS)
    console.print(
        f"update, {TOKENS[1] // TOKENS[0]} times the tokens at chunk {FIXED_CHUNK}: "
        f"{many.peak_mb / few.peak_mb:.2f} times the memory"
    )


def main() -> None:
    """Measure all cases, or be one of the children."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(child(Case(*json.loads(arguments.child)))))
        return
    cases = [Case(name, chunk, TOKENS[0]) for name in PASSES for chunk in CHUNKS]
    cases += [Case("update", FIXED_CHUNK, TOKENS[1])]
    with ThreadPoolExecutor(PARALLEL) as pool:
        found = dict(zip(cases, pool.map(spawn, cases), strict=True))
    report(Console(width=120, markup=False), found)


if __name__ == "__main__":
    main()
