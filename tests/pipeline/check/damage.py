"""Ways to damage a run: bytes that flip, and changes that somebody sealed anew."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc

from pipeline.files.durable import json_text
from pipeline.files.sealed_json import write_sealed
from pipeline.tables.manifest import Manifest
from tests.builders.tables import with_value


def flip(path: Path, at: float = 0.5) -> None:
    """Change one bit, at a share of the file's length."""
    data = bytearray(path.read_bytes())
    data[int(at * (len(data) - 1))] ^= 1
    path.write_bytes(bytes(data))


def edit_json(path: Path, change: Callable[[dict[str, Any]], None], seal: bool = True) -> None:
    """Change a JSON record; with `seal`, its digest is made to fit."""
    record = json.loads(path.read_text())
    change(record)
    if seal:
        write_sealed(path, record)
    else:
        path.write_text(json_text(record))


def rewrite(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """Change a table and seal its manifest anew: bytes and digests agree."""
    with pa.OSFile(str(path), "rb") as source:
        before = pa.ipc.open_file(source).read_all()
    after = change(before).replace_schema_metadata(before.schema.metadata)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, after.schema) as writer:
        writer.write_table(after.combine_chunks())
    reseal(path)


def reseal(path: Path) -> None:
    """Make the manifest of a table fit its bytes."""
    data = path.read_bytes()
    beside = path.with_suffix(".json")
    manifest = Manifest.model_validate_json(beside.read_text())
    update = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest.model_copy(update=update).sealed().write(beside)


def set_value(path: Path, column: str, row: int, value: Any) -> None:
    """Set one value of a table, sealed anew; a function gets the old value."""

    def change(data: pa.Table) -> pa.Table:
        old = data.column(column)[row].as_py()
        return with_value(data, column, row, value(old) if callable(value) else value)

    rewrite(path, change)
