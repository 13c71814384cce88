"""Any table that satisfies a schema comes back bit for bit, whatever its values and its layout."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import StoreError
from pipeline.run.run import Run
from pipeline.tables.schemas import SCHEMAS, TOKEN_TABLES, schema_with, teacher_schema
from tests.builders.tables import COST, STEP, config, origin

NAMES = [name for name in SCHEMAS if name not in (*TOKEN_TABLES, "bank")]
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
SIZES = st.lists(st.integers(1, 5), max_size=8)
"""Rows of each rollout of a token table."""


def values_of(kind: pa.DataType) -> st.SearchStrategy[Any]:
    """Return any value of a type, NaN with other bits and infinities among the floats."""
    if pa.types.is_floating(kind):
        size = kind.bit_width
        bits = st.integers(0, 2**size - 1)
        return bits.map(lambda b: np.array([b], f"u{size // 8}").view(f"f{size // 8}")[0])
    if pa.types.is_integer(kind):
        most = 2 ** (kind.bit_width - 1)
        return st.integers(-most, most - 1)
    if pa.types.is_boolean(kind):
        return st.booleans()
    if pa.types.is_string(kind):
        return TEXTS
    if pa.types.is_struct(kind):
        return st.fixed_dictionaries({f.name: values_of(f.type) for f in kind})
    if pa.types.is_fixed_size_list(kind):
        return st.lists(
            values_of(kind.value_type), min_size=kind.list_size, max_size=kind.list_size
        )
    return st.lists(values_of(kind.value_type), max_size=4)


def column_of(field: pa.Field, rows: int, draw: st.DrawFn) -> pa.Array:
    values = values_of(field.type)
    values = st.none() | values if field.nullable else values
    drawn = draw(st.lists(values, min_size=rows, max_size=rows))
    return pa.array(drawn, type=field.type)


@st.composite
def tables(draw: st.DrawFn, schema: pa.Schema) -> pa.Table:
    rows = draw(st.integers(0, 6))
    return pa.table([column_of(field, rows, draw) for field in schema], schema=schema)


@st.composite
def token_tables(draw: st.DrawFn, schema: pa.Schema) -> tuple[pa.Table, list[int]]:
    """A table whose rollouts stand together, and how many rows each has."""
    sizes = draw(SIZES)
    ids = draw(st.permutations([f"000003-{i:04d}-00" for i in range(len(sizes))]))
    names = [name for name, size in zip(ids, sizes, strict=True) for _ in range(size)]
    columns = [pa.array(names, pa.string())]
    columns += [column_of(field, len(names), draw) for field in list(schema)[1:]]
    return pa.table(columns, schema=schema), sizes


def in_chunks(table: pa.Table, cuts: list[int]) -> pa.Table:
    """Return the same rows in pieces, as a reader or a slow writer may hold them."""
    edges = sorted({0, table.num_rows, *(cut % (table.num_rows + 1) for cut in cuts)})
    parts = [table.slice(a, b - a) for a, b in itertools.pairwise(edges)]
    return pa.concat_tables(parts) if parts else table


def bits(table: pa.Table) -> bytes:
    """Return every value's bits, without the accidents of chunks, slices and metadata."""
    whole = table.replace_schema_metadata(None).combine_chunks()
    rows = whole.take(pa.array(range(table.num_rows), pa.int64())).combine_chunks()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    return bytes(sink.getvalue())


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return fresh places for runs; examples of one test must not meet each other's tables."""
    root, numbers = tmp_path_factory.mktemp("runs"), itertools.count()
    return lambda: root / str(next(numbers))


def new_run(folder: Path) -> Run:
    return Run.create(folder, config(), {})


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25)
@given(data=st.data())
def test_any_table_comes_back_bit_for_bit(name: str, folders: Any, data: st.DataObject) -> None:
    table = data.draw(tables(SCHEMAS[name]))
    cuts = data.draw(st.lists(st.integers(0, 6), max_size=3))
    root = folders()
    manifest = new_run(root).commit(origin(name), in_chunks(table, cuts), {}, COST)
    read = Run.open(root).read(name, STEP)
    assert read.schema.equals(table.schema)
    assert bits(read) == bits(table)
    assert manifest.rows == table.num_rows
    again = new_run(folders()).commit(origin(name), table.combine_chunks(), {}, COST)
    assert again.sha256 == manifest.sha256  # how the rows lay in memory leaves no trace


@pytest.mark.slow
@pytest.mark.parametrize("name", TOKEN_TABLES)
@settings(max_examples=25)
@given(data=st.data())
def test_a_rollouts_rows_are_found_in_any_layout(
    name: str, folders: Any, data: st.DataObject
) -> None:
    kept = data.draw(st.integers(1, 3))
    half = data.draw(st.sampled_from(["float32", "float16"]))
    with_student = data.draw(st.booleans())
    schema = SCHEMAS[name] if name != "teacher" else teacher_schema(kept, half, with_student)
    table, sizes = data.draw(token_tables(schema))
    cuts = data.draw(st.lists(st.integers(0, 40), max_size=3))
    root = folders()
    manifest = new_run(root).commit(origin(name), in_chunks(table, cuts), {}, COST)
    run = Run.open(root)
    assert bits(run.read(name, STEP)) == bits(table)
    ids = list(dict.fromkeys(table["rollout_id"].to_pylist()))
    assert manifest.index is not None and list(manifest.index) == ids
    first = 0
    for rollout_id, size in zip(ids, sizes, strict=True):
        assert manifest.index[rollout_id] == (first, size)
        first += size
    assert first == table.num_rows


@given(sizes=st.lists(st.integers(1, 3), min_size=2, max_size=5), data=st.data())
def test_rows_that_stand_apart_are_refused(
    sizes: list[int], folders: Any, data: st.DataObject
) -> None:
    names = [f"r{i}" for i, size in enumerate(sizes) for _ in range(size)]
    again = data.draw(st.sampled_from(range(len(sizes) - 1)))
    names.append(f"r{again}")
    count = len(names)
    columns = [
        pa.array(names),
        pa.array(range(count), pa.int32()),
        *[pa.array([1.0] * count, pa.float32())] * 3,
    ]
    run = new_run(folders())
    with pytest.raises(StoreError, match="do not stand together"):
        run.commit(
            origin("weights"), pa.table(columns, schema=schema_with("weights", ())), {}, COST
        )
    assert not run.has("weights", STEP)


@settings(max_examples=10)
@given(order=st.permutations(NAMES), data=st.data())
def test_the_order_of_commits_leaves_no_trace(
    order: list[str], folders: Any, data: st.DataObject
) -> None:
    made = {name: data.draw(tables(SCHEMAS[name])) for name in NAMES}
    digests = []
    for names in (NAMES, order):
        run = new_run(folders())
        found = {name: run.commit(origin(name), made[name], {}, COST).sha256 for name in names}
        digests.append(found)
    assert digests[0] == digests[1]
