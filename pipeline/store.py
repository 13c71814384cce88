"""A run's folder: tables that are committed once, digested, and never overwritten.

The commit point of a table is its manifest: a table without one does not exist for any reader.
"""

import json
import os
import re
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.audit.plain import printable
from pipeline.config import Config
from pipeline.errors import StoreError
from pipeline.files import digest_of, file_digest, make_folder, move_into_place, write_json
from pipeline.lineage import Fork
from pipeline.loading import validate_config
from pipeline.manifest import Cost, Manifest, Origin
from pipeline.reading import read_table, row_index, validated
from pipeline.schemas import SCHEMA_VERSION, TOKEN_TABLES, schema_of
from pipeline.writing import write_arrow

_STEP = re.compile("[0-9]{6,9}")
_METADATA_KEY = b"srpo"
MOST_ANCESTORS = 100
MAY_GROW = ("steps", "max_hours")
"""Settings of the section `run` that may grow in place."""


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

    @classmethod
    def create(cls, root: Path, config: Config, facts: dict[str, Any]) -> "Run":
        """Make a new run folder; `facts` (versions, hardware, digests) go into run.json."""
        if is_taken(root):
            raise StoreError(f"{root}: there is something already; choose another --run, or resume")
        record = {"schema_version": SCHEMA_VERSION, "config": config.model_dump(), **facts}
        record["digest"] = digest_of(record)
        write_json(root / "run.json", record)
        return cls(root, record)

    @classmethod
    def open(cls, root: Path, descendants: tuple[Path, ...] = ()) -> "Run":
        """Open an existing run folder, and those of its ancestors.

        Args:
            descendants: the forks by which one came here, none of which can be an ancestor.

        Raises:
            StoreError: no run is here, its record was changed, or the parent is missing or another.
        """
        path = root / "run.json"
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise StoreError(f"{root}: no run here (run.json is missing)") from None
        except (ValueError, RecursionError):
            raise StoreError(f"{path}: not valid JSON") from None
        if not isinstance(record, dict) or record.get("schema_version") != SCHEMA_VERSION:
            found = record.get("schema_version") if isinstance(record, dict) else None
            raise StoreError(
                f"{path}: schema version {printable(repr(found), 40)}, this code reads "
                f"{SCHEMA_VERSION}; use the srpo version that made the run (its record names it)"
            )
        if record.get("digest") != digest_of({k: v for k, v in record.items() if k != "digest"}):
            raise StoreError(f"{path}: changed since it was written (digest does not match)")
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
        settings = {k: v for k, v in self.record["config"]["run"].items() if k not in MAY_GROW}
        config = {**self.record["config"], "run": settings}
        return digest_of({**self.record, "config": config, "digest": None})

    def extend(self, config: Config) -> None:
        """Record a longer `run.steps` or `run.max_hours`; nothing else may change in place."""
        record = {**self.record, "config": config.model_dump()}
        record["digest"] = digest_of({k: v for k, v in record.items() if k != "digest"})
        write_json(self.root / "run.json", record)
        self.record, self.config = record, config

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

    def tokenizer_path(self) -> Path:
        """Return the folder of the tokenizer that shows tokens without the model."""
        own = self.root / "tokenizer"
        return self.parent.tokenizer_path() if self.parent and not own.exists() else own

    def metrics_path(self, step: int) -> Path:
        """Return where the flat record of a step lives."""
        if self.fork and self.parent and step < self.fork.start:
            return self.parent.metrics_path(step)
        return self.root / "steps" / f"{step:06d}" / "metrics.json"

    def metrics(self, step: int) -> dict[str, Any]:
        """Return the flat record of a complete step."""
        path = self.metrics_path(step)
        try:
            record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError):
            raise StoreError(f"{path}: not valid JSON") from None
        if not isinstance(record, dict) or record.pop("digest", None) != digest_of(record):
            raise StoreError(f"{path}: changed since it was written (digest does not match)")
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
        """Return the record of a committed table."""
        return Manifest.read(_manifest_path(self.table_path(table, step)))

    def read(self, table: str, step: int) -> pa.Table:
        """Return a table, memory-mapped; size, SHA-256 and schema are verified on first use."""
        path = self.table_path(table, step)
        manifest = self.manifest(table, step)
        known = self._verified.get(path)
        self._verify(path, manifest)
        data = read_table(path, table)
        return data if self._verified[path] == known else validated(path, data)

    def peek(self, table: str, step: int) -> pa.Table:
        """Return a table, memory-mapped, without its SHA-256: size, schema and form are verified.

        Of token tables, columns and slices that nobody touches are never read. `srpo check`
        verifies the bytes.
        """
        path, manifest = self.table_path(table, step), self.manifest(table, step)
        if not path.exists() or path.stat().st_size != manifest.bytes:
            raise StoreError(
                f"{path}: missing or of another size than its manifest says; run check"
            )
        data = read_table(path, table)
        return data if table in TOKEN_TABLES else validated(path, data)

    def peek_rollout(self, table: str, step: int, rollout_id: str) -> pa.Table:
        """Return the rows of one rollout, and read no others; none if it has none there."""
        data, index = self.peek(table, step), self.manifest(table, step).index
        if index is None:
            return data.filter(pc.equal(data.column("rollout_id"), rollout_id))
        first, rows = index.get(rollout_id, (0, 0))
        if not 0 <= first <= first + rows <= data.num_rows:
            raise StoreError(f"{self.table_path(table, step)}: its manifest's index is of others")
        return validated(self.table_path(table, step), data.slice(first, rows))

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
        make_folder(path.parent)
        temporary = path.with_name(f".{path.name}.tmp")
        digest = write_arrow(temporary, data)
        other = _other_fact(committed.facts, facts) if committed is not None else None
        if committed is not None and committed.sha256 != digest:
            other = f"file: SHA-256 {digest[:12]}, committed {committed.sha256[:12]}"
        if other is not None:
            temporary.unlink()
            raise StoreError(
                f"{path}: recomputing gave another {other}; same machine, threads and versions as "
                "before?"
            )
        if committed is not None and path.exists():
            temporary.unlink()
            return committed
        move_into_place(temporary, path)
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
        if not path.exists():
            raise StoreError(f"{path}: committed but missing; rerun stage {manifest.origin.stage}")
        identity = _identity(path)
        if self._verified.get(path) == identity:
            return
        if identity[1] != manifest.bytes or file_digest(path) != manifest.sha256:
            raise StoreError(
                f"{path}: bytes differ from its manifest (SHA-256 {manifest.sha256[:12]}…): the "
                f"file is damaged; delete it with its .json and rerun stage {manifest.origin.stage}"
            )
        self._verified[path] = identity


