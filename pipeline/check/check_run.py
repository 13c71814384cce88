"""`srpo check`: every digest, schema, link and invariant of a run, damage named and never raised.

Files are hashed by threads while the rows of those that are whole are checked; tables are mapped
and given back slice by slice, so that memory stays small whatever the size of the run.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.audit.stored_logprobs import NOT_KEPT, keeps_student
from pipeline.check.bank_table import EarlierAnswers, bank_rules
from pipeline.check.chain import check_chain, check_snapshots, vocabulary
from pipeline.check.check_report import CheckReport
from pipeline.check.hashing import Hashing
from pipeline.check.lead_files import check_leads
from pipeline.check.rollout_tables import (
    StepTables,
    evaluations_rules,
    rollouts_rules,
    routes_rules,
    scores_rules,
    verdicts_rules,
)
from pipeline.check.run_files import (
    TableFile,
    check_profiles,
    check_tokenizer,
    list_tables,
    missing_tables,
    note_leftovers,
    note_pruned,
    recompute_advice,
    sealed_or_problem,
    snapshot_files,
)
from pipeline.check.token_tables import teacher_rules, weights_rules
from pipeline.check.updates import updates_rules
from pipeline.errors import StoreError
from pipeline.files.file_list import snapshot_repair
from pipeline.run.metrics import step_metrics
from pipeline.run.run import Run
from pipeline.tables.invariants import NEEDS, Broken, broken_invariants
from pipeline.tables.mapped import MappedTable
from pipeline.tables.rollout_index import RolloutSpans, stored_index
from pipeline.tables.schemas import TOKEN_TABLES, schema_of

Progress = Callable[[int, int], None]
Elsewhere = Callable[[Sequence[int]], Iterable[CheckReport]]

_RULES: dict[str, Callable[[StepTables], Iterator[Broken]]] = {
    "rollouts": rollouts_rules,
    "verdicts": verdicts_rules,
    "routes": routes_rules,
    "scores": scores_rules,
    "weights": weights_rules,
    "updates": updates_rules,
    "evaluations": evaluations_rules,
}
_MOST_OF_A_TABLE = 8
_MOST_OF_A_RECORD = 4
_DAMAGE = (
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    ArithmeticError,
    pa.ArrowException,
)
"""What broken contents may raise in a check that expects sound ones."""


def check_run(
    run: Run,
    progress: Progress = lambda done, total: None,
    elsewhere: Elsewhere | None = None,
) -> CheckReport:
    """Check all that a run refers to: own and inherited tables, records, snapshots.

    Args:
        progress: told of (bytes hashed, bytes in all), from several threads.
        elsewhere: has `check_steps` done for such steps, in order; None: they are checked here.
    """
    report = CheckReport()
    note_leftovers(run, report)
    tables = list_tables(run, report)
    note_pruned(tables, report)
    missing_tables(run, tables, report)
    check_tokenizer(run, report)
    snapshots = dict(snapshot_files(run, report))
    if elsewhere is None:
        hashed = [entry.path for entry in tables.values() if _right_size(entry)]
    else:
        hashed = []
        for part in elsewhere(list(dict.fromkeys(entry.step for entry in tables.values()))):
            report.extend(part)
    with _quiet(), Hashing(run, [*hashed, *snapshots], progress) as hashing:
        if elsewhere is None:
            _check_tables(run, tables, tables, hashing, report)
        for path, expected in snapshots.items():
            found = hashing.result(path, expected)
            if found != expected:
                advice = snapshot_repair(path.parent)
                report.add(path, f"SHA-256 {expected[:12]}…", _short(found), advice)
    check_snapshots(run, report)
    check_profiles(run, report)
    check_leads(run, report)
    report.tables, report.bytes = len(tables), report.bytes + hashing.total
    return report


def check_steps(run: Run, steps: Sequence[int]) -> CheckReport:
    """Check the tables and records of some steps, and evaluations, alone."""
    report, wanted = CheckReport(), set(steps)
    tables = list_tables(run, CheckReport())  # who asks has those findings
    chosen = {key: entry for key, entry in tables.items() if entry.step in wanted}
    hashed = [entry.path for entry in chosen.values() if _right_size(entry)]
    with _quiet(), Hashing(run, hashed, lambda done, total: None) as hashing:
        _check_tables(run, chosen, tables, hashing, report)
    report.bytes = hashing.total
    return report


def _quiet() -> np.errstate:
    """Silence NumPy: what is not finite becomes a finding, not a warning."""
    return np.errstate(all="ignore")


def _check_tables(
    run: Run,
    chosen: Mapping[tuple[int, str], TableFile],
    tables: Mapping[tuple[int, str], TableFile],
    hashing: Hashing,
    report: CheckReport,
) -> None:
    """Check some of a run's tables, step by step."""
    size = vocabulary(run)
    earlier = EarlierAnswers(tables)
    for step, group in groupby(chosen.values(), key=lambda entry: entry.step):
        _Step(run, step, list(group), size, hashing, report, earlier).check(tables)


