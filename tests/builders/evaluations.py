"""Made-up evaluations: the answers to each question as a text of digits."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from tests.builders.tables import tables, with_column


def answers(*groups: str, tasks: Sequence[str] = ()) -> pa.Table:
    """Return evaluations; each group is a text of answers: digits, "." for none; 4 is right.

    Args:
        tasks: the task of each question.
    """
    rows = [(group, answer) for group, text in enumerate(groups) for answer in text]
    table = tables()["evaluations"].take(pa.array([0] * len(rows)))
    columns: dict[str, list[Any]] = {
        "group": [group for group, _ in rows],
        "prompt_id": [f"q{group}" for group, _ in rows],
        "prediction": ["" if answer == "." else answer for _, answer in rows],
        "correct": [answer == "4" for _, answer in rows],
        "format_ok": [answer != "." for _, answer in rows],
    }
    if tasks:
        columns["task"] = [tasks[group] for group, _ in rows]
    for name, values in columns.items():
        table = with_column(table, name, values)
    return table
