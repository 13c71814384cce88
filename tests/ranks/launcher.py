"""A module of tests as several ranks, in processes of their own, started by torchrun's launcher.

They are forked from a process that has imported what they need, and done nothing else: importing it
takes each of them five seconds otherwise, most of what a test of ranks costs.
"""

import importlib
import multiprocessing
import sys
from pathlib import Path

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

IMPORTED = [
    "tests.ranks.run_steps",
    "tests.ranks.run_snapshots",
    "tests.ranks.run_rank_samplers",
    "benchmarks.ranks_memory",
]


def launch(module: str, count: int, logs: Path, *arguments: str) -> None:
    """Run `python -m MODULE ARGUMENTS` as so many ranks, whose words go to files under `logs`.

    Raises:
        ChildFailedError: one of them failed.
    """
    settings = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id="test",
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(str(logs), redirects=Std.ALL),
        start_method="forkserver",
        monitor_interval=0.05,
    )
    multiprocessing.set_forkserver_preload(IMPORTED)
    elastic_launch(settings, be)(module, *arguments)


def be(module: str, *arguments: str) -> None:
    """Be one of the ranks."""
    sys.argv = [module, *arguments]
    importlib.import_module(module).main()
