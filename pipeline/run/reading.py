"""Reading a run: nothing is returned whose bytes are not those that were committed."""

import os
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import StoreError
from pipeline.files.durable import has_digest
from pipeline.files.file_list import expect_files, snapshot_repair
from pipeline.files.sealed_json import read_sealed
from pipeline.run.folder import manifest_path
from pipeline.run.lineage import Lineage
from pipeline.run.remote_rows import rows_by_range
from pipeline.run.removal import expect_present
from pipeline.run.step_layout import STAGE_OF
from pipeline.tables.arrow_reading import declared, read_table, validated
from pipeline.tables.manifest import Manifest
from pipeline.tables.mapped import MappedTable
from pipeline.text import command


class RunReader(Lineage):
    """A run's tables, records and files; each is verified when it is first read."""

    def __init__(self, root: Path, record: dict[str, Any], parent: Self | None) -> None:
        super().__init__(root, record, parent)
        self._verified: dict[Path, FileIdentity] = {}
        self._tokenizer_whole = False

    def manifest(self, table: str, step: int) -> Manifest:
        """Return the record of a committed table.

        Raises:
            StoreError: there is none, or it is damaged.
        """
        path = manifest_path(self.table_path(table, step))
        try:
            return Manifest.read(path)
        except StoreError as error:
            if not path.exists():
                raise
            raise StoreError(f"{error}; {self.repair(table, step)}") from None

    def repair(self, table: str, step: int) -> str:
        """Say which command makes a damaged table anew."""
        root = self.owner(table, step).root
        stage = STAGE_OF[table]
        return f"repair it: {command('stage', stage, '--run', root, '--step', step)}"

    def read(self, table: str, step: int) -> pa.Table:
        """Return a table, memory-mapped; size, SHA-256 and schema are verified on first use."""
        path = self.table_path(table, step)
        manifest = self.manifest(table, step)
        known = self._verified.get(path)
        self._verify(path, manifest)
        data = read_table(path, table)
        return data if self._verified[path] == known else validated(path, data)

    def mapped(self, table: str, step: int) -> MappedTable:
        """Return a table as `read` does, in memory that can be given back."""
        self.read(table, step)
        return MappedTable(self.table_path(table, step))

    def read_rollout(self, table: str, step: int, rollout_id: str) -> pa.Table:
        """Return the rows of one rollout, and read no others (`pipeline.run.remote_rows`)."""
        manifest, path = self.manifest(table, step), self.table_path(table, step)
        if manifest.index is None:
            return self.read(table, step).filter(pc.field("rollout_id") == rollout_id)
        first, rows = manifest.index.get(rollout_id, (0, 0))
        if not 0 <= first <= first + rows <= manifest.rows:
            raise StoreError(f"{path}: its manifest's index is of others")
        address = self.owner(table, step).address_in(path)
        part = None if address is None else rows_by_range(path, address, first, rows)
        if part is None:
            part = self.read(table, step).slice(first, rows)
        found = validated(path, declared(path, part, table))
        if set(found["rollout_id"].to_pylist()) - {rollout_id} or found.num_rows != rows:
            raise StoreError(f"{path}: its manifest's index is of others")
        return found

    def metrics(self, step: int) -> dict[str, Any]:
        """Return the flat record of a complete step."""
        path = self.metrics_path(step)
        try:
            record = read_sealed(path)
        except FileNotFoundError:
            raise StoreError(f"{path}: missing, so step {step} is not complete") from None
        del record["digest"]
        return record

    @property
    def lists_tokenizer(self) -> bool:
        """Tell whether the tokenizer's digests are recorded; old runs lack them."""
        if self.parent and not (self.root / "tokenizer").exists():
            return self.parent.lists_tokenizer
        return "tokenizer_sha256" in self.record

    def tokenizer_path(self) -> Path:
        """Return the folder of the tokenizer; its files are verified on first use.

        Raises:
            StoreError: one is missing, damaged or a stranger.
        """
        own, listed = self.root / "tokenizer", self.record.get("tokenizer_sha256")
        if self.parent and not own.exists():
            return self.parent.tokenizer_path()
        if listed is not None and not self._tokenizer_whole:
            repair = f"copy it from {self.own_snapshot_path(0)}"
            expect_files(own, listed, "run.json", repair, self.fetch_anew)
            self._tokenizer_whole = True
        return own

    def expect_snapshot(self, steps_done: int) -> None:
        """Refuse a snapshot that is not whole; all its files are read.

        Raises:
            StoreError: its record or one of its files is missing, damaged or a stranger.
        """
        folder = self.snapshot_path(steps_done)
        try:
            listed = read_sealed(folder / "state.json").get("sha256")
        except FileNotFoundError:
            raise StoreError(f"{folder}: no snapshot here (state.json is missing)") from None
        if not isinstance(listed, dict):
            raise StoreError(f"{folder}: its state.json has no list of files")
        for name in listed:
            self.fetched(folder / name)
        expect_files(folder, listed, "state.json", snapshot_repair(folder), self.fetch_anew)

    def _verify(self, path: Path, manifest: Manifest) -> None:
        """Refuse a table whose bytes are not its manifest's; they are read once."""
        origin = manifest.origin
        repair = self.repair(origin.table, origin.step)
        expect_present(path, repair)
        owner = self.owner(origin.table, origin.step)
        identity = file_identity(owner.fetched(path))
        if self._verified.get(path) == identity:
            return
        whole = has_digest(path, manifest.sha256, owner.fetch_anew)
        if identity[1] != manifest.bytes or not whole:
            raise StoreError(
                f"{path}: bytes differ from its manifest (SHA-256 {manifest.sha256[:12]}…): the "
                f"file is damaged; {repair}"
            )
        self._verified[path] = identity


FileIdentity = tuple[int, int, int]
"""Inode, size in bytes, time of the last change in nanoseconds."""


def file_identity(path: Path) -> FileIdentity:
    """Return what changes when a file is replaced or its bytes change."""
    status = os.stat(path)
    return status.st_ino, status.st_size, status.st_mtime_ns
