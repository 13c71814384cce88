"""Digests of a run's files, computed beside the check of their rows."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Self

from pipeline.check.run_files import file_sha256
from pipeline.run.run import Run

_HASHERS = 2


class Hashing:
    """Digests of files, computed by threads in the order given."""

    def __init__(
        self, run: Run, paths: Sequence[Path], progress: Callable[[int, int], None]
    ) -> None:
        self.total = sum(path.stat().st_size for path in paths)
        self._run = run
        self._progress, self._done, self._lock = progress, 0, threading.Lock()
        self._pool = ThreadPoolExecutor(_HASHERS, thread_name_prefix="sha256")
        self._found: dict[Path, Future[str]] = {
            path: self._pool.submit(self._digest, path) for path in paths
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def result(self, path: Path, expected: str) -> str:
        """Return the digest of a file, or why there is none; a cached one is tried anew."""
        try:
            found = self._found[path].result()
            if found != expected and self._run.fetch_anew(path):
                return file_sha256(path, lambda size: None)
            return found
        except OSError as error:
            return f"not readable: {error.strerror}"

    def _digest(self, path: Path) -> str:
        return file_sha256(self._run.fetched(path), self._advance)

    def _advance(self, size: int) -> None:
        with self._lock:
            self._done += size
            done = self._done
        self._progress(done, self.total)
