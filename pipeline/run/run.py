"""A run: tables that are committed once, digested, and never overwritten.

The commit point of a table is its manifest: a table without one does not exist for any reader.

    RunFolder   where the files are, and fetching those of a run at a URL    folder.py
    Lineage     which are the run's own, and which an ancestor's             lineage.py
    RunReader   tables and records, verified                                 reading.py
    Run         the record run.json, and committing                          this file
"""

import os
import time
from pathlib import Path
from typing import Any, Self

import pyarrow as pa

from pipeline.config.load import validate_config
from pipeline.config.sections import Config
from pipeline.errors import StoreError
from pipeline.files.durable import atomic_path, digest_of
from pipeline.files.sealed_json import (
    expect_unchanged,
    read_record,
    write_sealed,
)
from pipeline.remote.mirror_sync import is_run, refresh
from pipeline.run.folder import manifest_path
from pipeline.run.fork import Fork, line_of
from pipeline.run.lock import LOCK_FILE
from pipeline.run.reading import RunReader, file_identity
from pipeline.run.removal import forget_removal
from pipeline.run.step_layout import tables_of
from pipeline.tables.arrow_reading import expect_schema
from pipeline.tables.arrow_writing import digest_arrow, write_arrow
from pipeline.tables.manifest import Cost, Manifest, Origin
from pipeline.tables.rollout_index import token_index
from pipeline.tables.schemas import SCHEMA_VERSION, TOKEN_TABLES
from pipeline.text import printable

_METADATA_KEY = b"srpo"
MAY_GROW = ("steps", "max_hours", "prefect_seconds", "stall_seconds")
"""Settings of the section `run` that may grow in place."""
MAY_CHANGE = ("keep_teacher_tables",)
"""Settings of the section `run` that may change in place, to any value."""


class Run(RunReader):
    """A run: what it was begun with, its tables, and those that it commits.

    Attributes:
        config: the settings, as run.json has them.
        is_new: whether it was made here and now, rather than opened.
    """

    is_new = False

    def __init__(self, root: Path, record: dict[str, Any], parent: Self | None) -> None:
        super().__init__(root, record, parent)
        self.config: Config = validate_config(record["config"], str(root / "run.json"))

    @classmethod
    def create(cls, root: Path, config: Config, facts: dict[str, Any]) -> Self:
        """Make a new run folder; `facts` (versions, hardware, digests) go into run.json."""
        if is_taken(root):
            raise StoreError(f"{root}: there is something already; choose another --run, or resume")
        record = {"schema_version": SCHEMA_VERSION, "config": config.recorded(), **facts}
        record = write_sealed(root / "run.json", record)
        run = cls(root, record, cls._open_parent(root, record, ()))
        run.is_new = True
        return run

    @classmethod
    def open(cls, root: Path, descendants: tuple[Path, ...] = ()) -> Self:
        """Open an existing run folder, and those of its ancestors.

        Args:
            root: the folder; of a URL, its mirror (`pipeline.remote.mirror_paths.run_path`).
            descendants: the forks that led here, none of which can be an ancestor.

        Raises:
            StoreError: no run is here, its record was changed, or its parent is missing or another.
        """
        refresh(root)
        path = root / "run.json"
        try:
            record, text = read_record(path)
        except FileNotFoundError:
            raise StoreError(f"{root}: no run here (run.json is missing)") from None
        except NotADirectoryError:
            raise StoreError(f"{root}: a file, expected the folder of a run") from None
        if record.get("schema_version") != SCHEMA_VERSION:
            found = printable(repr(record.get("schema_version")), 40)
            raise StoreError(
                f"{path}: schema version {found}, this code reads {SCHEMA_VERSION}; use the srpo "
                "version that made the run (its record names it)"
            )
        expect_unchanged(path, record, text)
        try:
            run = cls(root, record, cls._open_parent(root, record, descendants))
            _ = run.identity
            return run
        except (KeyError, TypeError, AttributeError):
            raise StoreError(
                f"{path}: not a run's record, though its digest matches: another program wrote it"
            ) from None

    @classmethod
    def _open_parent(
        cls, root: Path, record: dict[str, Any], descendants: tuple[Path, ...]
    ) -> Self | None:
        """Open the parent of a fork; its identity must be the one that the fork recorded."""
        if "fork" not in record:
            return None
        fork = Fork.from_record(record["fork"])
        folder = type(root)(os.path.normpath(root / fork.parent))
        if not is_run(folder):
            raise StoreError(
                f"{root}: a fork whose parent is not at {folder}: tables before {fork.stage} of "
                f"step {fork.start} are there; move it back, or move both together"
            )
        parent = cls.open(folder, line_of(root, folder, descendants))
        if parent.identity != fork.identity:
            raise StoreError(
                f"{root}: forked from run {fork.identity[:12]}, but {folder} is now run "
                f"{parent.identity[:12]}; put the parent back"
            )
        return parent

    @property
    def identity(self) -> str:
        """Return the SHA-256 of what never changes about a run, by which forks know it."""
        changing = (*MAY_GROW, *MAY_CHANGE)
        settings = {k: v for k, v in self.record["config"]["run"].items() if k not in changing}
        config = {**self.record["config"], "run": settings}
        return digest_of({**self.record, "config": config, "digest": None})

    def tables_of(self, step: int) -> tuple[str, ...]:
        """Return the tables of a step, by the settings of the run that made its routes."""
        return tables_of(self.owner("routes", step).config)

    def extend(self, config: Config) -> None:
        """Record new values of settings named in MAY_GROW and MAY_CHANGE."""
        record = {**self.record, "config": config.recorded()}
        self.record, self.config = write_sealed(self.root / "run.json", record), config

    def commit(self, origin: Origin, data: pa.Table, facts: dict[str, Any], cost: Cost) -> Manifest:
        """Write a table and its manifest; an equal committed table is left as it is.

        Raises:
            StoreError: the table's schema is not the declared one, or a committed table with other
                bytes is there (nothing is ever overwritten).
        """
        path = self.table_path(origin.table, origin.step)
        started = time.perf_counter()
        expected = expect_schema(origin.stage, origin.table, data)
        index = token_index(data) if origin.table in TOKEN_TABLES else None
        deterministic = origin.model_dump_json().encode()
        data = data.cast(expected).replace_schema_metadata({_METADATA_KEY: deterministic})
        known = manifest_path(path).exists()
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
        manifest.write(manifest_path(path))
        self._verified[path] = file_identity(path)
        return manifest


def is_taken(root: Path) -> bool:
    """Tell whether a folder holds more than the leftovers of a run that never began.

    run.json is written last: a policy and a tokenizer without it are of an interrupted command.
    """
    refresh(root)
    leftovers = {LOCK_FILE, ".run.json.tmp", ".tokenizer.tmp", "policy", "tokenizer"}
    return root.exists() and bool({p.name for p in root.iterdir()} - leftovers)
