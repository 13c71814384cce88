"""One row per rollout over any steps, joined from the tables; filters, sorting and grouping.

Token tables are read only for the columns that summarise weights, and only where those are named.
"""

import json
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from polars.exceptions import PolarsError

from pipeline.errors import ConfigError, StoreError
from pipeline.gold_share import gold_share
from pipeline.run.run import Run
from pipeline.tables.rollout_index import stored_index
from pipeline.tables.schemas import SCHEMAS
from pipeline.text import printable


class Column(NamedTuple):
    """A column of the listing: the table that it comes from, its name there, and its type."""

    name: str
    table: str
    source: str
    kind: pl.DataType


_TEXT, _INT, _REAL, _FLAG = pl.String(), pl.Int32(), pl.Float32(), pl.Boolean()
COLUMNS = (
    Column("rollout_id", "rollouts", "rollout_id", _TEXT),
    Column("step", "rollouts", "step", _INT),
    Column("group", "rollouts", "group", _INT),
    Column("sample", "rollouts", "sample", _INT),
    Column("task", "rollouts", "task", _TEXT),
    Column("prompt_id", "rollouts", "prompt_id", _TEXT),
    Column("route", "routes", "route", _TEXT),
    Column("reason", "routes", "reason", _TEXT),
    Column("reward", "verdicts", "reward", _REAL),
    Column("correct", "verdicts", "correct", _FLAG),
    Column("format_ok", "verdicts", "format_ok", _FLAG),
    Column("prediction", "verdicts", "prediction", _TEXT),
    Column("advantage", "routes", "advantage", _REAL),
    Column("teacher_available", "routes", "teacher_available", _FLAG),
    Column("teacher_source", "routes", "teacher_source", _TEXT),
    Column("teacher_rollout_id", "routes", "teacher_rollout_id", _TEXT),
    Column("teacher_step", "routes", "teacher_step", _INT),
    Column("mini_batch", "routes", "mini_batch", _INT),
    Column("response_tokens", "rollouts", "response_ids", _INT),
    Column("finish_reason", "rollouts", "finish_reason", _TEXT),
    Column("loss_sum", "updates", "loss_sum", pl.Float64()),
    Column("share", "updates", "share", pl.Float64()),
    Column("divergence", "updates", "mean_divergence", _REAL),
    Column("mean_ratio", "updates", "mean_ratio", _REAL),
    Column("clipped_fraction", "updates", "clipped_fraction", _REAL),
    Column("mean_tis", "updates", "mean_tis", _REAL),
    Column("max_logprob_gap", "updates", "max_logprob_gap", _REAL),
    Column("engine_kl", "updates", "engine_kl", _REAL),
    Column("tis_cut_fraction", "updates", "tis_cut_fraction", _REAL),
    Column("computed", "updates", "computed", _FLAG),
    Column("old_source", "updates", "old_source", _TEXT),
    Column("verifier", "verdicts", "verifier", _TEXT),
    Column("error", "verdicts", "error", _TEXT),
    Column("policy_version", "rollouts", "policy_version", _TEXT),
)
ON_REQUEST = (
    Column("response_text", "rollouts", "response_text", _TEXT),
    Column("reference", "rollouts", "reference", _TEXT),
    Column("feedback", "verdicts", "feedback", _TEXT),
    Column("feedback_gold_share", "verdicts", "feedback", _REAL),
    Column("teacher_prompt_text", "routes", "teacher_prompt_text", _TEXT),
    Column("credit_lambda", "routes", "credit_lambda", _REAL),
    Column("teacher_entropy", "weights", "entropy", _REAL),
    Column("weight_mean", "weights", "weight", _REAL),
    Column("weight_std", "weights", "weight", _REAL),
    Column("weight_min", "weights", "weight", _REAL),
    Column("weight_max", "weights", "weight", _REAL),
)
"""Long texts and what is counted in them, what few runs have, and columns that need the weights of
every token: read only where they are named."""

