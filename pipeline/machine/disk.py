"""The disk under a run: its free space, and the operating system's errors with advice."""

import errno
import os
import re
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import StoreError
from pipeline.text import encodable, size

FULL_BELOW = 8 << 20
"""Free bytes below which a disk counts as full: databases fail before the last block is taken."""

_IN_RUST = re.compile(r"\(os error (\d+)\)")


@contextmanager
def errors_naming(path: Path) -> Iterator[None]:
    """Add `path` to the operating system's errors that name no file.

    Libraries written in Rust raise their own exceptions with the system's error number in the text;
    they become OSErrors.
    """
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise
    except Exception as error:
        number = _IN_RUST.search(str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def os_error_line(error: OSError) -> str:
    """Return one line: the file, what happened, and what to do about it."""
    name = error.filename.decode() if isinstance(error.filename, bytes) else error.filename
    where = f"{name}: " if name is not None and error.strerror else ""
    return f"{where}{reason_and_advice(error, Path(str(name or '.')))}"


def reason_and_advice(error: OSError, path: Path) -> str:
    """Return what happened at `path`, the state of its disk, and what to do."""
    if error.errno is None or error.strerror is None:
        return str(error)
    known = _advice(error.errno, path)
    return f"{error.strerror} ({known[0]}); {known[1]}" if known else error.strerror


def is_trouble(error: OSError) -> bool:
    """Tell whether the machine is at fault, rather than the file that was asked for."""
    return error.errno is not None and _advice(error.errno, Path(".")) is not None


def _advice(number: int, path: Path) -> tuple[str, str] | None:
    """Return the state at `path` and what to do, for errors that a disk can cause."""
    if number == errno.ENOSPC:
        return _room(path), "make room there"
    files, bytes_ = (
        resource.getrlimit(k)[0] for k in (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE)
    )
    largest = "no limit here" if bytes_ == resource.RLIM_INFINITY else f"limit {size(bytes_)}"
    known = {
        errno.EDQUOT: ("your quota there is used up", "make room there, or have it raised"),
        errno.EROFS: (
            "nothing can be written there",
            "mount it writable, or choose another folder",
        ),
        errno.EACCES: (f"user {os.geteuid()} may not do that there", "mend owner or mode"),
        errno.EPERM: (
            f"user {os.geteuid()} may not do that there",
            "mend owner, mode or attributes",
        ),
        errno.EIO: (
            "the disk or its connection failed",
            "look at the kernel's log, then mend that",
        ),
        errno.ESTALE: ("its file server forgot it", "mount it anew"),
        errno.EFBIG: (f"{largest}, ulimit -f", "raise that limit"),
        errno.EMFILE: (f"limit {files:,} per process, ulimit -n", "raise that limit"),
        errno.ENFILE: ("the machine's limit on open files", "raise that limit"),
    }
    return known.get(number)


def free_bytes(path: Path) -> int:
    """Return the bytes free to this user on the disk that holds `path`, or will hold it."""
    return shutil.disk_usage(_existing(path)).free


def expect_makeable(folder: Path) -> None:
    """Refuse a folder that can't be made or written; nothing is made.

    Raises:
        StoreError: it is a file, or would be inside one, or its name is no UTF-8.
        PermissionError: this user may not write there.
    """
    if encodable(f"{folder.absolute()}") != f"{folder.absolute()}":
        raise StoreError(f"{folder}: the path is no UTF-8, which tables need; choose another one")
    existing = _existing(folder)
    if not existing.is_dir():
        raise StoreError(f"{folder}: {existing} is a file, expected a folder; choose another one")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(existing))


def trouble_at(path: Path) -> str:
    """Say that the disk that holds `path` is full or read-only; empty if it is neither."""
    status = os.statvfs(_existing(path))
    if status.f_flag & os.ST_RDONLY:
        return f"{path} is on a disk that is mounted read-only"
    if status.f_bavail * status.f_frsize < FULL_BELOW:
        return f"the disk that holds {path} is full ({_room(path)})"
    return ""


def _room(path: Path) -> str:
    """Say how many bytes are free, or that no inodes are left."""
    status = os.statvfs(_existing(path))
    if status.f_files and not status.f_favail:
        return "no room for another file there, whatever its size: 0 inodes free"
    return f"{size(status.f_bavail * status.f_frsize)} free there"


def _existing(path: Path) -> Path:
    absolute = path.absolute()
    return next(p for p in [absolute, *absolute.parents] if p.exists())
