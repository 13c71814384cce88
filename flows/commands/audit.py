"""`srpo audit`: list, filter and group rollouts, follow a prompt, show one rollout whole."""

import json
import sys
from contextlib import nullcontext
from enum import StrEnum
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.commands.options import RUN
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    import polars as pl

    from pipeline.run.run import Run

SHOWN = 50


class AuditFormat(StrEnum):
    """How `srpo audit` writes."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"
    PARQUET = "parquet"


class Route(StrEnum):
    """The routes of docs/method.md."""

    GRPO = "grpo"
    SDPO = "sdpo"
    MIX = "mix"
    NONE = "none"


Step = Annotated[str | None, typer.Option(metavar="N|A:B", help="A step, or steps A to B - 1.")]
Where = Annotated[
    str | None, typer.Option(metavar="EXPR", help="SQL condition on columns: 'divergence > 0.02'.")
]
Prompt = Annotated[
    str | None, typer.Option(metavar="ID", help="Follow one question through training.")
]
Rollout = Annotated[
    str | None, typer.Option(metavar="ID", help="Show one rollout whole, token by token.")
]
Sort = Annotated[
    str | None, typer.Option(metavar="COLUMN", help="Sort by it; -COLUMN: largest first.")
]
GroupBy = Annotated[
    str | None, typer.Option(metavar="A,B", help="Counts and means by these columns.")
]
Columns = Annotated[
    str | None, typer.Option(metavar="A,B", help="These columns; 'help' explains all there are.")
]
Limit = Annotated[
    int | None, typer.Option(min=0, help=f"Rows at most; if not given, tables show {SHOWN}.")
]
Style = Annotated[
    AuditFormat | None, typer.Option("--format", help="If not given: by the name of --output.")
]


def audit(
    run: Annotated[Path, typer.Argument(help="Folder or URL of a run.", **RUN)],
    step: Step = None,
    route: Annotated[Route | None, typer.Option(help="Only this route.")] = None,
    where: Where = None,
    prompt: Prompt = None,
    rollout: Rollout = None,
    sort: Sort = None,
    group_by: GroupBy = None,
    columns: Columns = None,
    limit: Limit = None,
    style: Style = None,
    output: Annotated[Path | None, typer.Option(help="Write to this file.")] = None,
) -> None:
    """Ask which rollouts went where, and why; no model is needed.

    JSON, CSV and Parquet hold all rows that match, with all columns but long texts and
    statistics of token weights, unless told otherwise.

    Example: srpo audit runs/first --where "route = 'sdpo' and divergence > 0.02" --sort=-loss_sum
    """
    from pipeline.run.run import Run

    if columns == "help":
        _print_columns()
        return
    style = style or _format_of(output)
    opened = Run.open(run)
    if rollout is not None:
        _expect_nothing_else(step, route, where, prompt, sort, group_by, columns)
        _show_rollout(opened, rollout, style, limit, output)
        return
    found, of = _selected(opened, step, route, prompt, where, (sort, group_by, columns))
    if style is AuditFormat.TABLE and prompt is not None and not (columns or group_by or sort):
        _show_prompt(opened, found, limit, output)
        return
    rows = _arranged(found, sort, group_by, columns)
    if style is AuditFormat.TABLE:
        _show_rows(rows, columns is None, sort, (len(found), of), limit, output)
    else:
        _write_rows(rows if limit is None else rows.head(limit), style, output)


def _expect_nothing_else(*others: str | None) -> None:
    if any(other is not None for other in others):
        raise ConfigError(
            "--rollout shows one rollout; it goes with --limit, --format and --output only"
        )


def _selected(
    run: "Run",
    step: str | None,
    route: Route | None,
    prompt: str | None,
    where: str | None,
    named: tuple[str | None, ...],
) -> "tuple[pl.DataFrame, int]":
    """Return the rollouts that match, and how many were looked at."""
    import polars as pl

    from pipeline.audit import listing

    frame = listing.samples(run, _steps(run, step), needs=listing.named_columns(where, *named))
    of = frame.select(pl.len()).collect().item()
    if prompt is not None:
        frame = frame.filter(pl.col("prompt_id") == prompt)
        if frame.select(pl.len()).collect().item() == 0:
            raise ConfigError(f"{run.root}: no rollout of prompt {prompt} in these steps")
    if route is not None:
        frame = frame.filter(pl.col("route") == route.value)
    if where is not None:
        frame = listing.where(frame, where)
    return frame.collect(), of


def _arranged(
    frame: "pl.DataFrame", sort: str | None, group_by: str | None, columns: str | None
) -> "pl.DataFrame":
    from pipeline.audit import listing

    lazy = frame.lazy()
    if group_by is not None:
        lazy = listing.grouped(lazy, _names(group_by))
    if sort is not None:
        lazy = listing.ordered(lazy, sort)
    if columns is not None:
        listing.expect_columns(lazy, _names(columns))
        lazy = lazy.select(_names(columns))
    return lazy.collect()


def _names(text: str) -> list[str]:
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise ConfigError("--columns and --group-by expect names of columns, such as route,reason")
    return names


def _steps(run: "Run", text: str | None) -> list[int] | None:
    """Return the steps that `N` or the half-open `A:B` means, A or B left out being the ends."""
    if text is None:
        return None
    first, colon, last = text.partition(":")
    if not all(part.isdecimal() for part in (first, last) if part) or text in ("", ":"):
        raise ConfigError(f"--step {text}: expected a step such as 12, or A:B such as 10:20")
    if not colon:
        return [int(first)]
    there = run.steps_of("rollouts")
    low, high = int(first or 0), int(last) if last else None
    found = [s for s in there if s >= low and (high is None or s < high)]
    if not found:
        span = f"steps {there[0]} to {there[-1]}" if there else "no steps"
        raise ConfigError(f"--step {text}: no step of {run.root}, which has {span}")
    return found


def _format_of(output: Path | None) -> AuditFormat:
    suffix = output.suffix.removeprefix(".") if output else ""
    return AuditFormat(suffix) if suffix in set(AuditFormat) else AuditFormat.TABLE


def _show_rollout(
    run: "Run", rollout_id: str, style: AuditFormat, limit: int | None, output: Path | None
) -> None:
    from pipeline.audit.rollout import rollout_record

    record = rollout_record(run, rollout_id)
    if style is AuditFormat.JSON:
        _write_json(record.to_dict(), output)
        return
    if style is not AuditFormat.TABLE:
        raise ConfigError(f"--rollout with --format {style}: one rollout is a table or json")
    from flows.terminal.rollout_text import print_rollout

    with _console(output) as console:
        print_rollout(console, record, limit)


def _show_prompt(run: "Run", found: "pl.DataFrame", limit: int | None, output: Path | None) -> None:
    from flows.terminal.tables import print_prompt
    from pipeline.audit.rollout import rollout_record

    example = rollout_record(run, found["rollout_id"][0]) if len(found) else None
    with _console(output) as console:
        print_prompt(console, found, example, SHOWN if limit is None else limit)


def _show_rows(
    rows: "pl.DataFrame",
    fit: bool,
    sort: str | None,
    counts: tuple[int, int],
    limit: int | None,
    output: Path | None,
) -> None:
    from flows.terminal.tables import fitting, print_rows

    with _console(output) as console:
        if fit:
            rows = fitting(console, rows, sort.removeprefix("-") if sort else None)
        print_rows(console, rows, counts, SHOWN if limit is None else limit)


def _write_rows(rows: "pl.DataFrame", style: AuditFormat, output: Path | None) -> None:
    if style is AuditFormat.PARQUET:
        if output is None:
            raise ConfigError("--format parquet needs --output FILE")
        rows.write_parquet(output)
    elif style is AuditFormat.CSV:
        on_screen = output is None and sys.stdout.isatty()
        _write_text((_cleaned(rows) if on_screen else rows).write_csv(), output)
    else:
        _write_json(rows.to_dicts(), output)


def _cleaned(rows: "pl.DataFrame") -> "pl.DataFrame":
    """Return rows whose texts a terminal can show; files and pipes get them as they are."""
    import polars as pl

    from pipeline.text import printable

    texts = pl.col(pl.String)
    return rows.with_columns(texts.map_elements(printable, return_dtype=pl.String))


def _write_json(value: Any, output: Path | None) -> None:
    _write_text(json.dumps(_finite(value), indent=1, allow_nan=False) + "\n", output)


def _finite(value: Any) -> Any:
    """Return a value as JSON can hold it: numbers that are not finite are null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def _write_text(text: str, output: Path | None) -> None:
    if output is not None:
        output.write_text(text, encoding="utf-8")
    elif sys.stdout.isatty():
        sys.stdout.write(text)
    else:  # another program reads it: UTF-8, whatever the locale
        sys.stdout.flush()
        sys.stdout.buffer.write(text.encode("utf-8", "replace"))


def _console(output: Path | None) -> Any:
    """Return a context that gives the console to print on."""
    from flows.terminal.console import open_console
    from flows.terminal.tables import file_console

    return nullcontext(open_console()) if output is None else file_console(output)


def _print_columns() -> None:
    from rich.table import Table

    from flows.terminal.console import open_console
    from pipeline.audit.listing import describe

    table = Table("column", "meaning", box=None)
    for name, meaning in describe().items():
        table.add_row(name, meaning)
    open_console().print(table, highlight=False, markup=False)
