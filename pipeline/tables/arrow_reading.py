"""Reading tables from any source: a digest proves the bytes, not that they make sense.

Arrow trusts the offsets in a file. A wrong one raises an error, or crashes the process, wherever
the column is first used; so columns are validated before use.
"""

from pathlib import Path

import pyarrow as pa
import pyarrow.ipc

from pipeline.errors import StoreError
from pipeline.tables.compression import is_compressed
from pipeline.tables.schemas import SCHEMA_VERSION, schema_of
from pipeline.text import printable


def read_arrow(path: Path) -> pa.Table:
    """Memory-map an Arrow IPC file.

    Raises:
        StoreError: it is not one, or its parts contradict each other in size.
    """
    try:
        with pa.memory_map(str(path)) as source:
            return arrow_rows(source.read_buffer())
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise StoreError(f"{path}: not a readable Arrow file: {_reason(error)}") from None


def arrow_rows(data: pa.Buffer) -> pa.Table:
    """Return the rows of a mapped Arrow IPC file, without a copy.

    Raises:
        ValueError: it is not one, its parts contradict each other in size, or some are compressed.
    """
    if is_compressed(memoryview(data)):
        raise ValueError("parts of it are compressed or dictionaries, as in no table of a run")
    found = pa.ipc.open_file(data).read_all()
    found.validate()
    return found


def expect_schema(stage: str, table: str, data: pa.Table) -> pa.Schema:
    """Return the schema of `table`; refuse data that has another one, or nulls it must not have."""
    expected = schema_of(table, data.schema)
    if not data.schema.equals(expected):
        raise StoreError(f"{stage} made {table} with a schema that differs")
    if nulls := [f.name for f in expected if not f.nullable and data[f.name].null_count]:
        raise StoreError(f"{stage} made {table} with nulls in {', '.join(nulls)}")
    return expected


def read_table(path: Path, table: str) -> pa.Table:
    """Memory-map a table; its columns still have to be validated (`validated`).

    Raises:
        StoreError: it is not readable, or has another schema than this version's.
    """
    return declared(path, read_arrow(path), table)


def declared(path: Path, found: pa.Table, table: str) -> pa.Table:
    """Return what a file holds with the schema of `table`.

    Raises:
        StoreError: it has another one.
    """
    expected = schema_of(table, found.schema)
    if not found.schema.equals(expected):
        raise StoreError(f"{path}: schema differs from version {SCHEMA_VERSION} of {table}")
    metadata = found.schema.metadata or {}
    try:
        b"".join([*metadata, *metadata.values()]).decode()
    except UnicodeDecodeError:
        raise StoreError(f"{path}: metadata that is no UTF-8") from None
    # Ours instead of what the file says of each column, which need not be text either.
    return pa.Table.from_arrays(found.columns, schema=expected.with_metadata(metadata or None))


def validated(path: Path, data: pa.Table) -> pa.Table:
    """Return the rows after checking every offset, text and null in them.

    Raises:
        StoreError: one of them is impossible, or a null stands where none may.
    """
    try:
        data.validate(full=True)
    except (pa.ArrowException, ValueError) as error:
        raise StoreError(f"{path}: its contents are no table: {_reason(error)}") from None
    if nulls := [f.name for f in data.schema if not f.nullable and data[f.name].null_count]:
        raise StoreError(f"{path}: nulls in {', '.join(nulls)}, which has none")
    return data


def _reason(error: BaseException) -> str:
    return printable(" ".join(str(error).split()), 200)


def one_array(column: pa.ChunkedArray) -> pa.Array:
    """Return a column as one array; no copy if it is one already."""
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)
