"""Rows of a dataset: where they come from, which split they belong to, what they are called.

Idea: every task whose questions lie in files reads them here and adds only what is its own, the
check of the gold answer. `data.path` is one of

    folder          train.json and test.json (or .jsonl): the splits as they were published
    file            JSON lines; split here as the paper's were (docs/method.md, section 10)
    owner/dataset   a dataset of the Hugging Face hub, with a train and a test split, or with one
                    split, which is treated like a file

Each row carries the place it came from, so that every complaint can name file and line.
"""

import importlib
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Self

from pipeline.errors import DataError, RowError
from pipeline.task import Message, Question, Split
from pipeline.text import printable

SPLIT_SEED = 42
SUFFIXES = (".json", ".jsonl")
HUB_LIBRARY = "datasets>=4"
LONGEST_ROW = 16 * 2**20
"""Bytes of one line of a file."""
LARGEST_FILE = 4 * 2**30
"""Bytes of a file, all of which is held in memory."""
LONGEST_ID = 200
"""Characters of a prompt id."""

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


class WrittenFloat(float):
    """A number of a JSON file that keeps how it was written.

    Attributes:
        text: its text: `0.00001` where repr says 1e-05, `1.0`, or all digits of one that has more
            than a float holds.
    """

    text: str

    def __new__(cls, text: str) -> Self:
        """Return the float that the text means."""
        number = super().__new__(cls, text)
        number.text = text
        return number


@dataclass(frozen=True)
class Row:
    """One record of a dataset.

    Attributes:
        fields: the record as it was read.
        source: file (or dataset and split) it came from.
        number: its line in the file, from 1.
    """

    fields: dict[str, object]
    source: str
    number: int

    @property
    def place(self) -> str:
        """Where the row is, for messages."""
        return f"{self.source}, row {self.number}"


def load_questions(
    path: str | None, split: Split, task: str, reference: Callable[[Row], str]
) -> list[Question]:
    """Return a split's questions in order.

    Args:
        path: what `data.path` says.
        split: train or test.
        task: name of the task; it begins the prompt ids of rows that name no dataset.
        reference: returns a row's gold answer as JSON text, or raises `RowError`.

    Raises:
        DataError: there is no such data, or a row can't be used; the message names file and row.
    """
    rows = read_rows(path, split)
    names = [prompt_id(row, task) for row in rows]
    check_unique(rows, names)
    return [
        Question(name, messages(row), reference(row)) for row, name in zip(rows, names, strict=True)
    ]


def read_rows(path: str | None, split: Split) -> list[Row]:
    """Return a split's rows in order from a folder, a file or the Hugging Face hub."""
    if path is None:
        raise DataError(
            "data.path is not set but this task reads its questions from a file: give a folder "
            "with train.json and test.json, a JSON-lines file or the name of a Hugging Face dataset"
        )
    place = Path(os.path.expanduser(path))
    if os.path.isdir(place):  # False also for names that no file can have
        return read_file(_file_of_split(place, split))
    if os.path.isfile(place):
        return split_rows(read_file(place), split)
    if _HUB_NAME.fullmatch(path) is None or path.endswith(SUFFIXES):
        raise DataError(f"data.path {path}: there is no such file or folder")
    return _read_hub(path, split)


def _file_of_split(folder: Path, split: Split) -> Path:
    """Return the one file of a folder that holds a split."""

    def found(name: str) -> list[Path]:
        return [folder / f"{name}{s}" for s in SUFFIXES if (folder / f"{name}{s}").is_file()]

    files = found(split)
    if len(files) > 1:
        raise DataError(f"{folder} has both {split}.json and {split}.jsonl: remove one of them")
    if files:
        return files[0]
    other = found("test" if split == "train" else "train")
    hint = (
        f"; add it, or set data.path to the single file {other[0]} to have it split 90 to 10"
        if other
        else ": a folder needs train.json and test.json, JSON lines"
    )
    raise DataError(f"{folder} has no {split}.json or {split}.jsonl{hint}")


def read_file(path: Path) -> list[Row]:
    """Return the rows of a JSON-lines file; empty lines are skipped but counted.

    Raises:
        DataError: it can't be read, is too large, or a line is no JSON object of its own.
    """
    rows = [
        Row(_fields(line, path, number), str(path), number)
        for number, line in enumerate(_lines(path), start=1)
        if line.strip()
    ]
    if not rows:
        raise DataError(f"{path} has no rows: expected one JSON object per line")
    return rows


