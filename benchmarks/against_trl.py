"""TRL's trainers against ours: the same fixture, in turn, each measurement a fresh process.

    python -m benchmarks.against_trl [--quick] [--only TEXT] [--rounds 3] [--steps 2]
        [--peer FOLDER] [--peer-python PATH] [--results FOLDER] [--write PAGE]

Each row of the table runs TRL, then ours, `rounds` times over. A process's figure is the median of
its steps after warm-up, a side's figure the median of its processes; the ratio is that of these
medians, the range beside it that of the rounds. Figures of TRL are those of its own script:
`update` (student and teacher forward, loss, backward, clipping, optimizer, EMA), `generate`, `step`
and the peak memory of its update. Ours holds more: all of route, weigh and update, so also the
decisions, teacher prompts, tables and checksums.

Every process's figures are kept in a file of their own. What the folder `--results` holds already
is not measured again, so a comparison that was stopped goes on where it was; and rows that ask
different things of the same processes share them.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

from benchmarks.flops import SIZES, Network, Work, network, ours, sampling, theirs
from benchmarks.peer import CACHE, CORRECT, DEFAULT_PEER, Peer, Plan, Settings, run
from benchmarks.report import Line, markdown, show, write
from benchmarks.trl_lora import RANK
from pipeline.machine.flops import matmul_rate

Figures = dict[str, Any]
MICRO = 8
MICRO_MEMORY = 64
SMALL = 1024
"""Tokens of our micro-batches where TRL's has 8 rollouts of 128 tokens."""
_STATES = 5


class Both(NamedTuple):
    """Figures of the processes of both sides, round by round."""

    theirs: list[Figures]
    ours: list[Figures]


class Row(NamedTuple):
    """One row: what is measured on both sides, and the least ratio that we want (0: any)."""

    mode: str
    size: str
    prompt: int
    target: float
    method: str = "srpo"
    precision: str = "float32"
    response: int = 128
    lora: bool = False

    @property
    def work(self) -> str:
        """Name the row."""
        what = {
            "update": "route + weigh + update",
            "sample": f"sampling 64 x {self.response} tokens",
            "step": "whole step, tables on disk",
            "memory": "peak memory of update, micro-batch 64",
            "small": f"peak memory of update, micro-batch {MICRO}, ours {SMALL:,} tokens",
            "beyond": "peak memory beyond the state",
        }[self.mode]
        kind = "GRPO, " if self.method == "grpo" else ""
        lora = ", LoRA" if self.lora else ""
        precision = ", bfloat16" if self.precision == "bfloat16" else ""
        return f"{kind}{what}, {self.size}, prompt {self.prompt}{lora}{precision}"

    @property
    def network(self) -> Network:
        """Return the size of its network."""
        return network(SIZES[self.size], RANK if self.lora else 0)

    def theirs(self) -> Settings:
        """Return how TRL is run."""
        return Settings(
            trainer="grpo" if self.method == "grpo" else "sdpo",
            size=self.size,
            prompt=self.prompt,
            response=self.response,
            canned=self.mode not in ("sample", "step"),
            micro=MICRO_MEMORY if self.mode == "memory" else MICRO,
            bfloat16=self.precision == "bfloat16",
            lora=self.lora,
        )

    def ours(self, plan: Plan) -> dict[str, str | int]:
        """Return the options of our worker; a flag's value is empty."""
        return {
            "mode": {"small": "memory", "beyond": "update"}.get(self.mode, self.mode),
            "method": self.method,
            "precision": self.precision,
            "steps": plan.steps,
            "warmup": plan.warmup,
            "threads": plan.threads,
            **({"micro-batch-tokens": SMALL} if self.mode == "small" else {}),
            **({"lora": ""} if self.lora else {}),
        }


ROWS = [
    Row("update", "S", 32, 1.8),
    Row("update", "M", 32, 1.8),
    Row("update", "M", 256, 2.4),
    Row("update", "L", 256, 2.7),
    Row("update", "M", 256, 2.0, precision="bfloat16"),
    Row("sample", "S", 32, 1.5),
    Row("sample", "M", 32, 1.5),
    Row("step", "M", 256, 1.7),
    Row("memory", "M", 32, 5.0),
    Row("small", "M", 32, 0.0),
    Row("update", "M", 256, 3.5, method="grpo"),
    Row("update", "R", 256, 4.0, response=64),
    Row("beyond", "R", 256, 3.0, response=64),
    Row("step", "R", 256, 2.2, response=64),
    Row("update", "R", 256, 4.0, precision="bfloat16", response=64),
    Row("beyond", "R", 256, 3.0, precision="bfloat16", response=64),
    Row("update", "R", 256, 3.5, response=64, lora=True),
    Row("beyond", "R", 256, 3.0, response=64, lora=True),
    Row("update", "R", 256, 3.5, precision="bfloat16", response=64, lora=True),
    Row("beyond", "R", 256, 3.0, precision="bfloat16", response=64, lora=True),
]

MEMORY = ("memory", "small", "beyond")
_THEIR_PHASE = {"update": "update", "sample": "generate", "step": "step"}