_DERIVED = {
    "feedback_gold_share": "share of the gold answer that the feedback tells",
    "teacher_entropy": "mean of the teacher's entropy over the response, nats",
    "weight_mean": "mean of the token weights",
    "weight_std": "deviation of the token weights",
    "weight_min": "smallest token weight",
    "weight_max": "largest token weight",
}
_OF_OTHER_ROWS = {"Agg", "Over", "Explode", "Quantile", "Correlation"}
_MEANS = (
    "reward",
    "correct",
    "format_ok",
    "response_tokens",
    "advantage",
    "divergence",
    "loss_sum",
)
_OF_A_VERDICT = ("reward", "correct", "format_ok")
_TABLES = ("rollouts", "verdicts", "routes", "updates")


def describe() -> dict[str, str]:
    """Return what each column means."""
    found = {}
    for column in (*COLUMNS, *ON_REQUEST):
        schema = SCHEMAS[column.table]
        assert schema is not None
        metadata = schema.field(column.source).metadata
        found[column.name] = _DERIVED.get(column.name) or metadata[b"description"].decode()
    return {**found, "response_tokens": "length of the response"}


def samples(
    run: Run, steps: Sequence[int] | None = None, needs: Collection[str] = ()
) -> pl.LazyFrame:
    """Return one row per rollout; tables that a step lacks give nulls.

    Args:
        steps: which steps; default: all that have rollouts.
        needs: columns of `ON_REQUEST` to add.

    Raises:
        ConfigError: the run has no rollouts of a step.
    """
    there = run.steps_of("rollouts")
    chosen = there if steps is None else list(steps)
    if missing := [step for step in chosen if step not in set(there)]:
        raise ConfigError(f"{run.root}: no rollouts of step {missing[0]}; it has {_range(there)}")
    wanted = [*COLUMNS, *(c for c in ON_REQUEST if c.name in needs)]
    frames = [_step_frame(run, step, wanted) for step in chosen]
    schema = {column.name: column.kind for column in wanted}
    return (pl.concat(frames) if frames else pl.DataFrame(schema=schema)).lazy()


def named_columns(*texts: str | None) -> list[str]:
    """Return the columns whose names occur in any of these expressions or lists."""
    return [c.name for c in (*COLUMNS, *ON_REQUEST) if any(c.name in (t or "") for t in texts)]


def where(frame: pl.LazyFrame, expression: str) -> pl.LazyFrame:
    """Keep the rows for which a Polars SQL expression is true; no Python is ever evaluated.

    Raises:
        ConfigError: it can't be parsed or computed, names an unknown column, looks at other rows
            (aggregates, windows, subqueries), or is neither true nor false.
    """
    try:
        condition = pl.sql_expr(expression)
        roots = set(condition.meta.root_names())
        if unknown := sorted(roots.difference(frame.collect_schema().names())):
            raise ConfigError(f"no column {unknown[0]}")
        if not roots or _OF_OTHER_ROWS & _nodes(condition):
            raise ConfigError("expected a condition on the columns of one row at a time")
        kind = frame.select(condition.alias("condition")).collect_schema()["condition"]
        if kind != pl.Boolean:
            raise ConfigError(f"gives {kind}, expected true or false")
        return frame.filter(condition).collect().lazy()
    except (PolarsError, ConfigError) as error:
        reason = printable(str(error).splitlines()[0], 300)  # it may quote values
        raise ConfigError(
            f"--where {printable(expression, 300)}: {reason}; columns: {_names(frame)} "
            "(write texts as in route = 'sdpo', and \"group\" in double quotes)"
        ) from None