def _lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of a file, never more in memory than the longest that is allowed.

    Only \\n ends a line: JSON strings may hold the other characters str.splitlines splits at.
    """
    number = size = 0
    try:
        with path.open("rb") as file:
            while line := file.readline(LONGEST_ROW + 1):
                number, size = number + 1, size + len(line)
                if len(line) > LONGEST_ROW:
                    raise DataError(
                        f"{path}, row {number}: over {LONGEST_ROW // 2**20} MiB; expected one JSON "
                        "object per line"
                    )
                if size > LARGEST_FILE:
                    raise DataError(
                        f"{path}, row {number}: over {LARGEST_FILE // 2**30} GiB up to here, which "
                        "a run would hold in memory; take fewer rows"
                    )
                yield line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}") from error


def _fields(line: bytes, path: Path, number: int) -> dict[str, object]:
    """Return what one line says."""
    try:
        fields = json.loads(
            line, object_pairs_hook=_once, parse_constant=_no_constant, parse_float=WrittenFloat
        )
    except (ValueError, RecursionError) as error:
        reason = printable(" ".join(str(error).split()), LONGEST_ID)
        raise RowError(
            f"{path}, row {number}: not valid JSON ({reason}); expected one JSON object per line"
        ) from error
    if not isinstance(fields, dict):
        raise RowError(
            f"{path}, row {number}: got a {type(fields).__name__}, expected one JSON object per "
            "line"
        )
    return fields


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Return an object; of a key that comes twice nobody knows which value was meant."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} comes twice")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def split_rows(rows: Sequence[Row], split: Split) -> list[Row]:
    """Return a split of a single file as the paper made it (docs/method.md, section 10).

    Test is the first ceil(n / 10) of a permutation with a fixed seed, train the rest, in its order.
    """
    # Here, because the verifiers' child processes import this module and need no numpy.
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
    rows = [Row(dict(f), f"{name}:{chosen}", i) for i, f in enumerate(splits[chosen], start=1)]
    if not rows:
        raise DataError(f"dataset {name} has no rows in its split {chosen}")
    return split_rows(rows, split) if len(splits) == 1 else rows


def prompt_id(row: Row, task: str) -> str:
    """Return a row's name: dataset and `idx`, or dataset, file and row number without an `idx`.

    The file is part of the name since row 1 of train and row 1 of test are different questions.
    """
    dataset = row.fields.get("dataset") or task
    index = row.fields.get("idx")
    if not isinstance(dataset, str):
        raise RowError(f"{row.place}: dataset is {_short(dataset)}, expected a text")
    if index is None:
        index = f"{re.split('[/:]', row.source)[-1].split('.')[0]}-{row.number}"
    if isinstance(index, bool) or not isinstance(index, int | str):
        raise RowError(f"{row.place}: idx is {_short(index)}, expected a whole number or a text")
    name = f"{dataset}-{index}"
    if len(name) > LONGEST_ID or printable(name) != name:
        raise RowError(
            f"{row.place}: dataset and idx make the prompt id {_short(name)}, expected at most "
            f"{LONGEST_ID} characters that can be seen and typed"
        )
    return name


def check_unique(rows: Sequence[Row], names: Sequence[str]) -> None:
    """Raise `DataError` if two rows have the same prompt id."""
    first: dict[str, Row] = {}
    for row, name in zip(rows, names, strict=True):
        if name in first:
            raise DataError(
                f"{first[name].place} and {row.place} are both named {name}: give each row an idx "
                "of its own"
            )
        first[name] = row


def messages(row: Row) -> tuple[Message, ...]:
    """Return a row's conversation, its texts verbatim; no system turn if `system` is empty."""
    system, prompt = row.fields.get("system"), row.fields.get("prompt")
    if not isinstance(prompt, str) or not prompt.strip():
        raise RowError(f"{row.place}: prompt is {_short(prompt)}, expected a text")
    if system is not None and not isinstance(system, str):
        raise RowError(f"{row.place}: system is {_short(system)}, expected a text or null")
    turns = (Message("system", system or ""), Message("user", prompt))
    for role, content in turns:
        try:
            content.encode()
        except UnicodeEncodeError as error:
            raise RowError(
                f"{row.place}: the {role} text has half of a surrogate pair at character "
                f"{error.start}: remove it"
            ) from error
    return turns if system else turns[1:]


def gold_error(row: Row, found: object, expected: str) -> RowError:
    """Return the error that rejects a row for its gold answer."""
    return RowError(f"{row.place}: the gold answer is {_short(found)}, expected {expected}")


def _short(value: object) -> str:
    """Return a value as one line of bounded length."""
    try:
        text = repr(value)
    except RecursionError:
        text = f"a deeply nested {type(value).__name__}"
    return text if len(text) <= 120 else f"{text[:120]}…"