def _right_size(entry: TableFile) -> bool:
    manifest = entry.manifest
    return bool(manifest and entry.path.is_file() and entry.path.stat().st_size == manifest.bytes)


def _short(digest: str) -> str:
    return f"{digest[:12]}…" if len(digest) == 64 else digest


class _Step:
    """The tables of one step (or evaluation), checked in the order of flow."""

    def __init__(
        self,
        run: Run,
        step: int,
        entries: Sequence[TableFile],
        vocabulary: int | None,
        hashing: Hashing,
        report: CheckReport,
        earlier: EarlierAnswers,
    ) -> None:
        self.run, self.step, self.entries = run, step, entries
        self.vocabulary, self.hashing, self.report = vocabulary, hashing, report
        self.earlier = earlier
        self.whole: dict[str, MappedTable] = {}
        self.pruned = {entry.table for entry in entries if entry.pruned}

    def check(self, tables: Mapping[tuple[int, str], TableFile]) -> None:
        for entry in self.entries:
            check_chain(entry, tables, self.report)
            mapped = self._open(entry)
            if mapped is not None:
                self.whole[entry.table] = mapped
                self._rows(entry, mapped)
                mapped.release()
        self._metrics()

    def _open(self, entry: TableFile) -> MappedTable | None:
        """Return a table whose bytes, schema and metadata are those of its manifest."""
        manifest = entry.manifest
        if manifest is None or not entry.path.is_file():
            return None
        size = entry.path.stat().st_size
        if size != manifest.bytes:
            self.report.add(entry.path, f"{manifest.bytes} bytes", f"{size} bytes", entry.advice)
            return None
        digest = self.hashing.result(entry.path, manifest.sha256)
        if digest != manifest.sha256:
            expected = f"SHA-256 {manifest.sha256[:12]}…, the manifest's"
            self.report.add(entry.path, expected, _short(digest), entry.advice)
            return None
        try:
            mapped = MappedTable(entry.owner.fetched(entry.path))
            mapped.table.validate(full=True)
        except (StoreError, pa.ArrowException) as error:
            problem = str(error).removeprefix(f"{entry.path}: ")
            self.report.add(entry.path, "a readable Arrow file", problem, entry.advice)
            return None
        return mapped if self._fits(entry, mapped.table) else None

    def _fits(self, entry: TableFile, data: pa.Table) -> bool:
        assert entry.manifest is not None
        manifest, schema = entry.manifest, schema_of(entry.table, data.schema)
        if not data.schema.equals(schema):
            others = [f.name for f in schema if f.name not in data.schema.names]
            others += [f.name for f in data.schema if f not in list(schema)]
            found = f"another one, in {', '.join(dict.fromkeys(others)) or 'the order of columns'}"
            self.report.add(entry.path, f"the schema of {entry.table}", found, entry.advice)
            return False
        nulls = [f.name for f in schema if not f.nullable and data[f.name].null_count]
        if nulls:
            self.report.add(entry.path, "no nulls", f"nulls in {', '.join(nulls)}", entry.advice)
            return False
        if data.num_rows != manifest.rows:
            expected = f"{manifest.rows} rows, as its manifest says"
            self.report.add(entry.path, expected, f"{data.num_rows}", entry.advice)
        if _origin_inside(data) != manifest.origin.model_dump(mode="json"):
            expected = "the origin of its manifest in the metadata of the file"
            self.report.add(entry.path, expected, "another one, or none", entry.advice)
        found_index = RolloutSpans(data).index() if entry.table in TOKEN_TABLES else {}
        if stored_index(manifest) != found_index:
            beside = entry.path.with_suffix(".json")
            self.report.add(beside, "an index of the rows of each rollout", "other", entry.advice)
            return False
        return True

    def _rows(self, entry: TableFile, mapped: MappedTable) -> None:
        absent = [name for name in NEEDS[entry.table] if name not in self.whole]
        if absent and set(absent) <= self.pruned:
            return  # noted once, for all steps
        if absent:
            text = f"its rows are not checked: {', '.join(absent)} missing or broken"
            self.report.notes.append(f"{entry.path}: {text}")
            return
        if entry.table == "teacher" and not keeps_student(mapped.table):
            lost = f"the student's K log-probabilities: {NOT_KEPT}, so jsd isn't checked"
            self.report.note_once(lost)
        found: dict[str, Broken] = {}
        advice = f"digests agree, so it was made or sealed wrong; {entry.advice}"
        try:
            for broken in self._broken(entry.table, mapped):
                known = found.get(broken.invariant)
                rows = broken.rows + (known.rows if known else 0)
                found[broken.invariant] = (known or broken)._replace(rows=rows)
        except _DAMAGE as error:
            problem = f"{type(error).__name__} while checking: {error}"
            self.report.add(entry.path, "rows that can be checked", problem, advice)
        for broken in list(found.values())[:_MOST_OF_A_TABLE]:
            where = f", first at {broken.rollout}" if broken.rollout else ""
            text = f"otherwise in {broken.rows} of {mapped.table.num_rows} rows{where}"
            self.report.add(entry.path, broken.invariant, text, advice)
        if len(found) > _MOST_OF_A_TABLE:
            more = len(found) - _MOST_OF_A_TABLE
            self.report.notes.append(f"{entry.path}: {more} more kinds of broken rows")

    def _broken(self, table: str, mapped: MappedTable) -> Iterator[Broken]:
        data = {name: known.table for name, known in self.whole.items()}
        manifests = {e.table: e.manifest for e in self.entries if e.manifest is not None}
        step = StepTables(self.step, data, manifests, self.vocabulary)
        for broken in broken_invariants(table, data):
            yield broken
            if broken.rollout is None:
                return  # other rows than those that must be there: nothing else can be said
        if table == "teacher":
            yield from teacher_rules(step, mapped.release)
        elif table == "bank":
            yield from self._bank(step, mapped)
        else:
            yield from _RULES[table](step)

    def _bank(self, step: StepTables, mapped: MappedTable) -> Iterator[Broken]:
        lacking = self.earlier.lacking(self.step)
        if lacking:
            text = f"not compared with earlier steps: {lacking}"
            self.report.notes.append(f"{self.run.table_path('bank', self.step)}: {text}")
            return
        yield from bank_rules(self.step, step.tables["rollouts"], mapped.table, self.earlier)

    def _metrics(self) -> None:
        """Check that the flat record follows from the tables."""
        path = self.run.metrics_path(self.step)
        if not path.exists() or not any(entry.table != "evaluations" for entry in self.entries):
            return
        advice = f"restore it from a copy, or delete it and {recompute_advice(self.run, self.step)}"
        record, problem = sealed_or_problem(path)
        if record is None:
            self.report.add(path, "the record of a step as it was written", problem, advice)
            return
        manifests = {e.table: e.manifest for e in self.entries if e.manifest is not None}
        missing = set(self.run.tables_of(self.step)) - (self.whole.keys() & manifests.keys())
        if missing and missing <= self.pruned:
            return
        if missing:
            self.report.notes.append(f"{path}: not checked against tables, some are broken")
            return
        try:
            data = {name: known.table for name, known in self.whole.items()}
            expected = step_metrics(data, manifests, self.run.config.data.mixed)
        except _DAMAGE as error:
            self.report.add(path, "tables that it follows from", f"{error}", advice)
            return
        self._compare(path, record, expected, advice)

    def _compare(
        self, path: Path, record: Mapping[str, object], expected: Mapping[str, object], advice: str
    ) -> None:
        """Note the numbers of a record that are others than `expected`."""
        wrong = [k for k, v in expected.items() if k in record and not _near(record[k], v)]
        for key in wrong[:_MOST_OF_A_RECORD]:
            text = f"{key} = {expected[key]}, as the tables say"
            self.report.add(path, text, record[key], advice)
        if len(wrong) > _MOST_OF_A_RECORD:
            more = len(wrong) - _MOST_OF_A_RECORD
            self.report.notes.append(f"{path}: {more} more numbers differ")
        if absent := sorted(expected.keys() - record.keys()):
            text = f"no {', '.join(absent[:2])}{', …' if len(absent) > 2 else ''} in it"
            text += ": written by another version of this code, as may be those of other steps"
            self.report.note_once(text, path)


def _origin_inside(data: pa.Table) -> object:
    try:
        return json.loads((data.schema.metadata or {})[b"srpo"])
    except (KeyError, ValueError, RecursionError):
        return None


def _near(found: object, expected: object) -> bool:
    if isinstance(found, int | float) and isinstance(expected, int | float):
        return abs(found - expected) <= 1e-6 * max(abs(expected), 1e-6)
    return found == expected
