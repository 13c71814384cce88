"""Prefect's servers for tests. One takes some ten seconds to come up, half of it for its database.

Most commands under test need any server: all share one (`shared`), the workers of pytest-xdist too.
Tests of a server's life and death need their own, over a database that is there (`prepared`).
"""

import fcntl
import os
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from unittest import mock

from flows.prefect_api.server import CLIENT_SETTINGS, open_server
from flows.prefect_api.server_process import READY

DATABASE = "prefect.db"
_DRAIN_SECONDS = 2.0
PASSED = ("PREFECT_API_URL", "PREFECT_HOME", *CLIENT_SETTINGS)


@contextmanager
def shared(root: Path) -> Iterator[dict[str, str]]:
    """Hold the server of a folder for a block; yield the variables by which commands find it.

    Whoever is first keeps a copy of the database as it is before anybody used it.
    """
    with mock.patch.dict(os.environ):
        os.environ.pop("PREFECT_API_URL", None)
        with (root / "first.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            server = open_server(root)
            server.wait()
            if not (root / DATABASE).exists():
                _copy(root / ".prefect", root)
        found = {name: os.environ[name] for name in PASSED}
    yield found
    with mock.patch.dict(os.environ):
        server.release()


def leave_former() -> None:
    """Have this process's next flow talk to the server of that time.

    Prefect's client of events stays with the server it found first, be it gone or not.
    """
    if (events := sys.modules.get("prefect.events.worker")) is not None:
        events.EventsWorker.drain_all(timeout=_DRAIN_SECONDS)


def prepared(root: Path, fresh: Path) -> Path:
    """Give a folder of runs a fresh database, so that its own server comes up sooner; return it."""
    leave_former()
    home = root / ".prefect"
    home.mkdir(parents=True)
    _copy(fresh, home)
    (home / READY).touch()
    return root


def _copy(source: Path, target: Path) -> None:
    with (
        closing(sqlite3.connect(source / DATABASE)) as before,
        closing(sqlite3.connect(target / DATABASE)) as after,
    ):
        before.backup(after)
