"""Ends a training that reports no progress any more: a hang in C can't be interrupted otherwise.

A thread watches. Where the hang keeps all threads from running (C code that holds the interpreter's
lock), a timer of C's own does the same a little later, with the stacks on stderr.
"""

import faulthandler
import os
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from flows.training.loop import Reference, Watcher
from pipeline.text import go_on

EXIT_CODE = 2
GRACE_SECONDS = 5.0
"""By how much the timer comes after the thread."""
MOST_FILES = 10


class Watchdog(Watcher):
    """Watches while its block lasts; every event of a training counts as progress.

    Args:
        run: its folder, where the stacks of all threads go when it hangs.
        limit_seconds: without progress, after which the process ends; None: never.
    """

    def __init__(self, run: Path, limit_seconds: float | None) -> None:
        self._run, self._limit = run, limit_seconds
        self._doing = "start"
        self._since, self._clock = datetime.now(UTC), time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        """Start watching."""
        self._progressed()
        if self._limit is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop watching."""
        self._over.set()
        faulthandler.cancel_dump_traceback_later()
        if self._limit is not None:
            self._thread.join()

    def stage_started(self, name: str, step: int) -> None:
        """Remember what runs now."""
        self._doing = f"{name} of step {step}"
        self._progressed()

    def progress(self, done: int, total: int) -> None:
        """Count as progress."""
        self._progressed()

    def stage_ended(self, name: str, reference: Reference) -> None:
        """Count as progress."""
        self._progressed()

    def _progressed(self) -> None:
        self._since, self._clock = datetime.now(UTC), time.monotonic()
        if self._limit is not None:
            later = self._limit + GRACE_SECONDS
            faulthandler.dump_traceback_later(later, exit=True, file=sys.__stderr__ or 2)

    def _watch(self) -> None:
        limit = self._limit or 0.0
        while not self._over.wait(max(0.0, self._clock + limit - time.monotonic())):
            if time.monotonic() >= self._clock + limit:
                self._end()

    def _end(self) -> None:
        path = _free_file(self._run)
        line = (
            f"error: no progress for {self._limit:g} s (run.stall_seconds) in {self._doing}, since "
            f"{self._since:%Y-%m-%d %H:%M:%S} UTC; where each thread stands is in {path!s}; go on: "
            f"{go_on(self._run)}\n"
        )
        try:
            with path.open("w", encoding="utf-8") as file:
                file.write(line)
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
        finally:
            os.write(2, line.encode())
            os._exit(EXIT_CODE)


def _free_file(run: Path) -> Path:
    """Return the first free name, or the last one, which is then written again."""
    names = [run / f"stalled-{number}.txt" for number in range(1, MOST_FILES + 1)]
    return next((path for path in names if not path.exists()), names[-1])
