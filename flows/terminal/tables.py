"""Listings on the terminal: tables that fit its width, with texts made safe to print."""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.audit.rollout import RolloutRecord
from pipeline.text import NOTHING, count, number, printable

NARROW = (
    "rollout_id", "route", "reward", "advantage", "response_tokens", "divergence", "loss_sum",
    "prediction",
)  # fmt: skip
WIDE = (
    "rollout_id", "prompt_id", "route", "reward", "advantage", "response_tokens", "divergence",
    "loss_sum", "teacher_rollout_id", "prediction", "reason",
)  # fmt: skip
WIDE_FROM = 120
"""Width of the terminal, in characters, from which the wide listing fits."""
TEXT_LIMIT = 20_000
"""Longest text on the terminal, in characters; JSON has it whole."""
_CELL, _LEAST_TEXT, _GAP = 500, 10, 2
_FILE_WIDTH = 140
_GROUPED_NARROW = (
    "rollouts", "mean_correct", "mean_response_tokens", "mean_advantage", "mean_divergence",
    "mean_loss_sum",
)  # fmt: skip
_HEADS = {
    "response_tokens": "tokens", "teacher_rollout_id": "teacher", "loss_sum": "loss",
    "advantage": "adv", "divergence": "div", "mean_response_tokens": "tokens",
    "mean_correct": "correct", "mean_format_ok": "format", "mean_advantage": "adv",
    "mean_divergence": "div", "mean_loss_sum": "loss", "mean_reward": "reward",
}  # fmt: skip
_SHORT = ("rollout_id", "route", "teacher_rollout_id", "finish_reason")
"""Texts that are never cut."""
_ROUTE_STYLES = {"sdpo": "cyan", "grpo": "green", "mix": "magenta", "none": "dim"}


@contextmanager
def file_console(path: Path) -> Iterator[Console]:
    """Yield a console that writes plain text into a file."""
    with path.open("w", encoding="utf-8") as file:
        yield Console(file=file, width=_FILE_WIDTH)


def print_rows(console: Console, rows: pl.DataFrame, counts: tuple[int, int], limit: int) -> None:
    """Print the first `limit` rows, of rollouts or of groups, and how many rollouts match.

    Args:
        counts: rollouts that match, and rollouts that were searched.
    """
    shown = rows.head(limit)
    if len(shown):
        room = _side_by_side(console, shown)
        console.print(_table(shown.select(room)))
        if left := [name for name in shown.columns if name not in room]:
            say(console, f"no room for {', '.join(left)}: use a wider terminal, or --format json")
    matched, of = counts
    groups = f"{_several(len(rows), 'group')} (means); " if _are_groups(rows) else ""
    cut = f"; {count(len(shown))} shown (--limit)" if len(shown) < len(rows) else ""
    say(console, f"{groups}{count(matched)} of {_several(of, 'rollout')} match{cut}")


def fitting(console: Console, rows: pl.DataFrame, sorted_by: str | None) -> pl.DataFrame:
    """Return the columns that fit a terminal of this width, and the one sorted by."""
    wide = console.width >= WIDE_FROM
    if not _are_groups(rows):
        names = list(WIDE if wide else NARROW)
    else:
        means = [n for n in rows.columns if n.startswith("mean_")]
        names = [n for n in rows.columns if wide or n not in means or n in _GROUPED_NARROW]
    if sorted_by is not None and sorted_by not in names:
        names.insert(1, sorted_by)
    return rows.select(names)


def print_prompt(
    console: Console, found: pl.DataFrame, example: RolloutRecord | None, limit: int
) -> None:
    """Print how the rollouts of one question went, step by step.

    Args:
        found: rows of the listing.
        example: one of them, for the question itself.
    """
    if example is not None:
        for message in example.rollout["messages"]:
            say(console, f"{message['role']}: {message['content']}")
        say(console, f"reference: {example.rollout['reference']}\n")
    steps = found.partition_by("step", maintain_order=True)
    table = plain_table(
        [("step", "right"), ("correct", "right"), ("reward", "right"), ("routes", "left"),
         ("taught by", "left"), ("div", "right"), ("predictions", "left")],
        flexible={"predictions"},
    )  # fmt: skip
    for rows in steps[:limit]:
        table.add_row(*_step_cells(rows))
    console.print(table)
    cut = f"; {_several(limit, 'step')} shown (--limit)" if limit < len(steps) else ""
    say(console, f"{_several(len(found), 'rollout')} in {_several(len(steps), 'step')}{cut}")


