"""The server of a run root, as a process: Prefect's application under uvicorn, while it is needed.

    python -m flows.prefect_api.server_process HOME DESCRIPTOR

HOME is the folder of its files, DESCRIPTOR the socket that it listens on.

`flows.prefect_api.server` starts it and holds the lock HOME/lease that it watches.
"""

import contextlib
import fcntl
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    import uvicorn

POLL_SECONDS = 1.0
IDLE_POLLS = 3
GRACE_SECONDS = 5.0
READY = "ready"
"""Marks a folder whose database was created in full."""


@contextlib.contextmanager
def _exclusive(lock: IO[str]) -> Iterator[bool]:
    """Hold the lock alone, if nobody else has it."""
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        yield False
        return
    try:
        yield True
    finally:
        fcntl.lockf(lock, fcntl.LOCK_UN)


def _watch(home: Path, server: "uvicorn.Server") -> None:
    """End the process once nobody has held its lock for a while, or the folder is gone."""
    try:
        _until_idle(home, server)
    finally:
        if server.started:
            server.should_exit = True
            time.sleep(GRACE_SECONDS)
        os._exit(0)


def _until_idle(home: Path, server: "uvicorn.Server") -> None:
    """Return when the server is not needed any more.

    An upgrade of an existing database is never cut short. The first creation may be: as long as
    the marker is missing, the next server begins with a new file.
    """
    polls = 0
    with (home / "lease").open("a+") as lock:
        while home.exists():
            time.sleep(POLL_SECONDS)
            if server.started and home.exists():
                (home / READY).touch()
            with _exclusive(lock) as idle:
                polls = polls + 1 if idle else 0
                interruptible = server.started or not (home / READY).exists()
                if polls > IDLE_POLLS and interruptible:
                    (home / "server.json").unlink(missing_ok=True)
                    return


def serve(home: Path, listening: socket.socket) -> None:
    """Run Prefect's server on `listening` until the lock of `home` has been free for a while."""
    import uvicorn

    if not (home / READY).exists():
        for left_over in home.glob("prefect.db*"):
            left_over.unlink()
    server = uvicorn.Server(
        uvicorn.Config(
            "prefect.server.api.server:create_app",
            factory=True,
            lifespan="on",
            log_level="warning",
            timeout_graceful_shutdown=int(GRACE_SECONDS / 2),
        )
    )
    threading.Thread(target=_watch, args=(home, server), name="lease", daemon=True).start()
    server.run(sockets=[listening])


if __name__ == "__main__":
    serve(Path(sys.argv[1]), socket.socket(fileno=int(sys.argv[2])))
