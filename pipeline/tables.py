"""Arrow files as tables: opened, held against their schemas, and indexed by rollout."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc

from pipeline.errors import StoreError
from pipeline.schemas import SCHEMA_VERSION, schema_of


def expect_schema(stage: str, table: str, data: pa.Table) -> pa.Schema:
    """Return the schema of `table`; refuse data that has another one, or nulls it must not have."""
    expected = schema_of(table, data.schema)
    if not data.schema.equals(expected):
        raise StoreError(f"{stage} made {table} with a schema that differs")
    if nulls := [f.name for f in expected if not f.nullable and data[f.name].null_count]:
        raise StoreError(f"{stage} made {table} with nulls in {', '.join(nulls)}")
    return expected


def expect_current(path: Path, table: str, data: pa.Table) -> pa.Table:
    """Return the table; refuse another schema than this version's."""
    if not data.schema.equals(schema_of(table, data.schema)):
        raise StoreError(f"{path}: schema differs from version {SCHEMA_VERSION} of {table}")
    return data


def read_arrow(path: Path) -> pa.Table:
    """Memory-map an Arrow IPC file."""
    try:
        with pa.memory_map(str(path)) as source:
            return pa.ipc.open_file(source).read_all()
    except pa.ArrowException as error:
        raise StoreError(f"{path}: not a readable Arrow file: {error}") from None


def row_index(data: pa.Table) -> dict[str, tuple[int, int]]:
    """Return first row and number of rows of each rollout, whose rows must stand together."""
    encoded = data.column("rollout_id").combine_chunks()
    runs = pc.run_end_encode(encoded)
    if isinstance(runs, pa.ChunkedArray):
        runs = runs.combine_chunks()
    ends = runs.run_ends.to_pylist()
    names = runs.values.to_pylist()
    if len(set(names)) != len(names):
        raise StoreError("the rows of a rollout do not stand together in a token table")
    starts = [0, *ends][: len(ends)]
    return {
        name: (start, end - start) for name, start, end in zip(names, starts, ends, strict=True)
    }
