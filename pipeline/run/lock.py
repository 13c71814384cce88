"""One writer per run: a lock that a process holds while it may write to a run folder.

It is a POSIX lock on RUN/.lock. The kernel drops it with the process, however that ended, and
children don't inherit it: no SIGKILL leaves a run locked, and no stray child keeps it so. The
file's text only says who holds it; left behind, it means nothing.

For a run at a URL it is the lock on its mirror, which keeps out other processes of this machine; a
lease on the store keeps out other machines.
"""

import contextlib
import fcntl
import json
import os
import shlex
import socket
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, ClassVar, Self

from pipeline.errors import StoreError
from pipeline.files.durable import make_folder
from pipeline.remote.lease import Lease
from pipeline.remote.mirror_paths import is_mirrored
from pipeline.remote.mirror_sync import share
from pipeline.remote.upload import begin_storing, end_storing

LOCK_FILE = ".lock"
_MAX_TEXT = 4096
_SHOWN_COMMAND = 200


class RunLock:
    """A hold on a run folder; several in one process share the kernel's lock.

    Reading commands take none: what they read is committed, and never changes.
    """

    _held: ClassVar["dict[Path, _Holding]"] = {}
    _guard: ClassVar = threading.Lock()

    def __init__(self, root: Path) -> None:
        """Take the lock of a run folder, which is made if it is not there.

        Raises:
            StoreError: another process holds it, or the file system has no locks.
        """
        self._root: Path | None = root.resolve()
        with self._guard:
            holding = self._held.get(self._root) or _Holding(root)
            holding.holds += 1
            self._held[self._root] = holding

    def __enter__(self) -> Self:
        """Hold it for a block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Release it."""
        self.release()

    def release(self) -> None:
        """Give up the hold; folders made for it that are empty go too. Twice does no harm."""
        if self._root is None:
            return
        with self._guard:
            holding = self._held[self._root]
            holding.holds -= 1
            if holding.holds == 0:
                del self._held[self._root]
                holding.end()
        self._root = None


def is_held_elsewhere(root: Path) -> bool:
    """Tell whether another process holds the lock of a run folder, on this machine or its disks.

    A lock of this process must not be tried: closing the file would drop it.
    """
    with RunLock._guard:
        if root.resolve() in RunLock._held:
            return False
        try:
            with (root / LOCK_FILE).open("r+", encoding="utf-8") as file:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except OSError:
            return True
    return False


class _Holding:
    """The kernel's lock, and how many holds of this process share it."""

    def __init__(self, root: Path) -> None:
        self.holds = 0
        self._root = root
        self._made = [folder for folder in (root, *root.parents) if not folder.exists()]
        try:
            make_folder(root)
            self._file = _locked(root / LOCK_FILE)
        except BaseException:
            self._remove_empty_folders()
            raise
        self._remote: _RemoteHolding | None = None
        record = {
            "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])[:_SHOWN_COMMAND],
            "process": os.getpid(),
            "host": socket.gethostname(),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        try:
            self._file.truncate(0)
            self._file.write(json.dumps(record))
            self._file.flush()
        except OSError as error:
            self.end()
            raise OSError(error.errno, error.strerror, str(root / LOCK_FILE)) from None
        if is_mirrored(root):
            try:
                self._remote = _RemoteHolding(root, record)
            except BaseException:
                self.end()
                raise

    def end(self) -> None:
        """Drop the lock; the file is removed first, while nobody else can hold it."""
        if self._remote is not None:
            self._remote.end()
        with contextlib.suppress(OSError):  # the disk turned read-only: the next one takes it
            (self._root / LOCK_FILE).unlink(missing_ok=True)
        self._remove_empty_folders()
        with contextlib.suppress(OSError):  # the disk is full, so the text was not written
            self._file.close()

    def _remove_empty_folders(self) -> None:
        """Remove the folders that were made for the lock, up to the first that has something."""
        with contextlib.suppress(OSError):
            for folder in self._made:
                folder.rmdir()


class _RemoteHolding:
    """The lease on the store, and the right to change the mirror and to store what changes."""

    def __init__(self, root: Path, holder: dict[str, Any]) -> None:
        self._root = root
        self._lease = Lease(root, holder)
        try:
            self._marker = share(root)
        except BaseException:
            self._lease.release()
            raise
        begin_storing(root, self._lease.expect_held)

    def end(self) -> None:
        end_storing(self._root)
        self._marker.close()
        self._lease.release(run_exists=(self._root / "run.json").exists())


def _locked(path: Path) -> IO[str]:
    """Return the lock file, locked; its last holder may remove it between opening and locking."""
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            holder = _described(file.read(_MAX_TEXT))
            file.close()
            raise StoreError(
                f"{path.parent}: another command is writing to it: {holder}; wait until it has "
                "ended, or end it"
            ) from None
        except OSError as error:
            file.close()
            raise StoreError(
                f"{path}: this file system has no locks ({error.strerror}), so nothing would keep "
                "two commands from writing to one run; keep runs on another one"
            ) from None
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
        file.close()


def _described(text: str) -> str:
    """Say who wrote a lock file; its text may be half written, or another program's."""
    try:
        record = json.loads(text)
        return (
            f"{record['command']} (process {record['process']} on {record['host']}, since "
            f"{record['since']})"
        )
    except (ValueError, KeyError, TypeError):
        return "one that has just begun"
