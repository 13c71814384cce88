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


def remove_failed_start(root: Path, error: BaseException) -> None:
    """Remove the run that began in a folder, if it ends by an error before it has made anything.

    Call it with the folder's lock held, whose release removes the folder. The error then says so:
    until there is a table, a run can't be gone on with by other settings, so all that it would do
    is stand in the way of the next try.
    """
    with contextlib.suppress(StoreError, OSError):  # the disk or the store failed
        if not _has_work(root) and _remove_start(root) and isinstance(error, SrpoError):
            error.args = (f"{error}; nothing was made yet, so {root} was removed",)


@contextlib.contextmanager
def removing_failed_start(root: Path) -> Iterator[None]:
    """Remove the run that other processes began while a block waited for them, if they failed."""
    began = not is_taken(root)
    missing = [folder for folder in (root, *root.parents) if not folder.exists()]
    try:
        yield
    except BaseException as error:
        if began and root.is_dir() and not _has_work(root):
            with contextlib.suppress(StoreError, OSError), RunLock(root):  # not another command's
                remove_failed_start(root, error)
        with contextlib.suppress(OSError):  # not empty
            for folder in missing:
                if folder.exists():
                    folder.rmdir()
        raise


def _remove_start(root: Path) -> bool:
    """Remove what a start wrote; tell whether it was a run already."""
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
