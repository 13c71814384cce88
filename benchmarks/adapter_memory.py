"""Memory of adapters on a network of SmolLM2-135M's geometry, part by part, against the formula.

    python -m benchmarks.adapter_memory [--quick]

Each row is a fresh process: it opens a random model with `model.lora`, and makes two steps of
route, weigh and update on canned rollouts, eight of one prompt. Memory is the resident set: at the
start, when the policy is open, after the first update (AdamW has its moments), and at the peak
(VmHWM, reset before each stage) of the second. Freed memory goes back to the system in between.
The formula is that of docs/SCALING.md (`benchmarks.cost`). Linux only.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from benchmarks.cost import STATE, activations
from benchmarks.flops import SIZES
from benchmarks.peer import run
from benchmarks.vocabulary_memory import resident_mb

PROMPT, RESPONSE, CORRECT = 256, 64, 4
THREADS = 1
MB = 2**20
COLUMNS = (
    *("trained, base", "precision", "checkpointing", "opened", "after a step", "update takes"),
    *("route takes", "largest in all"),
)


class Case(NamedTuple):
    """One process to measure; no rank: full training."""

    base_dtype: str
    precision: str
    checkpointing: bool
    rank: int | None


CASES = (
    Case("float32", "float32", False, None),
    *(
        Case(base, precision, checkpointing, 16)
        for base in ("float32", "bfloat16")
        for precision in ("float32", "bfloat16")
        for checkpointing in (False, True)
    ),
)


def child(case: Case, folder: Path) -> dict[str, Any]:
    """Measure one case in this process; return megabytes."""
    from benchmarks.fixture import CannedEngine, Fixture, KnownRewards
    from benchmarks.ours import LEARNING, Job, config_of, return_free_memory
    from flows.session.new_run import teacher_settings
    from pipeline.config.sections import LoraSection
    from pipeline.distributed.process_setup import configure_process
    from pipeline.machine.peak_memory import PeakMemory
    from pipeline.policy.snapshots import open_policy
    from pipeline.sampling.engine import Sample
    from pipeline.stage.contract import Handles
    from pipeline.task import Verifier
    from stages.generate import STAGE as GENERATE
    from stages.verify import STAGE as VERIFY

    configure_process(THREADS)
    fixture = Fixture(folder)
    config = config_of(Job(folder, "update", precision=case.precision, questions=1), fixture)
    changed: dict[str, Any] = {"gradient_checkpointing": case.checkpointing}
    if case.rank is not None:
        changed |= {"lora": LoraSection(rank=case.rank), "base_dtype": case.base_dtype}
    config = config.model_copy(update={"model": config.model.model_copy(update=changed)})
    found = {"start": resident_mb()}
    memory = PeakMemory()
    policy = open_policy(str(folder), config.model, teacher_settings(config))
    policy.eos_ids = frozenset()
    found["opening"] = memory.megabytes() - found["start"]
    return_free_memory()
    found["opened"] = resident_mb() - found["start"]
    for step in range(2):
        samples = [
            [Sample(ids, [-1.0] * len(ids), "length") for ids in own]
            for own in fixture.completions(step, 1)
        ]
        handles = Handles(
            seed=0,
            step=step,
            tasks=["benchmark"],
            questions=fixture.questions(step, 1),
            policy=policy,
            engine=CannedEngine(samples),
            verifiers={"benchmark": Verifier("known/1", KnownRewards(fixture.rewards(step, 1)))},
        )
        tables: dict[str, Any] = {}
        for stage in (GENERATE, VERIFY, *LEARNING):
            return_free_memory()
            before, memory = resident_mb(), PeakMemory()
            tables |= stage.run(tables, config, handles).tables
            found[stage.name] = memory.megabytes() - before
        policy.finish_update(f"{step + 1:06d}-benchmark")
        return_free_memory()
        found.setdefault("state", resident_mb() - found["start"])
    found["again"] = resident_mb() - found["start"]
    found["parameters"] = sum(p.numel() for p in policy.model.parameters())
    found["trained"] = sum(p.numel() for p in policy.trainable().values())
    return found


def row(case: Case, sizes: Mapping[str, int], found: Mapping[str, Any]) -> list[str]:
    """Return a row of the table: megabytes measured, and by the formula in brackets."""
    trained = found["trained"]
    frozen = 0 if case.rank is None else found["parameters"] - trained
    base = (2 if case.base_dtype == "bfloat16" else 4) * frozen
    opened, state = base + 8 * trained, base + (STATE - 4) * trained
    tokens = PROMPT + 8 * (RESPONSE - 1)
    passing = activations(sizes, tokens, case.checkpointing) + 4 * trained
    return [
        "full" if case.rank is None else f"LoRA, {case.base_dtype}",
        case.precision,
        "yes" if case.checkpointing else "no",
        f"{found['opened']:,.0f} ({opened / MB:,.0f})",
        f"{found['state']:,.0f} ({state / MB:,.0f})",
        f"{found['update']:,.0f} ({passing / MB:,.0f})",
        f"{found['route']:,.0f}",
        f"{found['again'] + found['start'] + found['update']:,.0f}",
    ]


def main() -> None:
    """Measure all cases, or be one of the children."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small network, to try it out")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        case, folder = options.child
        print(json.dumps(child(Case(*json.loads(case)), Path(folder))))
        return
    from benchmarks.fixture import write_fixture

    sizes = SIZES["S" if options.quick else "R"]
    table = Table(*COLUMNS)
    with tempfile.TemporaryDirectory() as scratch:
        write_fixture(
            Path(scratch),
            sizes,
            prompts=2,
            prompt_tokens=PROMPT,
            completion_tokens=RESPONSE,
            correct=[CORRECT],
        )
        for case in CASES:
            command = [sys.executable, "-m", "benchmarks.adapter_memory"]
            command += ["--child", json.dumps(case), scratch]
            found = json.loads(run(command, THREADS).splitlines()[-1])
            print(case, found, flush=True)
            table.add_row(*row(case, sizes, found))
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
