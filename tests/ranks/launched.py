"""A module of tests as several ranks, in processes of their own, started by torchrun's launcher."""

import sys
from pathlib import Path

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
from torch.distributed.launcher.api import LaunchConfig, elastic_launch


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
    )
    elastic_launch(settings, sys.executable)("-m", module, *arguments)
