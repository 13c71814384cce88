"""A run's folder: tables that are committed once, digested, and never overwritten.

The commit point of a table is its manifest: a table without one does not exist for any reader.
"""

import os
import re
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config.load import validate_config
from pipeline.config.sections import Config
from pipeline.errors import StoreError
from pipeline.files.durable import atomic_path, digest_of, has_digest
from pipeline.files.file_list import expect_files
from pipeline.files.sealed_json import (
    expect_unchanged,
    read_record,
    read_sealed,
    write_sealed,
)
from pipeline.remote.mirror_files import fetch
from pipeline.remote.mirror_paths import run_path
from pipeline.remote.mirror_sync import is_run, refresh
from pipeline.run.fork import Fork, line_of
from pipeline.run.lock import LOCK_FILE
from pipeline.run.remote_rows import rows_by_range
from pipeline.run.removal import expect_present, forget_removal
from pipeline.run.step_layout import STAGE_OF
from pipeline.tables.arrow_reading import (
    declared,
    expect_schema,
    read_table,
    row_index,
    validated,
)
from pipeline.tables.arrow_writing import digest_arrow, write_arrow
from pipeline.tables.manifest import Cost, Manifest, Origin
from pipeline.tables.schemas import SCHEMA_VERSION, TOKEN_TABLES
from pipeline.text import printable

_STEP = re.compile("[0-9]{6,9}")
_METADATA_KEY = b"srpo"
MAY_GROW = ("steps", "max_hours", "prefect_seconds", "stall_seconds")
"""Settings of the section `run` that may grow in place."""
MAY_CHANGE = ("keep_teacher_tables",)
"""Settings of the section `run` that may become any other in place."""


