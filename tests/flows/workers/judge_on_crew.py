"""A command that has responses judged on a place's workers; tests and benchmarks start it.

    python tests/flows/workers/judge_on_crew.py PLACE RUNS PARTS ROWS SECONDS [CHILDREN]

RUNS is a folder of runs, for Prefect's server; PARTS is where workers leave what they judged. Each
verdict takes SECONDS. A worker has CHILDREN children, started before the clock; if not given: one.
Prints one line of JSON.
"""

import hashlib
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

from flows.workers.command_crew import crew_of
from flows.workers.verdict_shards import Bench, ShardedPool

TASK = Path(__file__).with_name("waiting_task.py")


def main() -> None:
    """Judge, and print seconds of the wall clock and a digest of the verdicts."""
    place, runs, parts, rows, seconds, *children = sys.argv[1:]
    pairs = [(f"{n:x<{n % 1000}}", seconds) for n in range(int(rows))]  # all different
    bench = Bench.of(str(TASK), int(*children or [1]), 30.0, 1024)
    with crew_of(place, Path(runs)) as crew:
        assert crew is not None
        if children:
            few = [(f"warm {n}", "0.1") for n in range(64)]
            ShardedPool(crew, bench, Path(parts) / "warm").verify(few)
        started = time.perf_counter()
        verdicts = ShardedPool(crew, bench, Path(parts)).verify(pairs)
        spent = time.perf_counter() - started
    text = json.dumps([asdict(verdict) for verdict in verdicts])
    digest = hashlib.sha256(text.encode()).hexdigest()
    print(json.dumps({"seconds": spent, "rows": len(verdicts), "sha256": digest}))


if __name__ == "__main__":
    main()
