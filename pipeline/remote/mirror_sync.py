"""Opening a mirror: one listing makes it equal to the store, small files are fetched.

Commands of one machine share a mirror by locks on a file beside it. A command that makes it equal
holds the lock alone; a writer shares it for as long as it writes. A mirror that is being written to
needs no refresh: what the store lacks is being uploaded.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from pipeline.errors import StoreError
from pipeline.remote import objects
from pipeline.remote.client import Address
from pipeline.remote.mirror_files import (
    LARGE,
    fetch_all,
    is_current,
    put_placeholder,
    stands_for,
)
from pipeline.remote.mirror_paths import address_of
from pipeline.remote.objects import Object

OPEN_SECONDS = 600.0
"""How long a command waits for another on this machine that opens the same mirror."""

_BLOCK = 512
_PROBE = 1_234_567_890_123_456_789
_MANAGED = ("run.json", "steps", "policy", "evaluations", "tokenizer")
"""What belongs to the store; all else in a mirror, such as locks, belongs to this machine."""


def refresh(root: Path) -> None:
    """Make a mirror equal to the store, unless a command writes to it; else do nothing.

    Raises:
        StoreError: the store failed, or another command opens the mirror for too long.
    """
    if address_of(root) is None:
        return
    with _marker(root) as marker:
        if _lock(marker, root, fcntl.LOCK_EX, fcntl.LOCK_SH) == fcntl.LOCK_EX:
            _make_equal(root)


def is_run(root: Path) -> bool:
    """Tell whether a run is in a folder or at a URL."""
    refresh(root)
    return (root / "run.json").exists()


def share(root: Path) -> IO[str]:
    """Make a mirror equal to the store, and keep others from doing so until the file is closed."""
    marker = _marker(root)
    try:
        _lock(marker, root, fcntl.LOCK_EX)
        _make_equal(root)
        fcntl.flock(marker, fcntl.LOCK_SH)
    except BaseException:
        marker.close()
        raise
    return marker


def discover(folder: Path, depth: int) -> None:
    """Mirror the runs that the store has in a folder, up to `depth` levels deep."""
    address = address_of(folder)
    if address is None:
        return
    if any((above / "run.json").exists() for above in folder.parents):
        names = [name for name in objects.listed(address) if name.rpartition("/")[2] == "run.json"]
        there = {(folder / name).parent for name in names}
    else:
        there = {folder.joinpath(*parts) for parts in _runs_below(address, depth)}
    patterns = ["*/" * level + "run.json" for level in range(depth + 1)]
    here = {path.parent for pattern in patterns for path in folder.glob(pattern)}
    for root in here ^ there:
        refresh(root)


def clear(root: Path) -> bool:
    """Free the space of a mirror's tables and weights; they are fetched again when they are read.

    The mirror is first made equal to the store, so nothing is lost. Open files stay readable.

    Returns:
        False: a command writes to it, so it stays as it is.
    """
    with _marker(root) as marker:
        if _lock(marker, root, fcntl.LOCK_EX, fcntl.LOCK_SH) != fcntl.LOCK_EX:
            return False
        for path, thing in _make_equal(root).items():
            if path.suffix in LARGE:
                put_placeholder(path, thing)
    return True


def mirrors(folder: Path) -> dict[Path, int]:
    """Return the mirrors in a folder of the cache, itself included, and what each takes, bytes."""
    markers = [_marker_of(folder), *sorted(folder.rglob(".*.mirror"))]
    opened = [m.with_name(m.name[1:].removesuffix(".mirror")) for m in markers if m.exists()]
    found = {root: 0 for root in opened if any((root / name).exists() for name in _MANAGED)}
    for path in folder.rglob("*"):
        root = next((above for above in path.parents if above in found), None)
        with contextlib.suppress(FileNotFoundError):  # another command is replacing it
            if root is not None:
                found[root] += path.lstat().st_blocks * _BLOCK
    return found


def _runs_below(address: Address, depth: int) -> Iterator[tuple[str, ...]]:
    """Yield the folders that hold a run.json, as parts of their names; runs are not entered."""
    if objects.has(address / "run.json"):
        yield ()
    elif depth:
        for name in objects.folders(address):
            if not name.startswith("."):
                for inner in _runs_below(address / name, depth - 1):
                    yield (name, *inner)


def _marker(root: Path) -> IO[str]:
    root.parent.mkdir(parents=True, exist_ok=True)
    path = _marker_of(root)
    marker = path.open("w+", encoding="utf-8")  # NFS shares no lock on what can only be written
    os.utime(path, ns=(_PROBE, _PROBE))
    if path.stat().st_mtime_ns != _PROBE:
        marker.close()
        raise StoreError(
            f"{path.parent!s}: this file system keeps no nanoseconds, by which cached files are "
            "known; set SRPO_CACHE to a folder on another one"
        )
    return marker


def _marker_of(root: Path) -> Path:
    return root.with_name(f".{root.name}.mirror")


def _lock(marker: IO[str], root: Path, *kinds: int) -> int:
    """Take the first kind of lock that can be had, and return it."""
    deadline = time.monotonic() + OPEN_SECONDS
    while True:
        for kind in kinds:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(marker, kind | fcntl.LOCK_NB)
                return kind
        if time.monotonic() > deadline:
            raise StoreError(
                f"{root}: waited {OPEN_SECONDS:g} s for another command of this machine that opens "
                "it; see what it is doing, then run this one again"
            )
        time.sleep(0.05)


def _make_equal(root: Path) -> dict[Path, Object]:
    """Fetch what is new on the store, remove what it lacks; return what it has."""
    address = address_of(root)
    assert address is not None
    found = {root / name: thing for name, thing in _listed(address).items()}
    for path in list(_managed_files(root)):
        if path not in found:
            path.unlink()
    managed = [path for name in _MANAGED for path in [root / name, *(root / name).glob("**/*")]]
    for folder in sorted((path for path in managed if path.is_dir()), reverse=True):
        with contextlib.suppress(OSError):  # not empty
            folder.rmdir()
    for path, thing in found.items():
        if path.suffix in LARGE and not (is_current(path, thing) or stands_for(path, thing)):
            put_placeholder(path, thing)
    fetch_all({path: thing for path, thing in found.items() if path.suffix not in LARGE})
    return found


def _listed(address: Address) -> dict[str, Object]:
    """Return what belongs to a run and to no run inside it, without snapshots that are not whole.

    The pages of a listing are of different moments: a table may be stored after its page was made,
    and its manifest before its own. So a listing with a manifest but no table is made again.
    """
    found = _visible(objects.listed(address))
    if any(_lacks_table(name, found) for name in found):
        found = _visible(objects.listed(address))
    inner = tuple(name.removesuffix("run.json") for name in found if name.endswith("/run.json"))
    return {
        name: thing
        for name, thing in found.items()
        if not name.startswith(inner) and _is_whole(name, found)
    }


def _visible(found: dict[str, Object]) -> dict[str, Object]:
    """Leave out the run's lock, and what was set aside."""
    return {n: o for n, o in found.items() if not any(p.startswith(".") for p in n.split("/"))}


def _lacks_table(name: str, found: dict[str, Object]) -> bool:
    folder, _, last = name.rpartition("/")
    beside = [f"{folder}/{last.removesuffix('.json')}{end}" for end in (".arrow", ".pruned.json")]
    return (
        folder.startswith(("steps", "evaluations"))
        and last.endswith(".json")
        and last.partition(".")[0] not in ("metrics", "profile", "run")
        and not last.endswith(".pruned.json")
        and not {*beside} & found.keys()
    )


def _is_whole(name: str, found: dict[str, Object]) -> bool:
    """Tell whether a file of a snapshot has the record beside it that is stored last."""
    first, _, rest = name.partition("/")
    return first != "policy" or f"policy/{rest.partition('/')[0]}/state.json" in found


def _managed_files(root: Path) -> Iterator[Path]:
    """Yield the files of a mirror that are the store's, without those of runs inside it."""
    inner = {path.parent for path in root.glob("*/**/run.json")}
    for name in _MANAGED:
        for path in [root / name, *(root / name).rglob("*")]:
            hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
            if path.is_file() and not hidden and inner.isdisjoint(path.parents):
                yield path