class Results:
    """The figures of processes, one file each; what is there is not measured again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def of(
        self, side: str, options: Mapping[str, object], measure: Callable[[], Figures]
    ) -> Figures:
        """Return the figures of a process with these options, measured on first use."""
        named = "-".join(str(value) or name for name, value in options.items())
        path = self.folder / f"{side}-{named}.json"
        if not path.exists():
            text = json.dumps({"options": options, **measure()}, indent=1)
            path.with_suffix(".part").write_text(text, encoding="utf-8")
            path.with_suffix(".part").replace(path)
        found: Figures = json.loads(path.read_text(encoding="utf-8"))
        return found


def figure_of_trl(row: Row, found: Figures) -> tuple[float, float]:
    """Return TRL's figure for a row, and its CPU seconds."""
    cpu = found["median_cpu_s"][_THEIR_PHASE.get(row.mode, "update")]
    if row.mode in MEMORY:
        return float(found["peak_rss_mb"]["update"]) - state_mb(row), cpu
    return float(found["median_wall_s"][_THEIR_PHASE[row.mode]]), cpu


def figure_of_ours(row: Row, found: Figures) -> tuple[float, float]:
    """Return our figure for a row, and its CPU seconds."""
    cpu = found["median_cpu_s"]["all"]
    if row.mode in MEMORY:
        return float(found["peak_mb"]["all"]) - state_mb(row), cpu
    return float(found["median_wall_s"]["all"]), cpu


def state_mb(row: Row) -> float:
    """Return what a row leaves out of peak memory: the state that training itself needs, in MiB.

    Of each trained weight: itself, the EMA's, its gradient and AdamW's two moments. With LoRA these
    are the adapters', and the base is there once.
    """
    if row.mode != "beyond":
        return 0.0
    net = row.network
    weights = net.body + net.projection  # a multiply-add each; norms are left out
    held = weights + _STATES * net.adapters if row.lora else _STATES * weights
    return held * torch.float32.itemsize / 2**20


def measure_ours(fixture: Path, options: Mapping[str, str | int], plan: Plan) -> Figures:
    """Run our worker in a fresh process."""
    given = [t for name, value in options.items() for t in (f"--{name}", str(value)) if t]
    printed = run([sys.executable, "-m", "benchmarks.ours", str(fixture), *given], plan.threads)
    found: Figures = json.loads(printed.splitlines()[-1])
    return found


def compare(peer: Peer, row: Row, plan: Plan, results: Results) -> Both:
    """Measure a row, the two sides in turn."""
    fixture = peer.fixture(row.size, row.prompt, row.response)
    settings, options = row.theirs(), row.ours(plan)
    both = Both([], [])
    for number in range(plan.rounds):
        process = {"steps": plan.steps, "warmup": plan.warmup, "threads": plan.threads}
        named = {**settings._asdict(), **process, "round": number}
        both.theirs.append(results.of("trl", named, partial(peer.measure, settings, plan)))
        named = {"fixture": fixture.parent.name, "size": row.size, **options, "round": number}
        both.ours.append(results.of("ours", named, partial(measure_ours, fixture, options, plan)))
    return both


def line_of(row: Row, both: Both) -> Line:
    """Reduce the rounds of a row to its line."""
    a = [figure_of_trl(row, found) for found in both.theirs]
    b = [figure_of_ours(row, found) for found in both.ours]
    first, second = (median(value for value, _ in side) for side in (a, b))
    each = [x / y for (x, _), (y, _) in zip(a, b, strict=True)]
    unit, digits = ("MB", 0) if row.mode in MEMORY else ("s", 2)
    spread = f" ({min(each):.2f} to {max(each):.2f})" if len(each) > 1 else ""
    return Line(
        work=row.work,
        theirs=f"{first:,.{digits}f} {unit}",
        ours=f"{second:,.{digits}f} {unit}",
        ratio=f"{first / second:.2f}{spread}",
        target=f"at least {row.target}" if row.target else "",
        met=first / second >= row.target if row.target else None,
        flops=floor(row),
        cpu=" / ".join(f"{median(cpu for _, cpu in side):.1f}" for side in (a, b)),
        stalled=" / ".join(f"{median(f['stall_share'] for f in side):.0%}" for side in both),
    )


def floor(row: Row) -> str:
    """Return the ratio of counted operations (`benchmarks.flops`); nothing for memory."""
    if row.mode in MEMORY:
        return ""
    first, second = operations(row)
    dtype = torch.bfloat16 if row.precision == "bfloat16" else torch.float32
    return f"{first / second:.2f} ({second / _rate(dtype):.2f} s)"


def operations(row: Row) -> tuple[float, float]:
    """Return the operations of TRL and of ours."""
    net, work = row.network, Work(row.prompt, row.response, [int(c) for c in CORRECT.split(",")])
    found = []
    for learning, prompts_apart in ((theirs, True), (ours, False)):
        total = sampling(net, work, prompts_apart).total if row.mode != "update" else 0.0
        if row.mode != "sample":
            total += learning(net, work, row.method).total
        found.append(total)
    return found[0], found[1]


