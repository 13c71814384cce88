"""What a step costs beyond its stages: tables, digests and fsync, and Prefect on top.

Runs the real training loop on the shipped demo policy, in turn without and with Prefect. A step's
wall time is the time between two ends of steps; its stages' own seconds are those of their
manifests (`Stage.run` alone). The difference is the overhead: reading and checking tables, writing,
hashing and syncing them, manifests, metrics, and the flow. On a busy machine wall time includes
other work, so this process's CPU time outside of `Stage.run` is shown beside it (without waits for
the disk and without Prefect's server, which is a process of its own).

    python benchmarks/step_overhead.py [--rounds 2]
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from flows.prefect_api.server import open_server
from flows.session.session import Session
from flows.session.stage_runner import STAGES
from flows.training.loop import Watcher, train
from pipeline.config.load import validate_config
from pipeline.stage.contract import Output, Stage

# The first steps also warm caches up and start the verifier's children.
WARM_UP = 3
LIMIT_MS = 100.0


class Size(NamedTuple):
    """How large a step is, and how many are run."""

    questions: int
    rollouts: int
    steps: int


class Timing(NamedTuple):
    """Seconds of one step: wall clock, its stages, and CPU outside its stages."""

    wall: float
    stages: float
    cpu: float

    @property
    def overhead_ms(self) -> float:
        """Return the time that no stage accounts for."""
        return 1000 * (self.wall - self.stages)


SIZES = [Size(4, 4, 13), Size(32, 8, 8)]


class StageClock:
    """Adds up the CPU seconds spent in `Stage.run`, of all stages."""

    def __init__(self) -> None:
        self.cpu = 0.0

    def watch(self, stage: Stage) -> Stage:
        """Return a stage whose `run` is timed."""

        def run(*arguments: Any) -> Output:
            started = time.process_time()
            try:
                return stage.run(*arguments)
            finally:
                self.cpu += time.process_time() - started

        return replace(stage, run=run)


class Clock(Watcher):
    """Measures the time from the end of one step to the end of the next."""

    def __init__(self, stages: StageClock) -> None:
        self.timings: list[Timing] = []
        self._stages = stages
        self._last: tuple[float, float] | None = None

    def step_ended(self, steps_done: int, metrics: dict[str, Any]) -> None:
        """Note a step's wall time and its stages' seconds."""
        now = time.perf_counter(), time.process_time() - self._stages.cpu
        if self._last is not None:
            wall, cpu = now[0] - self._last[0], now[1] - self._last[1]
            self.timings.append(Timing(wall, metrics["seconds"], cpu))
        self._last = now


def plain(session: Session, clock: Clock) -> None:
    """Train without Prefect."""
    train(session, session.run_stage, [clock], lambda: False)


def with_prefect(session: Session, clock: Clock) -> None:
    """Train as `srpo train` does, on the server of the run's root."""
    # Prefect reads the server's address when it is imported, so the lease must come first.
    from flows.training.train_flow import run_training

    run_training(session, [clock])


def measure(
    folder: Path, size: Size, way: Callable[[Session, Clock], None], stages: StageClock
) -> list[Timing]:
    """Train a fresh run and return the steps' timings, warm-up left out."""
    config = validate_config(
        {
            "run": {"steps": size.steps, "snapshot_every": 1000, "threads": 1},
            "data": {"task": "arithmetic", "max_prompt_length": 64},
            "model": {"path": "demo", "device": "cpu"},
            "generate": {
                "questions": size.questions,
                "rollouts": size.rollouts,
                "max_response_length": 64,
            },
            "route": {"top_k": 16, "max_teacher_prompt_length": 192},
            "update": {"learning_rate": 1e-4},
            "evaluate": {
                "every": 1000,
                "questions": 2,
                "rollouts": 2,
                "max_response_length": 64,
            },
        },
        "step_overhead",
    )
    clock = Clock(stages)
    session = Session.create(folder, config)
    try:
        way(session, clock)
    finally:
        session.close()
    return clock.timings[WARM_UP - 1 :]


def report(console: Console, found: dict[tuple[Size, str], list[Timing]]) -> None:
    """Print medians, and ratios to the stages' own seconds."""
    table = Table(title="per step, medians")
    for name in ("step", "way"):
        table.add_column(name)
    for name in ("steps", "wall s", "stages s", "overhead ms", "of stages", "90% ms", "CPU ms"):
        table.add_column(name, justify="right")
    for (size, way), timings in found.items():
        stages = statistics.median(t.stages for t in timings)
        overheads = [t.overhead_ms for t in timings]
        overhead = statistics.median(overheads)
        table.add_row(
            f"{size.questions} x {size.rollouts}",
            way,
            str(len(timings)),
            f"{statistics.median(t.wall for t in timings):.3f}",
            f"{stages:.3f}",
            f"{overhead:.1f}",
            f"{overhead / 1000 / stages:.1%}",
            f"{statistics.quantiles(overheads, n=10)[-1]:.1f}",
            f"{statistics.median(1000 * t.cpu for t in timings):.1f}",
        )
    console.print(table)
    for size in SIZES:
        ways = {
            way: statistics.median(t.overhead_ms for t in timings)
            for (s, way), timings in found.items()
            if s == size
        }
        own, whole = ways["without Prefect"], ways["with Prefect"]
        console.print(
            f"{size.questions} x {size.rollouts} rollouts: overhead {whole:.1f} ms = tables "
            f"{own:.1f} ms + Prefect {whole - own:.1f} ms; {whole / LIMIT_MS:.2f} of the limit "
            f"of {LIMIT_MS:g} ms"
        )


def main() -> None:
    """Measure all sizes, the two ways in turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1, help="runs of each size and way")
    rounds = parser.parse_args().rounds
    ways = {"without Prefect": plain, "with Prefect": with_prefect}
    found: dict[tuple[Size, str], list[Timing]] = {
        (size, way): [] for size in SIZES for way in ways
    }
    stages = StageClock()
    for name, stage in STAGES.items():
        STAGES[name] = stages.watch(stage)
    with tempfile.TemporaryDirectory() as root:
        server = open_server(Path(root))
        try:
            server.wait()
            for number in range(rounds):
                for size, way in found:
                    folder = Path(root) / f"{size.questions}-{len(way)}-{number}"
                    found[size, way] += measure(folder, size, ways[way], stages)
                    print(f"round {number + 1}: {size.questions} x {size.rollouts} {way}: done")
        finally:
            server.release()
    report(Console(width=110), found)


if __name__ == "__main__":
    main()
