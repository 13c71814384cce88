"""One rollout's rows of a large table, fetched without the rest."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pytest

from pipeline.errors import StoreError
from pipeline.remote import objects
from pipeline.remote.client import Address
from pipeline.remote.mirror_paths import run_path
from pipeline.run import remote_rows as ranges
from pipeline.run.lock import RunLock
from pipeline.run.run import Run
from pipeline.tables.schemas import SCHEMAS, teacher_schema
from tests.builders.tables import COST, STEP, config, origin
from tests.pipeline.conftest import UseMachine
from tests.s3_server import Server

ROLLOUTS, TOKENS, KEPT = 40, 50, 20
IDS = [f"{STEP:06d}-{group:04d}-00" for group in range(ROLLOUTS)]


def teacher() -> pa.Table:
    """Return a table of some 400 kB, other numbers in every row."""
    random = np.random.default_rng(0)
    rows = ROLLOUTS * TOKENS

    def column(field: pa.Field) -> pa.Array:
        if field.name == "rollout_id":
            return pa.array([name for name in IDS for _ in range(TOKENS)])
        if field.name == "position":
            return pa.array(list(range(TOKENS)) * ROLLOUTS, pa.int32())
        kept = pa.types.is_fixed_size_list(field.type)
        kind = field.type.value_type if kept else field.type
        values = pa.array(random.integers(-9, 9, rows * (KEPT if kept else 1))).cast(kind)
        return pa.FixedSizeListArray.from_arrays(values, KEPT).cast(field.type) if kept else values

    schema = teacher_schema(KEPT)
    return pa.table([column(field) for field in schema], schema=schema)


@pytest.fixture
def run(bucket: str, machine: UseMachine, monkeypatch: pytest.MonkeyPatch, server: Server) -> Run:
    """Return a run as another machine sees it that read nothing yet."""
    with RunLock(run_path(f"{bucket}/first")):
        made = Run.create(run_path(f"{bucket}/first"), config(), {})
        made.commit(origin("teacher"), teacher(), {}, COST)
    machine("there")
    monkeypatch.setattr(ranges, "WHOLE", 1000)
    monkeypatch.setattr(ranges, "_END", 16 << 10)
    monkeypatch.setattr(ranges, "_GAP", 1 << 10)
    found = Run.open(run_path(f"{bucket}/first"))
    server.requests.clear()
    return found


@pytest.mark.parametrize("number", [0, 1, 17, ROLLOUTS - 1])
def test_rows_of_one_rollout_are_those_of_the_table(run: Run, number: int) -> None:
    found = run.read_rollout("teacher", STEP, IDS[number])
    assert found.equals(teacher().slice(number * TOKENS, TOKENS))
    path = run.table_path("teacher", STEP)
    assert path.stat().st_blocks == 0, "the mirror keeps its placeholder"
    assert [p.name for p in path.parent.iterdir() if p.name.startswith(".")] == []


def test_little_more_than_the_rows_is_fetched(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = []
    real = objects.read_range

    def counted(address: Address, thing: objects.Object, start: int, end: int) -> object:
        fetched.append(end - start)
        return real(address, thing, start, end)

    monkeypatch.setattr(objects, "read_range", counted)
    run.read_rollout("teacher", STEP, IDS[20])
    table = run.manifest("teacher", STEP).bytes
    assert table > 300_000 and sum(fetched) < 2 * (16 << 10) + 1.5 * table / ROLLOUTS
    assert run.read_rollout("teacher", STEP, "000003-9999-00").num_rows == 0


def test_once_it_is_here_the_file_is_read(run: Run, server: Server) -> None:
    run.read("teacher", STEP)
    server.requests.clear()
    assert run.read_rollout("teacher", STEP, IDS[3]).num_rows == TOKENS
    assert server.requests == []


def test_a_small_table_is_fetched_whole(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "WHOLE", 8 << 20)
    assert run.read_rollout("teacher", STEP, IDS[3]).num_rows == TOKENS
    assert run.table_path("teacher", STEP).stat().st_blocks > 0


def test_another_layout_is_fetched_whole(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ends that don't say enough; more than one batch."""
    monkeypatch.setattr(ranges, "_END", 64)
    assert run.read_rollout("teacher", STEP, IDS[3]).num_rows == TOKENS
    assert run.table_path("teacher", STEP).stat().st_blocks > 0


def test_another_table_in_its_place_is_refused(run: Run, tmp_path: Path) -> None:
    """Its bytes are not read whole, so the SHA-256 can't tell; the rollout can."""
    path = run.table_path("teacher", STEP)
    data = teacher()
    names = pa.array([name for name in reversed(IDS) for _ in range(TOKENS)])
    other = data.set_column(0, data.schema.field(0), names)
    metadata = {b"srpo": origin("teacher").model_dump_json().encode()}
    with pa.ipc.new_file(str(tmp_path / "other"), data.schema.with_metadata(metadata)) as writer:
        writer.write_table(other.replace_schema_metadata(metadata))
    assert (tmp_path / "other").stat().st_size == path.stat().st_size
    bucket, _, key = f"{path}".removeprefix("s3://").partition("/")
    objects.upload(Address(f"s3://{bucket}", key), tmp_path / "other")
    with pytest.raises(StoreError, match="index is of others"):
        run.read_rollout("teacher", STEP, IDS[3])


def test_a_table_that_changes_meanwhile_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"x" * 10_000)
    bucket, _, key = f"{run.table_path('teacher', STEP)}".removeprefix("s3://").partition("/")
    objects.upload(Address(f"s3://{bucket}", key), tmp_path / "other")
    with pytest.raises(StoreError, match="changed while it was read"):
        run.read_rollout("teacher", STEP, IDS[3])


def test_every_column_of_token_tables_can_be_read_so() -> None:
    """A new column of another kind would have every audit fetch whole tables."""
    for table in ("weights", "teacher"):
        schema = SCHEMAS[table] if table == "weights" else teacher_schema(KEPT)
        assert schema is not None
        assert all(ranges._is_known(field.type) for field in schema)


@pytest.mark.parametrize("codec", [None, "zstd"])
def test_compressed_parts_are_never_unpacked(tmp_path: Path, codec: str | None) -> None:
    """Such a table is left to the reader of whole files, which refuses it."""
    path, written = tmp_path / "teacher.arrow", pa.ipc.IpcWriteOptions(compression=codec)
    with pa.ipc.new_file(path, teacher().schema, options=written) as writer:
        writer.write_table(teacher().combine_chunks())
    before = pa.total_allocated_bytes()
    mapped = ranges._mapped(path, path.stat().st_size)
    assert (mapped is None) == (codec is not None)
    assert pa.total_allocated_bytes() - before < 4096
