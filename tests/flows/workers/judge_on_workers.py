"""A command that has responses judged on a runner's workers; tests and benchmarks start it.

    python tests/flows/workers/judge_on_workers.py RUNNER RUNS PARTS ROWS SECONDS [CHILDREN]

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

from flows.workers.command_pool import command_pool
from flows.workers.verdict_shards import Bench, ShardedPool
from pipeline.config.sections import VerifySection

TASK = Path(__file__).with_name("waiting_task.py")


def main() -> None:
    """Judge, and print seconds of the wall clock and a digest of the verdicts."""
    runner, runs, parts, rows, seconds, *children = sys.argv[1:]
    pairs = [(f"{n:x<{n % 1000}}", seconds) for n in range(int(rows))]  # all different
    settings = VerifySection(workers=int(*children or [1]), timeout_seconds=30.0, memory_mb=1024)
    bench = Bench.of(str(TASK), settings)
    with command_pool(runner, Path(runs)) as worker_pool:
        assert worker_pool is not None
        if children:
            few = [(f"warm {n}", "0.1") for n in range(64)]
            ShardedPool(worker_pool, bench, Path(parts) / "warm").verify(few)
        started = time.perf_counter()
        verdicts = ShardedPool(worker_pool, bench, Path(parts)).verify(pairs)
        spent = time.perf_counter() - started
    text = json.dumps([asdict(verdict) for verdict in verdicts])
    digest = hashlib.sha256(text.encode()).hexdigest()
    print(json.dumps({"seconds": spent, "rows": len(verdicts), "sha256": digest}))


if __name__ == "__main__":
    main()
