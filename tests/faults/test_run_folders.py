"""Run folders from somebody else, their digests all valid: refused in one line, or harmless."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pytest

from pipeline.audit.listing import samples
from pipeline.errors import SrpoError, StoreError
from pipeline.files.durable import file_digest
from pipeline.files.sealed_json import write_sealed
from pipeline.housekeeping.run_listing import overview
from pipeline.run.run import Run
from pipeline.tables.arrow_writing import write_arrow
from tests.faults.test_fuzz import run

__all__ = ["run"]
Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def folder(run: Run, tmp_path: Path) -> Path:
    """A copy of a run of one step, which a test may spoil."""
    return Path(shutil.copytree(run.root, tmp_path / "theirs"))


def reseal(path: Path, change: Change) -> None:
    """Change a record and give it the digest that it has then."""
    record = json.loads(path.read_text())
    change(record)
    write_sealed(path, record)


def refused(folder: Path) -> str:
    with pytest.raises(SrpoError) as caught:
        overview(folder)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000
    return str(caught.value)


@pytest.mark.parametrize("version", [0, 1, 3, 99, "2", None, "\x1b[2J" * 100, [2]])
def test_another_schema_version_is_named(folder: Path, version: Any) -> None:
    reseal(folder / "run.json", lambda record: record.update(schema_version=version))
    message = refused(folder)
    assert "this code reads 2; use the srpo version" in message and "\x1b" not in message


@pytest.mark.parametrize(
    "change",
    [
        lambda r: r.pop("config"),
        lambda r: r.update(config={"data": {"task": "arithmetic"}, "model": {"path": "demo"}}),
        lambda r: r.update(fork="x"),
        lambda r: r.update(fork={"parent": 3}),
        lambda r: r.update(fork={"changed": [], "parent": ".."}),
    ],
)
def test_records_that_are_none(folder: Path, change: Change) -> None:
    reseal(folder / "run.json", change)
    assert "not a run's record" in refused(folder)


def test_settings_that_can_not_be(folder: Path) -> None:
    reseal(folder / "run.json", lambda r: r["config"]["run"].update(threads=10**9))
    with pytest.raises(SrpoError, match=r"run\.threads is 1000000000"):
        Run.open(folder)


def fork(parent: str) -> dict[str, Any]:
    return {
        "parent": parent,
        "identity": "0" * 64,
        "stage": "weigh",
        "start": 0,
        "end": 1,
        "changed": {},
        "updates": True,
    }


@pytest.mark.parametrize("parent", [".", "", "../theirs", "../around/theirs"])
def test_a_run_that_is_its_own_parent(folder: Path, parent: str) -> None:
    (folder.parent / "around").symlink_to(".")
    reseal(folder / "run.json", lambda r: r.update(fork=fork(parent)))
    assert "come back to it" in refused(folder)


@pytest.mark.parametrize("parent", ["/etc", "../../../../../../etc", "nowhere", "x" * 5000])
def test_parents_that_are_no_runs(folder: Path, parent: str) -> None:
    reseal(folder / "run.json", lambda r: r.update(fork=fork(parent)))
    with pytest.raises((StoreError, OSError), match=r"parent is not at|name too long|come back"):
        Run.open(folder)


def test_a_chain_of_a_thousand_parents(folder: Path) -> None:
    record = (folder / "run.json").read_text()
    for number in range(1000):
        link = folder.parent / f"link-{number}"
        link.mkdir()
        (link / "run.json").write_text(record)
        reseal(link / "run.json", lambda r, n=number: r.update(fork=fork(f"../link-{n + 1}")))
    assert "more than 100" in refused(folder.parent / "link-0")


def test_step_folders_with_odd_names(folder: Path) -> None:
    for name in ("evil", "-1", "٣", "9" * 200, "000000.bak", "0x10"):
        shutil.copytree(folder / "steps" / "000000", folder / "steps" / name)
        (folder / "policy" / name).mkdir()
        (folder / "policy" / name / "state.json").write_text("{}")
    opened = Run.open(folder)
    assert opened.steps_of("rollouts") == [0] and opened.own_snapshots() == [0]
    assert opened.steps_done() == 1


def table(folder: Path, name: str, data: pa.Table | bytes | None, **manifest: Any) -> None:
    """Replace a table, its manifest sealed for the new bytes."""
    path = folder / "steps" / "000000" / f"{name}.arrow"
    beside = path.with_name("new")  # the old one may be mapped
    if isinstance(data, bytes):
        beside.write_bytes(data)
        beside.replace(path)
    elif data is not None:
        write_arrow(beside, data)
        beside.replace(path)
    size = {"bytes": path.stat().st_size, "sha256": file_digest(path)}
    reseal(path.with_suffix(".json"), lambda record: record.update(size | manifest))


def test_tables_that_are_others(folder: Path) -> None:
    whole = Run.open(folder).read("rollouts", 0)
    deep: pa.DataType = pa.int8()
    for _ in range(60):
        deep = pa.list_(deep)
    column = whole.column_names.index("task")
    words = whole["task"].dictionary_encode()
    for data in (
        pa.table({"x": pa.array([None], deep)}),
        whole.set_column(column, "task", words),
        whole.drop_columns(["seed"]),
        b"",
        b"ARROW1\0\0" + b"\xff" * 1000 + b"ARROW1",
    ):
        table(folder, "rollouts", data)
        with pytest.raises(StoreError, match=r"schema differs|not a readable Arrow file"):
            Run.open(folder).read("rollouts", 0)


@pytest.mark.parametrize("codec", ["zstd", "lz4"])
def test_a_table_that_would_unpack_to_any_size(folder: Path, codec: str) -> None:
    whole = Run.open(folder).read("rollouts", 0)
    sink, written = pa.BufferOutputStream(), pa.ipc.IpcWriteOptions(compression=codec)
    with pa.ipc.new_file(sink, whole.schema, options=written) as writer:
        writer.write_table(whole)
    table(folder, "rollouts", sink.getvalue().to_pybytes())
    before = pa.total_allocated_bytes()
    for read in (lambda: Run.open(folder).read("rollouts", 0), lambda: samples(Run.open(folder))):
        with pytest.raises(StoreError, match="parts of it are compressed") as caught:
            read()
        assert str(folder / "steps" / "000000" / "rollouts.arrow") in str(caught.value)
    assert pa.total_allocated_bytes() - before < 4096, "something was unpacked"


@pytest.mark.parametrize("offset", [2**31 - 1, -5, 1])
def test_offsets_that_lie(folder: Path, offset: int) -> None:
    whole = Run.open(folder).read("rollouts", 0)
    column = whole["response_text"].combine_chunks()
    offsets = bytearray(column.buffers()[1].to_pybytes())
    offsets[8:12] = offset.to_bytes(4, "little", signed=True)
    offsets[12:16] = (0).to_bytes(4, "little")
    lying = pa.Array.from_buffers(
        pa.string(), len(column), [None, pa.py_buffer(bytes(offsets)), column.buffers()[2]]
    )
    place = whole.column_names.index("response_text")
    table(folder, "rollouts", whole.set_column(place, whole.schema.field(place), lying))
    with pytest.raises(StoreError, match=r"no table|not a readable Arrow file"):
        Run.open(folder).read("rollouts", 0)
    with pytest.raises(StoreError):
        samples(Run.open(folder))


@pytest.mark.parametrize("place", [[0, 10**9], [-1, 2], [10**9, 1]])
def test_an_index_that_lies(folder: Path, place: list[int]) -> None:
    index = dict.fromkeys(Run.open(folder).manifest("weights", 0).index or {}, place)
    table(folder, "weights", None, index=index)
    with pytest.raises(StoreError, match=r"index is of others"):
        Run.open(folder).read_rollout("weights", 0, next(iter(index)))


def test_looking_at_a_run_never_opens_its_task(folder: Path, tmp_path: Path) -> None:
    code = tmp_path / "task.py"
    code.write_text(f"open({str(tmp_path / 'canary')!r}, 'w')")
    reseal(folder / "run.json", lambda r: r["config"]["data"].update(task=str(code)))
    assert overview(folder)["steps_done"] == 1
    assert samples(Run.open(folder)).collect().height == 16
    assert not os.path.exists(tmp_path / "canary")
