"""A start that fails leaves nothing behind: no half-made run, and none without a table."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import SrpoError, StoreError
from pipeline.files.durable import remove_file, remove_folder
from pipeline.run.lock import RunLock
from pipeline.run.run import is_taken

_RECORD = "run.json"
_FOLDERS = ("tokenizer", "policy", "steps", "evaluations")
_TEMPORARY = (".run.json.tmp", ".tokenizer.tmp", ".*.old")


@contextlib.contextmanager
def removing_failed_start(root: Path) -> Iterator[None]:
    """Remove the run that a block began, if the block fails before the run has made anything.

    The error then says so: until there is a table, a run can't be gone on with by other settings,
    so all that it would do is stand in the way of the next try.
    """
    began_here = not is_taken(root)
    missing = [folder for folder in (root, *root.parents) if not folder.exists()]
    try:
        yield
    except BaseException as error:
        if began_here and _remove_start(root) and isinstance(error, SrpoError):
            error.args = (f"{error}; nothing was made yet, so {root} was removed",)
        with contextlib.suppress(OSError):  # not empty
            for folder in missing:
                if folder.exists():
                    folder.rmdir()
        raise


def _remove_start(root: Path) -> bool:
    """Remove what a failed start wrote, if that is all there is; tell whether a run went."""
    if not root.is_dir() or _has_work(root):
        return False
    try:
        with RunLock(root):
            return _remove_unless_used(root)
    except (StoreError, OSError):  # another command took it over, or the disk failed
        return False


def _remove_unless_used(root: Path) -> bool:
    if _has_work(root):
        return False
    was_run = (root / _RECORD).exists()
    if was_run:
        remove_file(root / _RECORD)  # first: the rest is then no run to any reader
    for name in _FOLDERS:
        if (root / name).is_dir():
            remove_folder(root / name)
    for pattern in _TEMPORARY:
        for left in root.glob(pattern):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    return was_run


def _has_work(root: Path) -> bool:
    """Tell whether a run has a committed table, or verdicts that a command would find again."""
    made = (path for part in ("steps", "evaluations") for path in (root / part).rglob("*.json"))
    return any(not path.name.endswith(".pairs.json") for path in made)
