"""What a benchmark found: lines of one table, on the terminal and as Markdown."""

import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from pipeline.machine.processor import processor

BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
_HEADER = (
    "work", "TRL", "ours", "ratio", "target", "", "by FLOPs", "CPU s, TRL / ours",
    "stalled, TRL / ours",
)  # fmt: skip


class Line(NamedTuple):
    """One line of the table.

    Attributes:
        ratio: what the target is set for, with its range over the rounds.
        met: whether it reaches its target; None: it has none.
        flops: the ratio at equal rates, and the time that ours takes at a matmul's rate.
        cpu, stalled: CPU seconds and shares of time in which some task waited for a CPU.
    """

    work: str
    theirs: str = ""
    ours: str = ""
    ratio: str = ""
    target: str = ""
    met: bool | None = None
    flops: str = ""
    cpu: str = ""
    stalled: str = ""

    def cells(self) -> tuple[str, ...]:
        """Return the texts of the columns."""
        verdict = {True: "pass", False: "miss", None: ""}[self.met]
        return (
            self.work, self.theirs, self.ours, self.ratio, self.target, verdict, self.flops,
            self.cpu, self.stalled,
        )  # fmt: skip


class Sheet(NamedTuple):
    """A titled table of texts; the first column is a name."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """Return the rows as Markdown, without the title."""
        rows = [self.header, ("---",) * len(self.header), *self.rows]
        return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def show_sheets(sheets: Sequence[Sheet]) -> None:
    """Print some tables."""
    console = Console(width=170, markup=False, highlight=False)
    for sheet in sheets:
        table = Table(title=sheet.title)
        for number, name in enumerate(sheet.header):
            table.add_column(name, justify="right" if number else "left")
        for row in sheet.rows:
            table.add_row(*row)
        console.print(table)


def sheets_markdown(sheets: Sequence[Sheet]) -> str:
    """Return the same as Markdown, each table under its title in bold."""
    return "\n\n".join(f"**{sheet.title}**\n\n{sheet.markdown()}" for sheet in sheets)


def show(lines: Sequence[Line], notes: Sequence[str]) -> None:
    """Print the table and its notes."""
    console = Console(width=150, markup=False, highlight=False)
    table = Table(title=surroundings())
    for name in _HEADER:
        table.add_column(name, justify="left" if name in ("work", "") else "right")
    for line in lines:
        table.add_row(*line.cells())
    console.print(table)
    for note in notes:
        console.print(f"- {note}")


def markdown(lines: Sequence[Line], notes: Sequence[str]) -> str:
    """Return the same as Markdown."""
    table = Sheet("", _HEADER, [line.cells() for line in lines]).markdown()
    return "\n\n".join([surroundings() + ".", table, "\n".join(f"- {note}" for note in notes)])


def write(page: Path, text: str) -> None:
    """Replace what stands between a page's two marker comments."""
    content = page.read_text(encoding="utf-8")
    head, begin, rest = content.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{page}: no {BEGIN} … {END} to write between")
    page.write_text(f"{head}{BEGIN}\n\n{text}\n\n{END}{tail}", encoding="utf-8")


def surroundings() -> str:
    """Return date and machine in one line."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    today = datetime.now(UTC).date().isoformat()
    return (
        f"{today}, {processor()}, {os.cpu_count()} cores, {memory:.0f} GB, "
        f"Python {platform.python_version()}, torch {torch.__version__}"
    )
