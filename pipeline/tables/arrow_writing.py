"""Writing tables: hashed as they are written, one after the other, in a background thread.

`Run.commit` (pipeline/run/run.py) is what commits them.
"""

import hashlib
import os
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, Self

import pyarrow as pa
import pyarrow.ipc

from pipeline.errors import StoreError
from pipeline.machine.disk import errors_naming, reason_and_advice

RETRY_SECONDS = 1.0
"""How long after a failed write it is tried once more."""

Commit = Callable[[], object]


class HashingFile:
    """A file to write to, which digests the bytes as they pass."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self._written = 0

    def write(self, data: pa.Buffer | bytes) -> int:
        """Write bytes; hashing and writing both release the interpreter's lock."""
        self._digest.update(data)
        written = self._file.write(data)
        self._written += written
        return written

    def tell(self) -> int:
        """Return the number of bytes written."""
        return self._written

    def flush(self) -> None:
        """Give the bytes to the operating system."""
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    @property
    def closed(self) -> bool:
        """Tell whether the file is closed."""
        return self._file.closed

    def hexdigest(self) -> str:
        """Return the SHA-256 of what was written so far."""
        return self._digest.hexdigest()


def write_arrow(path: Path, data: pa.Table) -> str:
    """Write an Arrow IPC file and return its SHA-256; nothing is read back."""
    with errors_naming(path), path.open("wb") as file:
        return _write(HashingFile(file), data)


def digest_arrow(data: pa.Table) -> str:
    """Return the SHA-256 of the file that `write_arrow` would write."""
    with Path(os.devnull).open("wb") as nothing:
        return _write(HashingFile(nothing), data)


def _write(sink: HashingFile, data: pa.Table) -> str:
    with pa.ipc.new_file(sink, data.schema) as writer:
        writer.write_table(data.combine_chunks())
    return sink.hexdigest()


class Writer:
    """Commits tables in a thread of its own: one after the other, in the order they came.

    A write that the operating system fails is tried once more. If that fails too, no later table is
    committed, and the next call raises the error. Leaving the block waits until all is on the disk.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tables")
        self._pending: dict[Path, pa.Table] = {}
        self._last: Future[None] | None = None
        self._failure: Exception | None = None

    def __enter__(self) -> Self:
        """Begin; the thread starts with the first table."""
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Finish all commits; an error of the block takes precedence over one of a write."""
        self._thread.shutdown()
        if error is None:
            self.check()

    def submit(self, path: Path, data: pa.Table, commit: Commit) -> None:
        """Queue `commit`, which writes `data` as the table `path`."""
        self.check()
        self._pending[path] = data
        self._last = self._thread.submit(self._work, path, commit)

    def pending(self, path: Path) -> pa.Table | None:
        """Return a table that is not committed yet."""
        return self._pending.get(path)

    def wait(self) -> None:
        """Return when every table is committed.

        Raises:
            StoreError: one could not be written.
        """
        if self._last is not None:
            self._last.result()
        self.check()

    def check(self) -> None:
        """Raise the error of a write that failed, if one did."""
        if self._failure is not None:
            raise self._failure

    def _work(self, path: Path, commit: Commit) -> None:
        if self._failure is not None:
            return
        try:
            _twice(path, commit)
        except Exception as error:
            self._failure = error
        else:
            del self._pending[path]


def _twice(path: Path, commit: Commit) -> None:
    """Call `commit`, and a second time if the operating system failed the first."""
    try:
        commit()
    except OSError:
        time.sleep(RETRY_SECONDS)
        try:
            commit()
        except OSError as error:
            raise StoreError(
                f"{path}: not written, also at a second try: {reason_and_advice(error, path)}; "
                "no table after it was written; then go on with --resume"
            ) from error