def _open_parent(root: Path, fork: Fork, descendants: tuple[Path, ...]) -> Run:
    """Open the run that `root` was forked from; it must be the one that it was."""
    folder = Path(os.path.normpath(root / fork.parent))
    if not (folder / "run.json").exists():
        raise StoreError(
            f"{root}: a fork whose parent is not at {folder}: tables before {fork.stage} of step "
            f"{fork.start} are there; move it back, or move both together"
        )
    line = (*descendants, Path(os.path.realpath(root)))
    if Path(os.path.realpath(folder)) in line or len(line) > MOST_ANCESTORS:
        raise StoreError(
            f"{root}: its parents come back to it, or are more than {MOST_ANCESTORS}; no fork of "
            "ours is like that"
        )
    parent = Run.open(folder, line)
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
    return root.exists() and bool({p.name for p in root.iterdir()} - {"policy", "tokenizer"})


def expect_schema(stage: str, table: str, data: pa.Table) -> pa.Schema:
    """Return the schema of `table`; refuse data that has another one, or nulls it must not have."""
    expected = schema_of(table, data.schema)
    if not data.schema.equals(expected):
        raise StoreError(f"{stage} made {table} with a schema that differs")
    if nulls := [f.name for f in expected if not f.nullable and data[f.name].null_count]:
        raise StoreError(f"{stage} made {table} with nulls in {', '.join(nulls)}")
    return expected


def _other_fact(committed: dict[str, Any], found: dict[str, Any]) -> str | None:
    """Return the first committed fact that was found to be another one."""
    other = (k for k in sorted(committed) if committed[k] != found.get(k))
    return next((f"{k}: {found.get(k)}, committed {committed[k]}" for k in other), None)


def _manifest_path(table_path: Path) -> Path:
    return table_path.with_suffix(".json")


def _identity(path: Path) -> tuple[int, int, int]:
    status = os.stat(path)
    return status.st_ino, status.st_size, status.st_mtime_ns
