"""`srpo diff`: where two runs part, and which decisions changed."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.commands.options import Output, OutputFormat
from pipeline.remote.mirror_paths import run_path
from pipeline.text import count, number, printable

if TYPE_CHECKING:
    from rich.console import Console

    from pipeline.compare.run_diff import DecisionChange, RunDiff, TableSummary

_WIDTH = 60


def diff(
    run_a: Annotated[
        Path, typer.Argument(metavar="RUN_A", parser=run_path, help="Folder or URL of a run.")
    ],
    run_b: Annotated[
        Path, typer.Argument(metavar="RUN_B", parser=run_path, help="Another one, or its fork.")
    ],
    output: Output = OutputFormat.TABLE,
    limit: Annotated[int, typer.Option(min=0, help="Changed decisions shown of each kind.")] = 20,
) -> None:
    """Say where two runs differ first, in which tables, and which decisions changed.

    Data are compared, not files. Exit code 0: equal tables; 1: they differ; 2: an error.

    Example: srpo diff runs/first runs/first-beta2
    """
    from flows.terminal.console import open_console
    from pipeline.compare.run_diff import diff_runs
    from pipeline.run.run import Run

    found = diff_runs(Run.open(run_a), Run.open(run_b))
    if output is OutputFormat.JSON:
        print(json.dumps(_record(found, limit), indent=1))
    else:
        _print(found, limit, open_console())
    if not found.equal:
        raise typer.Exit(1)


def _record(found: "RunDiff", limit: int) -> dict[str, Any]:
    kinds = {"verdicts": found.verdicts, "routes": found.routes}
    totals = {f"changed_{name}": len(changes) for name, changes in kinds.items()}
    shown = {name: [asdict(c) for c in changes[:limit]] for name, changes in kinds.items()}
    head = {"equal": found.equal, "sentence": found.sentence}
    return {**head, **totals, **asdict(found), **shown}


def _print(found: "RunDiff", limit: int, console: "Console") -> None:
    def say(text: str = "") -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    say(found.sentence)
    if found.settings:
        say("\nsettings that differ (a, b):")
        for key, (old, new) in found.settings.items():
            say(f"  {key}: {_shown(old)}, {_shown(new)}")
    _print_summaries(found, console)
    for name, changes in (("verdicts", found.verdicts), ("routes", found.routes)):
        if changes:
            say(f"\n{count(len(changes))} changed {name}:")
            for change in changes[:limit]:
                say(f"  {_change(change)}")
            if len(changes) > limit:
                say(f"  … and {count(len(changes) - limit)} more; --limit shows more")
    if found.weights:
        tokens = sum(change.tokens for change in found.weights)
        top = max(found.weights, key=lambda change: change.largest)
        say(
            f"\nweights of {count(tokens)} tokens changed, by {number(top.largest)} at most "
            f"(rollout {top.rollout_id}, position {top.position})"
        )


def _print_summaries(found: "RunDiff", console: "Console") -> None:
    from rich.table import Table

    table = Table("table", "steps in both", "differ", "rows", "differ", "only in one", box=None)
    for summary in found.summaries:
        table.add_row(
            summary.table,
            *(count(n) for n in (summary.steps, summary.differing_steps)),
            *(count(n) for n in (summary.rows, summary.differing_rows)),
            _alone(summary),
        )
    console.print()
    console.print(table, highlight=False, markup=False)


def _alone(summary: "TableSummary") -> str:
    sides = (("a", summary.only_a), ("b", summary.only_b))
    alone = [f"{name}: {_spans(steps)}" for name, steps in sides if steps]
    if summary.unread:
        alone.append(f"differ, but were pruned: {_spans(summary.unread)}")
    return "; ".join(alone)


def _spans(steps: tuple[int, ...]) -> str:
    """Return (0, 1, 2, 5) as 0-2, 5."""
    spans: list[list[int]] = []
    for step in steps:
        if spans and spans[-1][1] == step - 1:
            spans[-1][1] = step
        else:
            spans.append([step, step])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in spans)


def _change(change: "DecisionChange") -> str:
    parts = [f"{name} {_shown(a)} → {_shown(b)}" for name, (a, b) in change.changes.items()]
    return f"{printable(change.rollout_id)}  {', '.join(parts)}"


def _shown(value: Any) -> str:
    """Return a value for the terminal: texts are quoted, cut, and harmless (no control codes)."""
    if isinstance(value, float):
        return number(value)
    if not isinstance(value, str):
        return str(value)
    return f"'{printable(value, _WIDTH)}'"