@cache
def _rate(dtype: torch.dtype) -> float:
    return matmul_rate(torch.device("cpu"), dtype)


def same_rollouts(measured: Mapping[Row, Both]) -> list[str]:
    """Say how whole steps compare if TRL, too, learns from canned rollouts.

    TRL's whole step learns from its own samples, of which about half of each group are right; ours
    learns from canned groups, of which two have no gradient. So TRL's sampling time is added to the
    time of its canned step, where both were measured.
    """
    notes = []
    named = {row.work: both for row, both in measured.items()}
    for row, both in measured.items():
        learned = named.get(row._replace(mode="update").work)
        if row.mode == "step" and learned is not None:
            sampled = median(f["median_wall_s"]["generate"] for f in both.theirs)
            canned = median(f["median_wall_s"]["step"] for f in learned.theirs)
            own = median(f["median_wall_s"]["all"] for f in both.ours)
            notes.append(
                f"{row.work}: TRL's row learns from what it sampled. With its sampling "
                f"({sampled:.2f} s) and its step on the same canned rollouts as ours "
                f"({canned:.2f} s) the ratio is {(sampled + canned) / own:.2f}."
            )
    return notes


def notes_of(quick: bool, plan: Plan) -> list[str]:
    """Say how the table was made."""
    return [
        *(["A quick trial: every row at size S, for which there are no targets."] if quick else []),
        f"TRL 1.16.0 and ours in turn. Rounds of fresh processes: {plan.rounds}; steps of each: "
        f"{plan.steps} after {plan.warmup} of warm-up; threads: {plan.threads}. A step has 8 "
        f"prompts x 8 rollouts x 128 tokens (R: 64); of the 8 groups {CORRECT} are right. TRL's "
        f"micro-batch is {MICRO}, ours the default token budget. Processes of R have one step "
        "after warm-up.",
        "TRL's update: student and teacher forward, loss, backward, clipping, optimizer, EMA. "
        "Ours: these, and decisions, teacher prompts, tables, checksum.",
        f"LoRA: rank {RANK} in all seven linear layers on both sides (TRL through peft), a float32 "
        "base; in bfloat16, both compute under autocast.",
        "By FLOPs: the ratio of the operations that both sides need, and in brackets the seconds "
        "that ours would take at the rate of a large matrix product on this machine.",
        "Ratios are of medians; in brackets the least and the largest of a round. Stalled: share "
        "of the time in which some task of the machine waited for a CPU, near 0 on a quiet one.",
    ]


def trl_lines(arguments: argparse.Namespace) -> tuple[list[Line], list[str]]:
    """Measure the rows that are asked for; without the peer, return a note instead."""
    peer = Peer(arguments.peer, arguments.cache, arguments.peer_python)
    problem = peer.missing()
    if problem is not None:
        print(f"TRL's side is absent: {problem}")
        return [], [f"Not compared with TRL, which is absent: {problem}."]
    torch.set_num_threads(arguments.threads)
    plan = Plan(arguments.rounds, arguments.steps, 1, arguments.threads)
    if arguments.quick:
        plan = plan._replace(rounds=1, steps=1)
    smaller = {"size": "S", "target": 0.0} if arguments.quick else {}
    chosen = (row._replace(**smaller) for row in ROWS if arguments.only in row.work)
    rows = dict.fromkeys(chosen)
    measured: dict[Row, Both] = {}
    lines = []
    results = Results(
        arguments.results or arguments.cache / f"results-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    )
    for row in rows:
        # A step of R takes TRL two minutes.
        own = plan._replace(steps=1) if row.size == "R" else plan
        measured[row] = compare(peer, row, own, results)
        lines.append(line := line_of(row, measured[row]))
        print(f"{line.work}: TRL {line.theirs}, ours {line.ours}, ratio {line.ratio}", flush=True)
    print(f"each process's figures: {results.folder}")
    return lines, [*notes_of(arguments.quick, plan), *same_rollouts(measured)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the comparison."""
    parser.add_argument("--quick", action="store_true", help="one round at size S, to try it out")
    parser.add_argument("--only", default="", help="only rows whose name has this text")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each side and row")
    parser.add_argument("--steps", type=int, default=2, help="steps of a process after warm-up")
    parser.add_argument("--threads", type=int, default=2, help="of either side")
    parser.add_argument("--peer", type=Path, default=DEFAULT_PEER, help="folder of TRL's scripts")
    parser.add_argument("--peer-python", type=Path, help="Python of an environment with TRL")
    parser.add_argument("--cache", type=Path, default=CACHE, help="environment and fixtures")
    parser.add_argument("--results", type=Path, help="folder of each process's figures")
    parser.add_argument("--write", type=Path, help="page to write the table into")


def main() -> None:
    """Measure, print the table, write it into a page if one is named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    arguments = parser.parse_args()
    lines, notes = trl_lines(arguments)
    show(lines, notes)
    if arguments.write:
        write(arguments.write, markdown(lines, notes))


if __name__ == "__main__":
    main()
