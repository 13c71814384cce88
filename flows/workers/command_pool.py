"""The workers of a command with `--runner`; a command without one imports nothing of Prefect."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from flows.workers.runner_spec import RunnerSpec

if TYPE_CHECKING:
    from flows.workers.worker_pool import WorkerPool


@contextlib.contextmanager
def command_pool(runner: str | None, folder: Path) -> "Iterator[WorkerPool | None]":
    """Yield the workers that a command was told to use, and None if it was not told.

    The work is recorded by the Prefect API that trainings in `folder` use, for which it waits.
    """
    if runner is None:
        yield None
        return
    from flows.prefect_api.server import LIMIT_SECONDS, open_server

    spec = RunnerSpec.parse(runner)
    server = open_server(folder)
    try:
        server.wait()
        from prefect.settings import temporary_settings

        from flows.prefect_api.calls import client_settings
        from flows.prefect_api.killed_runs import end_orphans
        from flows.workers.worker_pool import WorkerPool

        if server.own:
            end_orphans(server.url, LIMIT_SECONDS)
        with temporary_settings(client_settings(LIMIT_SECONDS)), WorkerPool(spec) as worker_pool:
            yield worker_pool
    finally:
        server.release()