class Run:
    """A run folder. All paths of the layout are made here; stages never see one.

    Attributes:
        fork: where this run left its parent; None for a run of its own.
        parent: the run whose tables it refers to.
    """

    def __init__(
        self, root: Path, record: dict[str, Any], descendants: tuple[Path, ...] = ()
    ) -> None:
        self.root = root
        self.record = record
        self.config: Config = validate_config(record["config"], str(root / "run.json"))
        self.fork = Fork.from_record(record["fork"]) if "fork" in record else None
        self.parent = _open_parent(root, self.fork, descendants) if self.fork else None
        self._verified: dict[Path, tuple[int, int, int]] = {}
        self._tokenizer_whole = False

    @classmethod
    def create(cls, root: Path, config: Config, facts: dict[str, Any]) -> "Run":
        """Make a new run folder; `facts` (versions, hardware, digests) go into run.json."""
        if is_taken(root):
            raise StoreError(f"{root}: there is something already; choose another --run, or resume")
        record = {"schema_version": SCHEMA_VERSION, "config": config.recorded(), **facts}
        return cls(root, write_sealed(root / "run.json", record))

    @classmethod
    def open(cls, root: Path, descendants: tuple[Path, ...] = ()) -> "Run":
        """Open an existing run folder, and those of its ancestors.

        Args:
            descendants: the forks by which one came here, none of which can be an ancestor.

        Raises:
            StoreError: no run is here, its record was changed, or the parent is missing or another.
        """
        root = run_path(root)
        refresh(root)
        path = root / "run.json"
        try:
            record, text = read_record(path)
        except FileNotFoundError:
            raise StoreError(f"{root}: no run here (run.json is missing)") from None
        if record.get("schema_version") != SCHEMA_VERSION:
            found = printable(repr(record.get("schema_version")), 40)
            raise StoreError(
                f"{path}: schema version {found}, this code reads {SCHEMA_VERSION}; use the srpo "
                "version that made the run (its record names it)"
            )
        expect_unchanged(path, record, text)
        try:
            run = cls(root, record, descendants)
            _ = run.identity
            return run
        except (KeyError, TypeError, AttributeError):
            raise StoreError(
                f"{path}: not a run's record, though its digest matches: another program wrote it"
            ) from None

    @property
    def identity(self) -> str:
        """Return the SHA-256 of what never changes about a run, by which forks know it."""
        changing = (*MAY_GROW, *MAY_CHANGE)
        settings = {k: v for k, v in self.record["config"]["run"].items() if k not in changing}
        config = {**self.record["config"], "run": settings}
        return digest_of({**self.record, "config": config, "digest": None})

    def extend(self, config: Config) -> None:
        """Record settings of which MAY_GROW and MAY_CHANGE say that they may change in place."""
        record = {**self.record, "config": config.recorded()}
        self.record, self.config = write_sealed(self.root / "run.json", record), config

    def owner(self, table: str, step: int) -> "Run":
        """Return the run in whose folder a table is, or will be: this one or an ancestor."""
        if self.fork and self.parent and self.fork.inherits(table, step):
            owner = self.parent.owner(table, step)
            if table != "evaluations" or owner.has(table, step):
                return owner
        return self

    def table_path(self, table: str, step: int) -> Path:
        """Return where a table of a step lives."""
        return self.owner(table, step)._own_path(table, step)

    def _own_path(self, table: str, step: int) -> Path:
        if table == "evaluations":
            return self.root / "evaluations" / f"{step:06d}.arrow"
        return self.root / "steps" / f"{step:06d}" / f"{table}.arrow"

    @property
    def lists_tokenizer(self) -> bool:
        """Tell whether the digests of the tokenizer are known; runs made before lack them."""
        made_by = self.parent if self.parent and not (self.root / "tokenizer").exists() else self
        return made_by.lists_tokenizer if made_by is not self else "tokenizer_sha256" in self.record

    def tokenizer_path(self) -> Path:
        """Return the folder of the tokenizer; its files are verified on first use.

        Raises:
            StoreError: one is missing, damaged or a stranger.
        """
        own, listed = self.root / "tokenizer", self.record.get("tokenizer_sha256")
        if self.parent and not own.exists():
            return self.parent.tokenizer_path()
        if listed is not None and not self._tokenizer_whole:
            expect_files(own, listed, "run.json", f"copy it from {self.own_snapshot_path(0)}")
            self._tokenizer_whole = True
        return own

    def metrics_path(self, step: int) -> Path:
        """Return where the flat record of a step lives."""
        if self.fork and self.parent and step < self.fork.start:
            return self.parent.metrics_path(step)
        return self.root / "steps" / f"{step:06d}" / "metrics.json"

    def metrics(self, step: int) -> dict[str, Any]:
        """Return the flat record of a complete step."""
        path = self.metrics_path(step)
        try:
            record = read_sealed(path)
        except FileNotFoundError:
            raise StoreError(f"{path}: missing, so step {step} is not complete") from None
        del record["digest"]
        return record

    def steps_done(self) -> int:
        """Return the number of steps that are complete, up to the first gap."""
        step = 0
        while self.metrics_path(step).exists():
            step += 1
        return step

    def steps_of(self, table: str) -> list[int]:
        """Return all steps that have a table, the parent's where it is inherited; ascending."""
        folder = "evaluations/*.json" if table == "evaluations" else f"steps/*/{table}.json"
        names = [path.relative_to(self.root).parts[1] for path in self.root.glob(folder)]
        found = {int(n) for n in (name.split(".")[0] for name in names) if _STEP.fullmatch(n)}
        if self.fork and self.parent:
            inherited = self.parent.steps_of(table)
            found |= {step for step in inherited if self.fork.inherits(table, step)}
        return sorted(step for step in found if self.has(table, step))

    def snapshot_path(self, steps_done: int) -> Path:
        """Return where the policy after so many steps lives."""
        return self.snapshot_owner(steps_done).own_snapshot_path(steps_done)

    def snapshot_owner(self, steps_done: int) -> "Run":
        """Return the run in whose folder a snapshot is, or will be."""
        if self.fork and self.parent and steps_done <= self.fork.start:
            owner = self.parent.snapshot_owner(steps_done)
            if steps_done in owner.own_snapshots():
                return owner
        return self

    def own_snapshot_path(self, steps_done: int) -> Path:
        """Return where this run, and no other, keeps the policy after so many steps."""
        return self.root / "policy" / f"{steps_done:06d}"

    def own_snapshots(self) -> list[int]:
        """Return the steps of the complete snapshots in this folder, ascending."""
        found = [p.parent.name for p in (self.root / "policy").glob("[0-9]*/state.json")]
        return sorted(int(name) for name in found if _STEP.fullmatch(name))

    def snapshots(self) -> list[int]:
        """Return the steps of all complete snapshots, the parent's up to the fork; ascending."""
        found = set(self.own_snapshots())
        if self.fork and self.parent:
            found |= {steps for steps in self.parent.snapshots() if steps <= self.fork.start}
        return sorted(found)

    def has(self, table: str, step: int) -> bool:
        """Tell whether a table is committed."""
        path = self.table_path(table, step)
        return path.exists() and _manifest_path(path).exists()

    def manifest(self, table: str, step: int) -> Manifest:
        """Return the record of a committed table.

        Raises:
            StoreError: there is none, or it is damaged.
        """
        path = _manifest_path(self.table_path(table, step))
        try:
            return Manifest.read(path)
        except StoreError as error:
            if not path.exists():
                raise
            raise StoreError(f"{error}; {self.repair(table, step)}") from None

    def repair(self, table: str, step: int) -> str:
        """Say which command makes a damaged table anew."""
        root = self.owner(table, step).root
        return f"repair it: srpo stage {STAGE_OF[table]} --run {root} --step {step}"

    def read(self, table: str, step: int) -> pa.Table:
        """Return a table, memory-mapped; size, SHA-256 and schema are verified on first use."""
        path = self.table_path(table, step)
        manifest = self.manifest(table, step)
        known = self._verified.get(path)
        self._verify(path, manifest)
        data = read_table(path, table)
        return data if self._verified[path] == known else validated(path, data)

    def read_rollout(self, table: str, step: int, rollout_id: str) -> pa.Table:
        """Return the rows of one rollout, and read no others (`pipeline.run.remote_rows`)."""
        manifest, path = self.manifest(table, step), self.table_path(table, step)
        if manifest.index is None:
            return self.read(table, step).filter(pc.field("rollout_id") == rollout_id)
        first, rows = manifest.index.get(rollout_id, (0, 0))
        if not 0 <= first <= first + rows <= manifest.rows:
            raise StoreError(f"{path}: its manifest's index is of others")
        part = rows_by_range(path, first, rows)
        if part is None:
            part = self.read(table, step).slice(first, rows)
        found = validated(path, declared(path, part, table))
        if set(found["rollout_id"].to_pylist()) - {rollout_id} or found.num_rows != rows:
            raise StoreError(f"{path}: its manifest's index is of others")
        return found

    def commit(self, origin: Origin, data: pa.Table, facts: dict[str, Any], cost: Cost) -> Manifest:
        """Write a table and its manifest; an equal committed table is left as it is.

        Raises:
            StoreError: the table has another schema than declared, or a committed table with
                other bytes is there (nothing is overwritten, ever).
        """
        path = self.table_path(origin.table, origin.step)
        started = time.perf_counter()
        expected = expect_schema(origin.stage, origin.table, data)
        index = row_index(data) if origin.table in TOKEN_TABLES else None
        deterministic = origin.model_dump_json().encode()
        data = data.cast(expected).replace_schema_metadata({_METADATA_KEY: deterministic})
        known = _manifest_path(path).exists()
        committed = self.manifest(origin.table, origin.step) if known else None
        if committed is not None:
            committed.expect_same(path, digest_arrow(data), facts)
            if path.exists():
                self._verify(path, committed)
                return committed
        with atomic_path(path) as temporary:
            digest = write_arrow(temporary, data)
        forget_removal(path)
        if committed is not None:
            return committed
        manifest = Manifest(
            origin=origin,
            rows=data.num_rows,
            bytes=path.stat().st_size,
            sha256=digest,
            facts=facts,
            index=index,
            cost=cost.model_copy(update={"write_seconds": time.perf_counter() - started}),
        ).sealed()
        manifest.write(_manifest_path(path))
        self._verified[path] = _identity(path)
        return manifest

    def _verify(self, path: Path, manifest: Manifest) -> None:
        """Refuse a table whose bytes are not its manifest's; they are read once."""
        repair = self.repair(manifest.origin.table, manifest.origin.step)
        expect_present(path, repair)
        fetch(path)
        identity = _identity(path)
        if self._verified.get(path) == identity:
            return
        if identity[1] != manifest.bytes or not has_digest(path, manifest.sha256):
            raise StoreError(
                f"{path}: bytes differ from its manifest (SHA-256 {manifest.sha256[:12]}…): the "
                f"file is damaged; {repair}"
            )
        self._verified[path] = identity