def say(console: Console, text: str, style: str = "") -> None:
    """Print untrusted text: no markup, no control codes, bounded."""
    shown = printable(text, TEXT_LIMIT, newlines=True)
    console.print(Text(shown, style=style), soft_wrap=False)


def plain_table(columns: Sequence[tuple[str, Any]], flexible: Collection[str]) -> Table:
    """Return a table without rules; where it does not fit, `flexible` columns are cut first.

    Args:
        columns: heading and justification.
        flexible: headings of these columns; their cells are `Text` that does not wrap (see `cell`).
    """
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, _GAP, 0, 0))
    for name, justify in columns:
        table.add_column(Text(name), justify=justify, no_wrap=name not in flexible)
    return table


def cell(value: Any, name: str = "") -> Text:
    """Return a value as a cell of one line: numbers shortened, texts made safe."""
    if value is None:
        return Text(NOTHING, style="dim")
    if isinstance(value, bool):
        return Text("yes" if value else "no")
    if isinstance(value, float):
        return Text(number(value))
    style = _ROUTE_STYLES.get(value, "") if name == "route" else ""
    return line(printable(str(value), _CELL), style)


def line(shown: str, style: str = "") -> Text:
    """Return a text that is cut, not wrapped, where it does not fit."""
    return Text(shown, style=style, no_wrap=True, overflow="ellipsis")


def _side_by_side(console: Console, rows: pl.DataFrame) -> list[str]:
    """Return the first columns that fit side by side, with texts cut as short as allowed."""
    found: list[str] = []
    used = 0
    for name in rows.columns:
        cells = [Text(_head(name)), *(cell(value) for value in rows[name])]
        width = max(text.cell_len for text in cells)
        used += (min(width, _LEAST_TEXT) if name in _texts(rows) else width) + _GAP
        if found and used > console.width:
            break
        found.append(name)
    return found


def _texts(rows: pl.DataFrame) -> list[str]:
    """Return the columns whose texts may be cut."""
    return [n for n, kind in rows.schema.items() if kind == pl.String and n not in _SHORT]


def _head(name: str) -> str:
    return _HEADS.get(name, name)


def _table(rows: pl.DataFrame) -> Table:
    right = {name for name, kind in rows.schema.items() if kind.is_numeric()}
    table = plain_table(
        [(_head(name), "right" if name in right else "left") for name in rows.columns],
        {_head(name) for name in _texts(rows)},
    )
    for row in rows.iter_rows(named=True):
        cells = [cell(value, name) for name, value in row.items()]
        if _are_groups(rows):  # groups are few, and differ at the ends of their texts
            cells = [Text(text.plain, style=text.style) for text in cells]
        table.add_row(*cells)
    return table


def _are_groups(rows: pl.DataFrame) -> bool:
    return "rollouts" in rows.columns


def _several(number_of: int, thing: str) -> str:
    return f"{count(number_of)} {thing}{'' if number_of == 1 else 's'}"


def _step_cells(rows: pl.DataFrame) -> Sequence[Text]:
    teachers = rows.filter(pl.col("route").is_in(["sdpo", "mix"]))["teacher_rollout_id"]
    judged = rows.filter(pl.col("error").is_null())
    right = judged["correct"].sum() if judged["correct"].null_count() < len(judged) else None
    return (
        cell(rows["step"][0]),
        Text(NOTHING if right is None else f"{right}/{len(judged)}"),
        cell(judged["reward"].mean()),
        _counted(rows["route"].to_list()),
        _counted([_sample(teacher) for teacher in teachers.drop_nulls()]),
        cell(rows["divergence"].mean()),
        _counted(rows["prediction"].to_list()),
    )


def _sample(rollout_id: str) -> str:
    """Return the number of a rollout within its group."""
    return "#" + rollout_id.rsplit("-", 1)[-1].lstrip("0").zfill(1)


def _counted(values: Sequence[str | None]) -> Text:
    """Return the values with their counts, the most frequent first."""
    counts = Counter(value if value else NOTHING for value in values)
    parts = [f"{printable(v, _CELL)} ×{n}" for v, n in counts.most_common()]
    return line(", ".join(parts) or NOTHING)
