"""Rows of a dataset: what they hold, what they are called, and the questions they become.

Idea: every task whose questions lie in files makes them here and adds only what is its own, the
check of the gold answer. Each row carries the place it came from, so that every complaint can name
file and line; where rows come from is in `data/sources.py`.
"""

import re
from collections.abc import Callable

from data.row import Row, WrittenFloat
from pipeline.errors import RowError
from pipeline.task import BadRows, Message, Question, Split, usable_questions
from pipeline.text import printable

__all__ = ["LONGEST_ID", "Row", "WrittenFloat", "gold_error", "load_questions"]
"""What a task needs of this module."""

LONGEST_ID = 200
"""Characters of a prompt id."""


def load_questions(
    path: str | None,
    split: Split,
    task: str,
    reference: Callable[[Row], str],
    usual: Callable[[Row], Row] = lambda row: row,
    solution: Callable[[Row], str | None] = lambda row: None,
) -> list[Question]:
    """Return a split's questions in order.

    Args:
        path: what `data.path` says.
        split: train or test.
        task: name of the task; it begins the prompt ids of rows that name no dataset.
        reference: returns a row's gold answer as JSON text, or raises `RowError`.
        usual: gives a row of another layout the usual fields (dataset, idx, system, prompt), or
            raises `RowError`; the next ones see what it returns.
        solution: returns a row's worked solution, if it has one.

    Raises:
        DataError: there is no such data.
        BadRows: rows can't be used; the message names file and row of the first.
    """
    # Here, because the verifiers' child processes import tasks but read no files.
    from data.sources import read_rows

    rows = read_rows(path, split)
    first: dict[str, Row] = {}
    made: dict[int, Question] = {}

    def question(place: int) -> Question:
        row = rows[place]
        if row.problem is not None:
            raise RowError(f"{row.place}: {row.problem}")
        row = usual(row)
        name = prompt_id(row, task)
        if name in first:
            raise RowError(
                f"{first[name].place} and {row.place} are both named {name}: give each row an idx "
                "of its own"
            )
        made[place] = Question(name, messages(row), reference(row), solution(row))
        first[name] = row
        return made[place]

    # In the order of the file, which the split of a single file is not, so that the first bad rows
    # are those that a reader of the file meets first.
    places = sorted(range(len(rows)), key=lambda place: (rows[place].source, rows[place].number))
    try:
        usable_questions(places, question)
    except BadRows as bad:
        raise BadRows(bad.errors, [made[place] for place in sorted(made)]) from None
    return [made[place] for place in sorted(made)]


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
    if isinstance(index, float) and index.is_integer() and abs(index) < 2**53:
        index = int(index)  # tables with rows that lack one have floats
    if isinstance(index, bool) or not isinstance(index, int | str):
        raise RowError(f"{row.place}: idx is {_short(index)}, expected a whole number or a text")
    name = f"{dataset}-{index}"
    if len(name) > LONGEST_ID or printable(name) != name:
        raise RowError(
            f"{row.place}: dataset and idx make the prompt id {_short(name)}, expected at most "
            f"{LONGEST_ID} characters that can be seen and typed"
        )
    return name


def messages(row: Row) -> tuple[Message, ...]:
    """Return a row's conversation, its texts verbatim; no system turn if `system` is empty."""
    system, prompt = row.fields.get("system"), row.fields.get("prompt")
    if "prompt" not in row.fields:
        names = printable(", ".join(row.fields), LONGEST_ID)
        raise RowError(f"{row.place}: there is no prompt; its fields are {names or 'none'}")
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
