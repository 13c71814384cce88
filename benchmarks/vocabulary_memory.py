"""Peak memory of an update at a vocabulary of 150,000, by the token budget of a micro-batch.

    python -m benchmarks.vocabulary_memory [--quick]

A larger micro-batch holds more activations of the body; logits must not grow with it. So the same
step is also measured with a tiny vocabulary, whose logits take next to nothing. The difference is
what the vocabulary costs; it must grow by less than 20% from a budget of 1,024 tokens to 16,384.

Memory is the growth of the resident set at its peak (VmHWM, reset before the update), in a fresh
process per figure. Before the count begins, memory freed by earlier stages is returned to the
system and the optimizer has its state. Linux only.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.peer import run
from benchmarks.report import Line, show

LARGE, TINY = 150_000, 128
BUDGETS = (1024, 16_384)
LIMIT = 0.2
NETWORK = {
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
}
PROMPT, RESPONSE, GROUPS, CORRECT = 16, 250, 8, 4
"""64 rollouts: 16,064 tokens of packed rows, just below the larger budget."""
THREADS = 2


class Case(NamedTuple):
    """One figure to measure."""

    vocabulary: int
    budget: int
    groups: int


def child(case: Case) -> float:
    """Measure one case in this process; return the growth in MB."""
    from benchmarks.fixture import write_fixture
    from benchmarks.ours import LEARNING, Bench, Job, return_free_memory
    from pipeline.machine.peak_memory import PeakMemory

    with tempfile.TemporaryDirectory() as scratch:
        write_fixture(
            Path(scratch),
            {"vocab_size": case.vocabulary, **NETWORK},
            prompts=case.groups,
            prompt_tokens=PROMPT,
            completion_tokens=RESPONSE,
            correct=[CORRECT],
        )
        job = Job(
            Path(scratch),
            "update",
            steps=1,
            warmup=0,
            threads=THREADS,
            questions=case.groups,
            micro_batch_tokens=case.budget,
        )
        bench = Bench(job)
    handles = bench.handles(0)
    tables = bench.given(handles)
    *before, update = LEARNING
    for stage in before:
        tables.update(stage.run(tables, bench.config, handles).tables)
    make_state(bench.policy.optimizer)
    return_free_memory()
    resident, memory = resident_mb(), PeakMemory()
    update.run(tables, bench.config, handles)
    return memory.megabytes() - resident


def make_state(optimizer: Any) -> None:
    """Make the optimizer allocate its state, by a step with zero gradients."""
    import torch

    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def resident_mb() -> float:
    """Return the resident set of this process."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024


def spawn(case: Case) -> float:
    """Measure one case in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.vocabulary_memory", "--child", json.dumps(case)]
    peak: float = json.loads(run(command, THREADS).splitlines()[-1])
    print(f"vocabulary {case.vocabulary:,}, budget {case.budget:,} tokens: {peak:,.0f} MB")
    return peak


def memory_lines(quick: bool) -> tuple[list[Line], list[str]]:
    """Measure all cases and return the table's line and its note."""
    large, groups = (15_000, 4) if quick else (LARGE, GROUPS)
    few, many = BUDGETS
    found = {(v, b): spawn(Case(v, b, groups)) for v in (large, TINY) for b in BUDGETS}
    own = {budget: found[large, budget] - found[TINY, budget] for budget in BUDGETS}
    growth = own[many] / own[few] - 1
    line = Line(
        work=f"update's memory beyond the body's, vocabulary {large:,}, budget {few:,} to {many:,}",
        ours=f"{own[few]:,.0f} to {own[many]:,.0f} MB",
        ratio=f"{growth:+.0%}",
        target=f"below +{LIMIT:.0%}",
        met=None if quick else growth < LIMIT,
    )
    parts = ", ".join(
        f"budget {budget:,}: {found[large, budget]:,.0f} MB of which the body "
        f"{found[TINY, budget]:,.0f}"
        for budget in BUDGETS
    )
    note = (
        f"Vocabulary {large:,}: growth of the resident set at its peak in the update of "
        f"{groups * 8} rollouts of {RESPONSE} tokens; {parts} (the same network and tokens with a "
        f"vocabulary of {TINY}). `update.projection_mb` is the default."
    )
    return [line], [note]


def main() -> None:
    """Measure all cases, or be one of the children."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a smaller vocabulary, to try it out")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(child(Case(*json.loads(arguments.child)))))
        return
    show(*memory_lines(arguments.quick))


if __name__ == "__main__":
    main()
