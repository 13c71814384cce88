"""Memory, threads and open files of a training and of its Prefect server, step by step.

    python -m benchmarks.flatness [--steps 300] [--plot docs/images/flatness.png]

Trains the demo with few questions, so that steps are short, and looks at both processes when a
step's line is printed. A leak would show over hundreds of steps; the first and the last third of
the run are compared, and a slope is fitted to the last two thirds, when caches are warm.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

matplotlib.use("Agg")
from matplotlib import pyplot as plt

SETTINGS = (
    "generate.questions=4",
    "generate.rollouts=4",
    "evaluate.every=50",
    "evaluate.questions=4",
    "evaluate.rollouts=4",
    "run.snapshot_every=10",
)
MEASURES = ("memory", "threads", "files")
UNITS = {"memory": "MiB", "threads": "", "files": ""}


class Sample(NamedTuple):
    """What a process held after a step."""

    memory: float
    threads: float
    files: float


def sample(process: psutil.Process) -> Sample:
    """Look at a process: resident MiB, threads, open descriptors."""
    with process.oneshot():
        memory = process.memory_info().rss / 2**20
        return Sample(memory, process.num_threads(), process.num_fds())


def measure(folder: Path, steps: int) -> dict[str, list[Sample]]:
    """Train, and return a sample per step of the command and of its server."""
    settings = [part for s in (f"run.steps={steps}", *SETTINGS) for part in ("--set", s)]
    arguments = ["train", "demo", "--run", str(folder / "run"), *settings]
    command = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env={k: v for k, v in os.environ.items() if k != "PREFECT_API_URL"},
    )
    assert command.stdout is not None
    found: dict[str, list[Sample]] = {"command": [], "server": []}
    server: psutil.Process | None = None
    for line in command.stdout:
        if not line.startswith("step "):
            continue
        if server is None:
            record = json.loads((folder / ".prefect" / "server.json").read_text(encoding="utf-8"))
            server = psutil.Process(record["pid"])
        found["command"].append(sample(psutil.Process(command.pid)))
        found["server"].append(sample(server))
    if command.wait() != 0:
        raise SystemExit(f"the training ended with exit code {command.returncode}")
    return found


def slope(values: list[float]) -> float:
    """Return the growth per 100 steps, over the last two thirds."""
    kept = values[len(values) // 3 :]
    return 100 * float(np.polyfit(range(len(kept)), kept, 1)[0])


def report(found: dict[str, list[Sample]]) -> None:
    """Print the means of the first and the last third, and slopes."""
    table = Table(title=f"{len(found['command'])} steps")
    for name in ("process", "what", "first third", "last third", "most", "per 100 steps"):
        table.add_column(name, justify="left" if name in ("process", "what") else "right")
    for process, samples in found.items():
        for name in MEASURES:
            values = [getattr(s, name) for s in samples]
            third = max(1, len(values) // 3)
            table.add_row(
                process,
                f"{name} {UNITS[name]}",
                f"{statistics.mean(values[:third]):.1f}",
                f"{statistics.mean(values[-third:]):.1f}",
                f"{max(values):.0f}",
                f"{slope(values):+.2f}",
            )
    Console(width=100).print(table)


def plot(found: dict[str, list[Sample]], path: Path) -> None:
    """Draw all six curves."""
    figure, axes = plt.subplots(1, len(MEASURES), figsize=(11, 3), constrained_layout=True)
    for axis, name in zip(axes, MEASURES, strict=True):
        for process, samples in found.items():
            axis.plot([getattr(s, name) for s in samples], label=process)
        axis.set_ylim(bottom=0)
        axis.set_xlabel("step")
        axis.set_title(f"{name}, {UNITS[name]}" if UNITS[name] else name)
        axis.grid(alpha=0.3)
    axes[0].legend(loc="lower right")
    figure.savefig(path, dpi=110)


def main() -> None:
    """Train, print and plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--plot", type=Path, help="a PNG file to write")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), options.steps)
    report(found)
    if options.plot:
        plot(found, options.plot)


if __name__ == "__main__":
    main()
