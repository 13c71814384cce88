"""What differs between two runs: the first table that does, and every changed decision.

Data are compared, not files: the metadata of a file holds settings and digests of inputs, so two
tables with equal rows may have different SHA-256s. Equal files are not read.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.compare.column_diff import Mask, Rows, differing_rows, matched_rows
from pipeline.run.removal import PRUNABLE, removal
from pipeline.run.run import Run
from pipeline.run.step_layout import ALL_TABLES, tables_of
from pipeline.tables.arrow_reading import one_array
from pipeline.tables.manifest import Manifest, flat
from pipeline.tables.mapped import MappedTable
from pipeline.tables.rollout_index import table_index
from pipeline.text import count

TABLES = (*ALL_TABLES, "evaluations")
"""The tables in the order in which data flows; evaluations come last."""

_DECISIONS = {
    "verdicts": ("reward", "correct", "prediction"),
    "routes": ("route", "teacher_rollout_id", "advantage"),
}
_OF_THE_RUN = ("task_digest", "questions_digest", "initial_policy_version")
_SLICE_BYTES = 8 << 20


@dataclass(frozen=True)
class TableDiff:
    """A table of one step that differs.

    Attributes:
        stage: the stage that made it.
        columns: those that differ; only rollout_id where rows have no counterpart.
        differing: rows that differ, those that only one run has included.
        rows: rows of the larger table.
    """

    step: int
    table: str
    stage: str
    columns: tuple[str, ...]
    differing: int
    rows: int


@dataclass(frozen=True)
class TableSummary:
    """One table over all steps: how many of those that both runs have differ.

    Attributes:
        unread: steps whose tables differ by their manifests, and were pruned in one of the runs.
    """

    table: str
    steps: int
    differing_steps: int
    rows: int
    differing_rows: int
    only_a: tuple[int, ...]
    only_b: tuple[int, ...]
    unread: tuple[int, ...] = ()


@dataclass(frozen=True)
class DecisionChange:
    """A verdict or route that changed: by column (a's value, b's value)."""

    step: int
    table: str
    rollout_id: str
    changes: Mapping[str, tuple[Any, Any]]


@dataclass(frozen=True)
class WeightChange:
    """The token weights that changed in a step, and the largest absolute change."""

    step: int
    tokens: int
    largest: float
    rollout_id: str
    position: int


@dataclass(frozen=True)
class RunDiff:
    """Everything that differs between runs a and b.

    Attributes:
        settings: changed settings by dotted key, and digests of task, questions and first policy.
        tables: every table that differs, in the order of steps and flow; evaluations last.
        verdicts: changed reward, correctness or prediction.
        routes: changed route, teacher or advantage.
        weights: one entry for each step in which weights changed.
    """

    a: str
    b: str
    settings: Mapping[str, tuple[Any, Any]]
    tables: tuple[TableDiff, ...]
    summaries: tuple[TableSummary, ...]
    verdicts: tuple[DecisionChange, ...]
    routes: tuple[DecisionChange, ...]
    weights: tuple[WeightChange, ...]

    @property
    def first(self) -> TableDiff | None:
        """Return the first table that differs."""
        return self.tables[0] if self.tables else None

    @property
    def equal(self) -> bool:
        """Tell whether both runs have the same tables with the same data."""
        return not self.tables and not any(s.only_a or s.only_b or s.unread for s in self.summaries)

    @property
    def sentence(self) -> str:
        """Say in one sentence where the runs part."""
        compared = sum(summary.steps for summary in self.summaries)
        if self.first is not None:
            d, unit = self.first, "evaluation" if self.first.table == "evaluations" else "step"
            return (
                f"first difference: {unit} {d.step}, table {d.table} (stage {d.stage}): "
                f"{', '.join(d.columns)} in {count(d.differing)} of {count(d.rows)} rows"
            )
        if not compared:
            return "nothing to compare: the runs have no table in common"
        same = f"no difference: all {count(compared)} tables that both runs have hold equal data"
        return same if self.equal else f"{same}; one run has more"


@dataclass
class _Found:
    tables: list[TableDiff]
    summaries: list[TableSummary]
    decisions: list[DecisionChange]
    weights: list[WeightChange]


@dataclass(frozen=True)
class _Pair:
    """One table of one step in both runs, and which of its rows belong together."""

    step: int
    table: str
    stage: str
    maps: tuple[MappedTable, MappedTable]
    rows_a: Rows | None
    rows_b: Rows | None

    @property
    def a(self) -> pa.Table:
        return self.maps[0].table

    @property
    def b(self) -> pa.Table:
        return self.maps[1].table

    @property
    def common(self) -> int:
        return self.a.num_rows if self.rows_a is None else len(self.rows_a)

    def slices(self) -> Iterator[tuple[pa.Table, pa.Table]]:
        """Yield a's and b's rows in pieces of some megabytes; what was read is given back."""
        width = max(side.nbytes // max(side.num_rows, 1) for side in (self.a, self.b))
        size = max(1, _SLICE_BYTES // max(width, 1))
        for start in range(0, self.common, size):
            yield (
                _part(self.a, self.rows_a, start, size),
                _part(self.b, self.rows_b, start, size),
            )
            for mapped in self.maps:
                mapped.release()


def diff_runs(a: Run, b: Run) -> RunDiff:
    """Compare two runs table by table.

    Raises:
        StoreError: a table can't be read.
    """
    found = _Found([], [], [], [])
    made = {*tables_of(a.config), *tables_of(b.config), "evaluations"}
    for table in (t for t in TABLES if t in made):
        _compare_steps(a, b, table, found)
    place = {table: index for index, table in enumerate(TABLES)}
    found.tables.sort(key=lambda d: (d.table == "evaluations", d.step, place[d.table]))
    return RunDiff(
        a=str(a.root),
        b=str(b.root),
        settings=_changed_settings(a, b),
        tables=tuple(found.tables),
        summaries=tuple(found.summaries),
        verdicts=tuple(d for d in found.decisions if d.table == "verdicts"),
        routes=tuple(d for d in found.decisions if d.table == "routes"),
        weights=tuple(found.weights),
    )


def _changed_settings(a: Run, b: Run) -> dict[str, tuple[Any, Any]]:
    left, right = (
        {**flat(run.config.model_dump()), **{k: run.record.get(k) for k in _OF_THE_RUN}}
        for run in (a, b)
    )
    return {
        key: (left.get(key), right.get(key))
        for key in [*left, *(right.keys() - left.keys())]
        if left.get(key) != right.get(key)
    }


def _compare_steps(a: Run, b: Run, table: str, found: _Found) -> None:
    in_a, in_b = _steps(a, table), _steps(b, table)
    both = sorted(set(in_a) & set(in_b))
    rows, differing, unread = 0, [], []
    for step in both:
        manifests = a.manifest(table, step), b.manifest(table, step)
        rows += max(m.rows for m in manifests)
        if _same_file(a, b, table, step, manifests):
            continue
        if not (a.has(table, step) and b.has(table, step)):
            unread.append(step)
            continue
        difference = _compare(_pair(a, b, table, step, manifests), found)
        if difference is not None:
            differing.append(difference)
    found.tables += differing
    found.summaries.append(
        TableSummary(
            table=table,
            steps=len(both),
            differing_steps=len(differing),
            rows=rows,
            differing_rows=sum(d.differing for d in differing),
            only_a=tuple(sorted(set(in_a) - set(in_b))),
            only_b=tuple(sorted(set(in_b) - set(in_a))),
            unread=tuple(unread),
        )
    )


def _steps(run: Run, table: str) -> list[int]:
    """Return the steps of which a run has, or had, a table."""
    begun = run.steps_of("rollouts") if table in PRUNABLE else []
    gone = [step for step in begun if removal(run.table_path(table, step)) is not None]
    return sorted([*run.steps_of(table), *gone])


def _same_file(a: Run, b: Run, table: str, step: int, manifests: tuple[Manifest, Manifest]) -> bool:
    same_path = a.table_path(table, step).resolve() == b.table_path(table, step).resolve()
    return same_path or manifests[0].sha256 == manifests[1].sha256


def _pair(a: Run, b: Run, table: str, step: int, manifests: tuple[Manifest, Manifest]) -> _Pair:
    left, right = (run.mapped(table, step) for run in (a, b))
    index_a, index_b = table_index(left.table, manifests[0]), table_index(right.table, manifests[1])
    rows_a, rows_b = (None, None) if index_a == index_b else matched_rows(index_a, index_b)
    return _Pair(step, table, manifests[0].origin.stage, (left, right), rows_a, rows_b)


def _part(data: pa.Table, rows: Rows | None, start: int, size: int) -> pa.Table:
    if rows is None:
        return data.slice(start, size)
    return data.take(pa.array(rows[start : start + size]))


def _compare(pair: _Pair, found: _Found) -> TableDiff | None:
    """Note what differs in one table; None if nothing does."""
    columns: set[str] = set()
    differing = 0
    change: WeightChange | None = None
    for a, b in pair.slices():
        masks = _masks(a, b)
        columns |= {name for name, mask in masks.items() if mask.any()}
        differing += int(np.logical_or.reduce(list(masks.values())).sum())
        if pair.table in _DECISIONS:
            found.decisions += _decisions(pair, a, b, masks)
        if pair.table == "weights":
            change = _weight_change(pair.step, a, b, masks["weight"], change)
    if change is not None:
        found.weights.append(change)
    rows = max(pair.a.num_rows, pair.b.num_rows)
    if pair.a.num_rows != pair.common or pair.b.num_rows != pair.common:
        columns.add("rollout_id")
        differing += pair.a.num_rows + pair.b.num_rows - 2 * pair.common
    order = [name for name in _names(pair.a, pair.b) if name in columns]
    if not order:
        return None
    return TableDiff(pair.step, pair.table, pair.stage, tuple(order), min(differing, rows), rows)


def _names(a: pa.Table, b: pa.Table) -> list[str]:
    return list(dict.fromkeys([*a.column_names, *b.column_names]))


def _masks(a: pa.Table, b: pa.Table) -> dict[str, Mask]:
    """Return by column which rows differ; a column of one table alone differs everywhere."""
    everywhere = np.ones(a.num_rows, dtype=bool)
    return {
        name: differing_rows(one_array(a[name]), one_array(b[name]))
        if name in a.column_names and name in b.column_names
        else everywhere
        for name in _names(a, b)
    }


def _decisions(
    pair: _Pair, a: pa.Table, b: pa.Table, masks: Mapping[str, Mask]
) -> Iterator[DecisionChange]:
    names = _DECISIONS[pair.table]
    rows = np.flatnonzero(np.logical_or.reduce([masks[name] for name in names]))
    taken = pa.array(rows)
    ids = a["rollout_id"].take(taken).to_pylist()
    old = a.select(names).take(taken).to_pylist()
    new = b.select(names).take(taken).to_pylist()
    for row, name, before, after in zip(rows, ids, old, new, strict=True):
        changes = {key: (before[key], after[key]) for key in names if masks[key][row]}
        yield DecisionChange(pair.step, pair.table, name, changes)


def _weight_change(
    step: int, a: pa.Table, b: pa.Table, mask: Mask, known: WeightChange | None
) -> WeightChange | None:
    """Add one slice's changed weights to those of the slices before it."""
    if not mask.any():
        return known
    off = np.abs(a["weight"].to_numpy().astype(np.float64) - b["weight"].to_numpy())
    off = np.where(mask, np.nan_to_num(off, nan=np.inf), -1.0)
    at = int(off.argmax())
    tokens = int(mask.sum()) + (known.tokens if known else 0)
    if known is not None and known.largest >= off[at]:
        return WeightChange(step, tokens, known.largest, known.rollout_id, known.position)
    where = a["rollout_id"][at].as_py(), a["position"][at].as_py()
    return WeightChange(step, tokens, float(off[at]), *where)
