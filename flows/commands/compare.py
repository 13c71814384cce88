"""`srpo compare`: the paper's Table 1 for these runs; or their methods' gradients side by side."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.commands.options import RUN, Output, OutputFormat
from pipeline.errors import SrpoError
from pipeline.text import print_warnings

if TYPE_CHECKING:
    from rich.console import Console

    from pipeline.compare.comparison import Axis, Comparison

_SECONDS_PER_HOUR = 3600
_LONGEST_NAME = 16
"""Longer labels stand above the tables, not in them: 80 columns must do."""


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders or URLs of runs.", **RUN)],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write a page and the figures there.")
    ] = None,
    hours: Annotated[
        str | None, typer.Option(metavar="H,…", help="Budgets of training wall clock, in hours.")
    ] = None,
    steps: Annotated[str | None, typer.Option(metavar="N,…", help="Budgets of steps.")] = None,
    tokens: Annotated[
        str | None, typer.Option(metavar="N,…", help="Budgets of sampled tokens.")
    ] = None,
    gradients: Annotated[
        bool,
        typer.Option(
            "--gradients",
            help="What each method does with the same rollouts: gradients, their cosines, and each "
            "token's part. The runs are replayed forks of one run.",
        ),
    ] = False,
    step: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="With --gradients: which step; default: the last that all start from one policy.",
        ),
    ] = None,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Compare runs as the paper's Table 1 does: best avg@k within budgets, over seeds.

    Runs that differ in run.* alone, as in their seeds, are one row. Budgets not given are a
    quarter, half and all of the range that every row covers.

    Example: srpo compare runs/srpo-0 runs/srpo-1 runs/grpo-0 --hours 0.5,1 --out comparison

    Example: srpo compare --gradients runs/methods/* --out side-by-side
    """
    if gradients:
        given = {"--hours": hours, "--steps": steps, "--tokens": tokens}
        for option in (name for name, value in given.items() if value is not None):
            raise SrpoError(f"{option} is a budget of accuracies; --gradients has none")
        _compare_gradients(runs, step, output, out)
        return
    if step is not None:
        raise SrpoError("--step is for --gradients; budgets of steps are --steps")
    limits: dict[Axis, list[float]] = {
        "seconds": [_SECONDS_PER_HOUR * value for value in _numbers("--hours", hours)],
        "tokens": _numbers("--tokens", tokens),
        "steps": _numbers("--steps", steps),
    }
    from pipeline.compare.comparison import compare_runs
    from pipeline.compare.report import record_of, write_folder
    from pipeline.run.run import Run

    found = compare_runs([Run.open(path) for path in runs], limits)
    print_warnings(found.warnings)
    if output is OutputFormat.JSON:
        print(json.dumps(record_of(found), indent=1))
    else:
        _print(found)
    if out is not None:
        files = write_folder(found, out)
        print(f"{len(files)} files; open {out / 'index.html'}", file=sys.stderr)


def _compare_gradients(
    runs: list[Path], step: int | None, output: OutputFormat, out: Path | None
) -> None:
    from flows.reruns.gradients import side_by_side
    from flows.terminal.console import open_console
    from flows.terminal.progress_bars import bars
    from flows.terminal.side_by_side_text import print_side_by_side
    from pipeline.compare.side_by_side import side_by_side_record
    from pipeline.run.run import Run
    from pipeline.viewer.side_by_side_page import expect_free, write_side_by_side

    if out is not None:
        expect_free(out)
    with bars("updates replayed", "methods") as (replayed, done):
        found = side_by_side([Run.open(path) for path in runs], step, done, replayed)
    print_warnings(found.warnings)
    if output is OutputFormat.JSON:
        print(json.dumps(side_by_side_record(found)))
    else:
        print_side_by_side(found, open_console())
    if out is not None:
        print(f"open {write_side_by_side(found, out)}", file=sys.stderr)


def _numbers(option: str, text: str | None) -> list[float]:
    try:
        values = [float(part) for part in text.split(",")] if text is not None else []
    except ValueError:
        values = [0.0]
    if any(not 0 < value < float("inf") for value in values):
        raise SrpoError(f"{option} {text}: expected numbers above 0 with commas between, as 1,2.5")
    return values


def _print(found: "Comparison") -> None:
    from rich.table import Table

    from flows.terminal.console import open_console
    from pipeline.compare.comparison import AXES
    from pipeline.compare.report import AXIS_TITLES, budgets_of, cell_texts, limit_text, note_of

    console = open_console()
    names = [row.label for row in found.rows]
    if max(map(len, names)) > _LONGEST_NAME:
        names = [f"row {number}" for number in range(1, len(names) + 1)]
        for name, row in zip(names, found.rows, strict=True):
            console.print(f"{name}: {row.label}", highlight=False, markup=False, soft_wrap=True)
    for axis in AXES:
        columns = list(budgets_of(found, axis))
        table = Table(
            title=f"best {found.measure} within {AXIS_TITLES[axis]}", title_justify="left"
        )
        table.add_column("row")
        for heading in ("seeds", *(limit_text(budget) for _, budget in columns)):
            table.add_column(heading, justify="right")
        for name, row, cells in zip(names, found.rows, found.cells, strict=True):
            texts = [cell_texts(cell) if (cell := cells[j]) else None for j, _ in columns]
            shown = ["{mean} ({low}-{high}){mark}".format(**t) if t else "-" for t in texts]
            table.add_row(name, str(len(row.curves)), *shown)
            for task in dict.fromkeys(task for t in texts if t for task in t["tasks"]):
                means = [t["tasks"].get(task, "-") if t else "-" for t in texts]
                table.add_row(f"  {task}", "", *means)
        console.print(table, highlight=False, markup=False)
    _print_passes(console, found, names)
    console.print(note_of(found), highlight=False, markup=False)


def _print_passes(console: "Console", found: "Comparison", names: Sequence[str]) -> None:
    from rich.table import Table

    from pipeline.compare.report import distinct_texts, ks_compared, pass_sentence, shift_texts

    changes = [
        (name, change)
        for name, change in zip(names, found.passes, strict=True)
        if change is not None
    ]
    if not changes:
        return
    title = "pass@k, change since before training, in points"
    table = Table(title=title, title_justify="left")
    table.add_column("row")
    ks = ks_compared(found)
    for heading in (*(f"k = {k}" for k in ks), "distinct"):
        table.add_column(heading, justify="right")
    for name, change in changes:
        shown = [shift_texts(change.at[k])["change"] if k in change.at else "-" for k in ks]
        table.add_row(name, *shown, "{start} to {last}".format(**distinct_texts(change)))
    console.print(table, highlight=False, markup=False)
    for name, change in changes:
        console.print(pass_sentence(name, change), highlight=False, markup=False)
