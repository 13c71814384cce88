"""Durable files: digests, canonical JSON, and writes that are whole or absent."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.machine.disk import errors_naming
from pipeline.remote.upload import (
    is_stored,
    publish,
    rename,
    withdraw,
    withdraw_folder,
    withdraw_unfinished,
)


def canonical_json(value: Any) -> str:
    """Return the one JSON text of a value: sorted keys, no white space, no NaN."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def digest_of(value: Any) -> str:
    """Return the SHA-256 of a JSON value."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def has_digest(path: Path, sha256: str, fetch_anew: Callable[[Path], bool]) -> bool:
    """Tell whether a file has this SHA-256; if not, fetch it anew and look again.

    Args:
        fetch_anew: fetches a file again; returns False if there is none to fetch.
    """
    return file_digest(path) == sha256 or (fetch_anew(path) and file_digest(path) == sha256)


def sync(path: Path) -> None:
    """Flush a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with errors_naming(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a temporary path in the target's folder; on success it becomes the target, synced.

    Works for files and for folders (the target must not exist then). On an error the temporary
    path stays behind under its own name, which no reader looks at and the next writer replaces.
    """
    make_folder(target.parent)
    temporary = target.with_name(f".{target.name}.tmp")
    with errors_naming(target):
        yield temporary
    move_into_place(temporary, target)


def move_into_place(temporary: Path, target: Path) -> None:
    """Give a complete file or folder its final name, durably: its contents first.

    In the mirror of a URL, it is then uploaded.
    """
    for path in [*temporary.rglob("*"), temporary] if temporary.is_dir() else [temporary]:
        sync(path)
    temporary.replace(target)
    sync(target.parent)
    publish(target)


def make_folder(folder: Path) -> None:
    """Make a folder and its parents, so that they survive a power cut."""
    if folder.exists():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync(folder.parent)


def set_aside(path: Path) -> Path:
    """Rename a damaged file to a name that no reader looks at, and return that."""
    number = 1
    while (kept := path.with_name(f".{path.name}.damaged-{number}")).exists() or is_stored(kept):
        number += 1
    path.replace(kept)
    sync(path.parent)
    rename(path, kept)
    return kept


def remove_file(path: Path) -> None:
    """Remove a file, durably."""
    path.unlink()
    sync(path.parent)
    withdraw(path)


def remove_folder(folder: Path) -> None:
    """Remove a folder; after an interruption, the rest has a name that no reader looks at."""
    doomed = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(doomed, ignore_errors=True)
    folder.replace(doomed)
    sync(folder.parent)
    withdraw_folder(folder)
    shutil.rmtree(doomed)


def remove_leftovers(parent: Path) -> None:
    """Remove what interrupted writes and removals of folders left in `parent`."""
    for pattern in (".*.tmp", ".*.old"):
        for path in parent.glob(pattern):
            shutil.rmtree(path)
    withdraw_unfinished(parent)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically, indented for people."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(json_text(value).encode())


def json_text(value: Any) -> str:
    """Return the text of a JSON file: the only one for a value and its order of keys."""
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
