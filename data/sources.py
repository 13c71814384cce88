"""Where the rows of a dataset come from, and which split they belong to.

`data.path` is one of

    folder          a file for each split, `train` and `test`, in one of the formats of
                    `data/file_formats.py`, or Parquet in numbered pieces as the Hugging Face hub
                    has them, there or in its folder `data`: the splits as they were published
    file            rows of both splits; split here as the paper's were (docs/method.md, section 10)
    owner/dataset   a dataset of the Hugging Face hub, with a train and a test split, or with one
                    split, which is treated like a file
"""

import importlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

from data.file_formats import plain_row, read_file
from data.row import Row
from pipeline.errors import DataError
from pipeline.task import Split
from pipeline.text import printable

SPLIT_SEED = 42
_TEXTS = (".json", ".jsonl", ".ndjson", ".csv", ".tsv")
SUFFIXES = (*_TEXTS, *(f"{suffix}.gz" for suffix in _TEXTS), ".parquet")
HUB_LIBRARY = "datasets>=4"
_PIECE = re.compile(r"-(\d{5})-of-(\d{5})\.parquet")
_NAMED = 5
"""Names of a folder's files in a message."""

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def read_rows(path: str | None, split: Split) -> list[Row]:
    """Return a split's rows in order from a folder, a file or the Hugging Face hub."""
    if path is None:
        raise DataError(
            "data.path is not set but this task reads its questions from a file: give a folder "
            "with train.json and test.json, a single file or the name of a Hugging Face dataset"
        )
    place = Path(os.path.expanduser(path))
    if os.path.isdir(place):  # False also for names that no file can have
        return [row for file in _files_of_split(place, split) for row in read_file(file)]
    if os.path.isfile(place):
        return split_rows(read_file(place), split)
    if os.path.exists(place):
        raise DataError(f"data.path {path}: neither a regular file nor a folder")
    if _HUB_NAME.fullmatch(path) is None or path.lower().endswith(SUFFIXES):
        raise DataError(f"data.path {path}: there is no such file or folder")
    return _read_hub(path, split)


def _files_of_split(folder: Path, split: Split) -> list[Path]:
    """Return the file of a folder that holds a split, or its pieces in order."""
    files = _files(folder, split)
    sources = [[file] for file in files]
    sources += [pieces for place in (folder, folder / "data") if (pieces := _pieces(place, split))]
    if len(sources) > 1:
        names = " and ".join(str(source[0].relative_to(folder)) for source in sources)
        raise DataError(f"{folder} has both {names}: remove one of them")
    if sources:
        return sources[0]
    other = _files(folder, "test" if split == "train" else "train")
    hint = (
        f"; add it, or set data.path to the single file {other[0]} to have it split 90 to 10"
        if other
        else ": a folder needs train.json and test.json, or these in another format; data.path "
        f"may also be a single file, which is split 90 to 10; it has {_inside(folder)}"
    )
    raise DataError(f"{folder} has no {split}.json or {split}.jsonl{hint}")


def _files(folder: Path, split: Split) -> list[Path]:
    """Return the files of a folder that are called as a split is, in letters of either case."""
    names = [f"{split}{suffix}" for suffix in SUFFIXES]
    try:
        found = [file for file in folder.iterdir() if file.name.lower() in names and file.is_file()]
    except OSError as error:
        raise DataError(f"{folder} can't be read: {error.strerror or error}") from error
    return sorted(found, key=lambda file: (names.index(file.name.lower()), file.name))


def _pieces(folder: Path, split: Split) -> list[Path]:
    """Return the numbered pieces of a split, as the hub names them; none may be missing."""
    pieces = sorted(folder.glob(f"{split}-*-of-*.parquet"))
    numbers = [_PIECE.fullmatch(piece.name.removeprefix(split)) for piece in pieces]
    found = [(int(match[1]), int(match[2])) for match in numbers if match]
    if not found:
        return []
    expected = [(number, found[0][1]) for number in range(found[0][1])]
    if len(found) != len(pieces) or found != expected:
        raise DataError(
            f"{folder}: {len(found)} of {found[0][1]} pieces {split}-…-of-….parquet are there; "
            "fetch all of them"
        )
    return pieces


def _inside(folder: Path) -> str:
    """Return what a folder has, in a few words."""
    if (folder / "dataset_dict.json").is_file() or (folder / "dataset_info.json").is_file():
        return "what datasets.save_to_disk writes: save each split by to_parquet or to_json"
    names = sorted(printable(p.name, 40) + "/" * p.is_dir() for p in folder.iterdir())
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more or "nothing"


def split_rows(rows: Sequence[Row], split: Split) -> list[Row]:
    """Return a split of a single file as the paper made it (docs/method.md, section 10).

    Test is the first ceil(n / 10) of a permutation with a fixed seed, train the rest, in its order.
    """
    # Here, because numpy takes a while and only single files need it.
    import numpy

    order = numpy.random.default_rng(SPLIT_SEED).permutation(len(rows))
    tests = (len(rows) + 9) // 10
    if tests == len(rows):
        raise DataError(f"{rows[0].source} has one row: at least 2 are needed for train and test")
    return [rows[i] for i in (order[:tests] if split == "test" else order[tests:])]


def _read_hub(name: str, split: Split) -> list[Row]:
    """Return a split of a dataset on the Hugging Face hub, without running any code it holds."""
    try:
        hub = importlib.import_module("datasets")
    except ImportError as error:
        raise DataError(
            f"data.path {name} is no file or folder here; to read the Hugging Face dataset of this "
            f"name run: pip install '{HUB_LIBRARY}'"
        ) from error
    # From version 4 on the library can't run a dataset's own scripts any more.
    if int(hub.__version__.split(".")[0]) < 4:
        raise DataError(
            f"datasets {hub.__version__} can run code from a dataset: pip install '{HUB_LIBRARY}'"
        )
    try:
        splits = hub.load_dataset(name)
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"data.path {name} is no file or folder here, nor a Hugging Face dataset that can be "
            f"read: {reason}"
        ) from error
    if split not in splits and len(splits) != 1:
        raise DataError(f"dataset {name} has no split {split}, it has: {', '.join(splits)}")
    chosen = next(iter(splits)) if len(splits) == 1 else split
    source = f"{name}:{chosen}"
    rows = [plain_row(dict(f), source, i) for i, f in enumerate(splits[chosen], start=1)]
    if not rows:
        raise DataError(f"dataset {name} has no rows in its split {chosen}")
    return split_rows(rows, split) if len(splits) == 1 else rows
