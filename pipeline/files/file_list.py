"""Folders whose files are listed, with their SHA-256, in a record: snapshots and the tokenizer."""

from collections.abc import Callable, Mapping
from pathlib import Path

from pipeline.errors import StoreError
from pipeline.files.durable import has_digest


class WrongFile(StoreError):
    """A file of a list is missing, changed or a stranger."""

    def __init__(self, path: Path, problem: str, advice: str) -> None:
        super().__init__(f"{path}: {problem}; {advice}")
        self.path, self.problem, self.advice = path, problem, advice


def expect_files(
    folder: Path,
    listed: Mapping[str, str],
    record: str,
    repair: str,
    fetch_anew: Callable[[Path], bool],
    mine: slice = slice(None),
) -> None:
    """Refuse a folder that doesn't hold the listed files as they were, and no others.

    Args:
        listed: SHA-256 by name of file, without the record itself.
        record: the file that lists them, for messages.
        repair: what to do.
        fetch_anew: fetches a changed file again; returns False if there is none to fetch.
        mine: which of the listed files to read; other ranks read the rest.

    Raises:
        WrongFile: one is missing, changed or a stranger.
    """
    for name, expected in list(listed.items())[mine]:
        path = folder / Path(name).name
        if not path.is_file() or not has_digest(path, expected, fetch_anew):
            problem = f"missing or damaged (SHA-256 differs from {record})"
            raise WrongFile(path, problem, repair)
    found = {path.name for path in folder.iterdir()} - {record}
    if others := sorted(found - set(listed)):
        problem = f"a file that {record} does not list"
        raise WrongFile(folder / others[0], problem, "remove it")


def snapshot_repair(folder: Path) -> str:
    """Say what to do about a broken snapshot; nothing rebuilds the first."""
    if not (folder.name.isdecimal() and int(folder.name)):
        return "restore it from a copy"
    return "restore it from a copy, or delete the folder: the tables rebuild it from an earlier one"