def _open_parent(root: Path, fork: Fork, descendants: tuple[Path, ...]) -> Run:
    """Open the run that `root` was forked from; it must be the one that it was."""
    folder = run_path(os.path.normpath(root / fork.parent))
    if not is_run(folder):
        raise StoreError(
            f"{root}: a fork whose parent is not at {folder}: tables before {fork.stage} of step "
            f"{fork.start} are there; move it back, or move both together"
        )
    parent = Run.open(folder, line_of(root, folder, descendants))
    if parent.identity != fork.identity:
        raise StoreError(
            f"{root}: forked from run {fork.identity[:12]}, but {folder} is now run "
            f"{parent.identity[:12]}; put the parent back"
        )
    return parent


def is_taken(root: Path) -> bool:
    """Tell whether a folder holds anything but the beginnings of a run that never began.

    run.json is written last: a policy and a tokenizer without it are of a command cut short.
    """
    refresh(root)
    beginnings = {LOCK_FILE, ".run.json.tmp", ".tokenizer.tmp", "policy", "tokenizer"}
    return root.exists() and bool({p.name for p in root.iterdir()} - beginnings)


def _manifest_path(table_path: Path) -> Path:
    return table_path.with_suffix(".json")


def _identity(path: Path) -> tuple[int, int, int]:
    status = os.stat(path)
    return status.st_ino, status.st_size, status.st_mtime_ns