def _nodes(expression: pl.Expr) -> set[str]:
    """Return all keys of an expression's tree; its kinds of nodes are among them."""

    def keys(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            yield from value
            value = list(value.values())
        if isinstance(value, list):
            for part in value:
                yield from keys(part)

    return set(keys(json.loads(expression.meta.serialize(format="json"))))


def ordered(frame: pl.LazyFrame, column: str) -> pl.LazyFrame:
    """Sort by a column, in descending order if its name begins with a minus; nulls come last.

    Raises:
        ConfigError: no such column.
    """
    name = column.removeprefix("-")
    expect_columns(frame, [name])
    descending = column.startswith("-")
    return frame.sort(name, descending=descending, nulls_last=True, maintain_order=True)


def grouped(frame: pl.LazyFrame, columns: Sequence[str]) -> pl.LazyFrame:
    """Count rollouts and average numbers by the values of some columns, sorted by them.

    What a verdict with an error has in their stead is in no average.

    Raises:
        ConfigError: no such column.
    """
    expect_columns(frame, columns)
    averaged = [name for name in _MEANS if name not in columns]
    return (
        frame.group_by(columns)
        .agg(pl.len().alias("rollouts"), *[_average(name) for name in averaged])
        .rename({name: f"mean_{name}" for name in averaged})
        .sort(columns)
    )


def _average(name: str) -> pl.Expr:
    if name not in _OF_A_VERDICT:
        return pl.col(name).mean()
    return pl.when(pl.col("error").is_null()).then(pl.col(name)).mean().alias(name)


def expect_columns(frame: pl.LazyFrame, names: Sequence[str]) -> None:
    """Raise `ConfigError` for a column that the listing doesn't have."""
    known = frame.collect_schema().names()
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(f"no column {unknown[0]}; there are {_names(frame)}")


def _names(frame: pl.LazyFrame) -> str:
    shown = frame.collect_schema().names()
    return ", ".join([*shown, *(c.name for c in ON_REQUEST if c.name not in shown)])


def _range(steps: Sequence[int]) -> str:
    return f"steps {steps[0]} to {steps[-1]}" if steps else "none"


def _step_frame(run: Run, step: int, wanted: Sequence[Column]) -> pl.DataFrame:
    """Join one step's tables: all have the rollouts' order, so columns stand side by side."""
    tables = {t: run.read(t, step) for t in _TABLES if run.has(t, step)}
    rollouts = tables["rollouts"]
    ids = rollouts["rollout_id"]
    for name, table in tables.items():
        if not table["rollout_id"].equals(ids):
            raise StoreError(f"{run.table_path(name, step)}: not in the rollouts' order")
    plain = [c for c in wanted if c.table != "weights"]
    columns: dict[str, Any] = {c.name: _values(c, tables, rollouts.num_rows) for c in plain}
    of_weights = [c.name for c in wanted if c.table == "weights"]
    if of_weights:
        columns |= _weight_columns(run, step, ids.to_pylist(), of_weights)
    return pl.DataFrame(columns, schema={c.name: c.kind for c in wanted})


def _values(column: Column, tables: dict[str, pa.Table], rows: int) -> pl.Series:
    if column.table not in tables or column.source not in tables[column.table].column_names:
        return pl.Series(column.name, [None] * rows, dtype=column.kind)
    if column.name == "feedback_gold_share":
        return pl.Series(column.name, _gold_shares(tables), dtype=column.kind)
    data = tables[column.table][column.source]
    if column.name == "response_tokens":
        data = pc.list_value_length(data)
    found = pl.from_arrow(data)
    assert isinstance(found, pl.Series)
    return found.rename(column.name)


def _gold_shares(tables: dict[str, pa.Table]) -> list[float | None]:
    """Return the gold share of each verdict's feedback; None: it has none."""
    verdicts, rollouts = tables["verdicts"], tables["rollouts"]
    columns = (verdicts["feedback"], rollouts["reference"], verdicts["prediction"])
    texts = zip(*(c.to_pylist() for c in (*columns, rollouts["response_text"])), strict=True)
    return [gold_share(said, *rest) if said and said.strip() else None for said, *rest in texts]


def _weight_columns(
    run: Run, step: int, ids: Sequence[str], names: Sequence[str]
) -> dict[str, list[float | None]]:
    """Summarise the token weights of each taught rollout; None for the others."""
    found: dict[str, list[float | None]] = {name: [None] * len(ids) for name in names}
    index = stored_index(run.manifest("weights", step)) if run.has("weights", step) else {}
    if not index:
        return found
    table = run.read("weights", step)
    weight, entropy = table["weight"].to_numpy(), table["entropy"].to_numpy()
    for row, rollout_id in enumerate(ids):
        if rollout_id not in index:
            continue
        first, count = index[rollout_id]
        w, h = weight[first : first + count], entropy[first : first + count]
        summary = {
            "teacher_entropy": h.mean(dtype=np.float64),
            "weight_mean": w.mean(dtype=np.float64),
            "weight_std": w.std(dtype=np.float64),
            "weight_min": w.min(),
            "weight_max": w.max(),
        }
        for name in names:
            found[name][row] = float(summary[name])
    return found
