"""A file of a mirror: the contents of an object, or a placeholder of its size.

Its modification time says which: the nanoseconds are a fingerprint of the object's ETag, or 0 for a
placeholder. Any other write changes them, so the file is fetched anew when the mirror is next
opened.
"""

import hashlib
import os
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipeline.machine.disk import errors_naming
from pipeline.remote import objects
from pipeline.remote.mirror_paths import address_of, is_mirrored
from pipeline.remote.objects import Object

LARGE = (".arrow", ".safetensors")
"""Files that are fetched when they are read; all others are when a mirror is opened."""

_PLACEHOLDER = 0
_BILLION = 1_000_000_000
_SIDE_BY_SIDE = 16


def fetch(path: Path) -> None:
    """Fetch the contents of a placeholder; do nothing for any other file.

    Raises:
        StoreError: the store failed, or has it no longer.
    """
    if is_placeholder(path):
        _download(path)


def is_placeholder(path: Path) -> bool:
    """Tell whether a file of a mirror is there by name and size only."""
    return is_mirrored(path) and _nanoseconds(path) == _PLACEHOLDER


def fetch_anew(path: Path) -> bool:
    """Fetch a damaged file again; tell whether the store has one."""
    address = address_of(path)
    if address is None or not objects.has(address):
        return False
    _download(path)
    return True


def fetch_folder(folder: Path, mine: slice) -> None:
    """Fetch files of a folder, such as a snapshot that another host stored.

    Args:
        mine: which of them to fetch; other ranks that share the cache fetch the rest.
    """
    address = address_of(folder)
    if address is not None:
        found = objects.listed(address)
        fetch_all({folder / name: found[name] for name in sorted(found)[mine]})


def fetch_all(wanted: Mapping[Path, Object]) -> None:
    """Fetch the contents of these objects, several at a time."""
    missing = [path for path, thing in wanted.items() if not is_current(path, thing)]
    with ThreadPoolExecutor(_SIDE_BY_SIDE, thread_name_prefix="fetch") as pool:
        for _ in pool.map(_download, missing):
            pass


def is_current(path: Path, thing: Object) -> bool:
    """Tell whether a file has the contents of an object."""
    return _size(path) == thing.size and _nanoseconds(path) == _fingerprint(thing.etag)


def stands_for(path: Path, thing: Object) -> bool:
    """Tell whether a file is a placeholder of an object's size."""
    return _size(path) == thing.size and _nanoseconds(path) == _PLACEHOLDER


def put_placeholder(path: Path, thing: Object) -> None:
    """Make a sparse file of an object's size, which takes no space."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    with errors_naming(path), temporary.open("wb") as file:
        file.truncate(thing.size)
    _mark(temporary, thing.modified.timestamp(), _PLACEHOLDER)
    temporary.replace(path)


def mark_stored(path: Path, etag: str) -> None:
    """Note that a file has the contents of an object just stored."""
    _mark(path, time.time(), _fingerprint(etag))


def _download(path: Path) -> None:
    address = address_of(path)
    assert address is not None
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    with errors_naming(path):
        try:
            found = objects.download(address, temporary)
            _mark(temporary, found.modified.timestamp(), _fingerprint(found.etag))
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def temporary_beside(path: Path) -> Path:
    """Return a name that no reader looks at, and no other thread of any process uses."""
    return path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.fetched")


def _mark(path: Path, seconds: float, nanoseconds: int) -> None:
    moment = int(seconds) * _BILLION + nanoseconds
    os.utime(path, ns=(moment, moment))


def _fingerprint(etag: str) -> int:
    """Return nanoseconds that stand for an ETag, and never for a placeholder."""
    digest = hashlib.sha256(etag.encode()).digest()
    return 1 + int.from_bytes(digest[:8]) % (_BILLION - 1)


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _nanoseconds(path: Path) -> int | None:
    return path.stat().st_mtime_ns % _BILLION if path.is_file() else None
