"""The crew of a command that was told `--runner`; one that was not imports nothing of Prefect."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from flows.workers.place import Place

if TYPE_CHECKING:
    from flows.workers.crew import Crew


@contextlib.contextmanager
def crew_of(runner: str | None, folder: Path) -> "Iterator[Crew | None]":
    """Yield the workers that a command was told to use, and None if it was not told.

    The work is recorded by the Prefect API that trainings in `folder` use, for which it waits.
    """
    if runner is None:
        yield None
        return
    from flows.prefect_api.server import LIMIT_SECONDS, open_server

    place = Place.of(runner)
    lease = open_server(folder)
    try:
        lease.wait()
        from prefect.settings import temporary_settings

        from flows.prefect_api.calls import client_settings
        from flows.prefect_api.killed_runs import end_orphans
        from flows.workers.crew import Crew

        if lease.own:
            end_orphans(lease.url, LIMIT_SECONDS)
        with temporary_settings(client_settings(LIMIT_SECONDS)), Crew(place) as crew:
            yield crew
    finally:
        lease.release()
