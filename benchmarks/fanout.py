"""What workers gain: a verifier that only waits, on Ray clusters of one and two workers, in turn.

    python -m benchmarks.fanout [--kind ray] [--rows 10000] [--wait 0.02] [--children 2]

Each worker has the same number of child processes, and a verdict is a wait, so that two workers
gain whatever the number of cores is. The clock starts when the workers are up. Also timed: the
same responses in this process's own children, without Prefect.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from data.registry import judge, open_task
from pipeline.verification.pool import VerifierPool

PROJECT = Path(__file__).resolve().parents[1]
SCRIPT = PROJECT / "tests" / "flows" / "workers" / "judge_on_workers.py"
TASK = SCRIPT.with_name("waiting_task.py")


def spread(runner: str, runs: Path, rows: int, wait: float, children: int) -> dict[str, Any]:
    """Judge the responses on a runner, in a process of its own; return what it printed."""
    with tempfile.TemporaryDirectory(dir=runs) as parts:
        arguments = [runner, str(runs), parts, str(rows), str(wait), str(children)]
        command = [sys.executable, str(SCRIPT), *arguments]
        done = subprocess.run(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def alone(rows: int, wait: float, children: int) -> dict[str, Any]:
    """Judge the same number of responses in children of this process."""
    with VerifierPool(judge, str(TASK), children, 30.0, 1024, prepare=open_task) as pool:
        pool.verify([("x", "0")] * children)
        started = time.perf_counter()
        pool.verify([(str(n), str(wait)) for n in range(rows)])
        return {"seconds": time.perf_counter() - started, "sha256": ""}


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--kind", default="ray")
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--wait", type=float, default=0.02)
    parser.add_argument("--children", type=int, default=2)
    chosen = parser.parse_args()
    work = (chosen.rows, chosen.wait, chosen.children)
    table = Table("workers", "seconds", "ideal", "times one", "SHA-256 of the verdicts", box=None)
    ideal = chosen.rows * chosen.wait / chosen.children
    with tempfile.TemporaryDirectory() as runs:
        one = spread(f"{chosen.kind}:1", Path(runs), *work)
        two = spread(f"{chosen.kind}:2", Path(runs), *work)
    for name, found, best in (
        ("none: this process", alone(*work), ideal),
        (f"{chosen.kind}:1", one, ideal),
        (f"{chosen.kind}:2", two, ideal / 2),
    ):
        gain = f"{one['seconds'] / found['seconds']:.2f}"
        seconds = f"{found['seconds']:.1f}"
        table.add_row(name, seconds, f"{best:.1f}", gain, found["sha256"][:16])
    Console().print(table)


if __name__ == "__main__":
    main()
