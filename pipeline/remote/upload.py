"""Uploads: what is committed to a mirror goes to the store at once, in the same order.

So a manifest, which is written after its table, is also stored after it, and its creation on the
store commits the table for everybody else. An upload appears whole or not at all.

Only the holder of the run's lease stores anything (`pipeline.remote.lease`). In addition, records
that never change are created on the condition that there is none.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from pipeline.errors import StoreError
from pipeline.remote import objects
from pipeline.remote.client import Address, Changed
from pipeline.remote.mirror_files import LARGE, mark_stored
from pipeline.remote.mirror_paths import address_of

_MAY_CHANGE = ("run.json", "profile.json")

_fences: dict[Path, Callable[[], None]] = {}


def begin_storing(root: Path, fence: Callable[[], None]) -> None:
    """Let this process store what it commits to a mirror.

    Args:
        fence: called before each change; raises if another writer may have begun.
    """
    _fences[root.resolve()] = fence


def end_storing(root: Path) -> None:
    """Stop storing what this process commits to a mirror."""
    del _fences[root.resolve()]


def publish(target: Path) -> None:
    """Store a file or folder that was committed to a mirror; do nothing for any other.

    Raises:
        StoreError: the store failed, or another command writes to the run.
    """
    address = _address_to_change(target)
    if address is None:
        return
    if target.is_dir():
        _publish_folder(target, address)
    else:
        _publish_file(target, address)


def withdraw(target: Path) -> None:
    """Remove from the store a file that was removed here."""
    address = _address_to_change(target)
    if address is not None:
        objects.remove(address)


def withdraw_folder(target: Path) -> None:
    """Remove from the store a folder that was removed here; of a snapshot, its record first."""
    address = _address_to_change(target)
    if address is None:
        return
    names = objects.listed(address)
    for name in _while_held(target, sorted(names, key=lambda name: name != "state.json")):
        objects.remove(address / name)


def withdraw_unfinished(parent: Path) -> None:
    """Remove from the store the remains of folders that have no record, state.json."""
    address = _address_to_change(parent)
    if address is None:
        return
    names = objects.listed(address)
    for name in _while_held(parent, names):
        if f"{name.partition('/')[0]}/state.json" not in names:
            objects.remove(address / name)


def is_stored(path: Path) -> bool:
    """Tell whether the store has an object for a path; it has none for an ordinary path."""
    address = address_of(path)
    return address is not None and objects.has(address)


def rename(target: Path, kept: Path) -> None:
    """Give an object the name that its file got: copied, then removed."""
    address = _address_to_change(target)
    if address is not None and objects.copy(address, address.beside(kept.name)):
        _expect_held(target)
        objects.remove(address)


def _address_to_change(path: Path) -> Address | None:
    """Return what a path stands for, if this process still holds its run; None: nothing to store.

    Raises:
        StoreError: it does not hold it.
    """
    address = address_of(path)
    if address is None or _is_being_written(path.parent):
        return None
    _expect_held(path)
    return address


def _is_being_written(folder: Path) -> bool:
    """Tell whether a folder is temporary; a run's name may look like one."""
    return folder.name.startswith(".") and folder.resolve() not in _fences


def _expect_held(path: Path) -> None:
    """Refuse to change a run that this process no longer holds."""
    fence = next((_fences[p] for p in path.resolve().parents if p in _fences), None)
    if fence is None:
        raise StoreError(f"{path}: not stored: this command doesn't hold the lock of its run")
    fence()


def _while_held(folder: Path, names: Iterable[str]) -> Iterator[str]:
    """Yield names, checking the hold before each: another writer may begin at any time."""
    for name in names:
        _expect_held(folder)
        yield name


def _publish_file(path: Path, address: Address) -> None:
    changing = path.name in _MAY_CHANGE or path.name.endswith(".pruned.json")
    if changing or path.suffix in LARGE:
        mark_stored(path, objects.upload(address, path))
        return
    try:
        mark_stored(path, objects.create(address, path.read_bytes()).etag or "")
    except Changed:
        raise StoreError(
            f"{path}: stored by another command meanwhile, with other contents: see who else "
            "writes to the run, and go on when only one does"
        ) from None


def _publish_folder(folder: Path, address: Address) -> None:
    """Store a folder; its record, if it has one, comes last, once the rest is exact."""
    former = objects.listed(address)
    if "state.json" in former:
        objects.remove(address / "state.json")
    files = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    for name in _while_held(folder, sorted(files.keys() - {"state.json"})):
        mark_stored(files[name], objects.upload(address / name, files[name]))
    for name in _while_held(folder, sorted(former.keys() - files.keys())):
        objects.remove(address / name)
    if "state.json" in files:
        _expect_held(folder)
        _publish_file(files["state.json"], address / "state.json")
