"""Tables are committed once, whole, digested, and read without a copy."""

import json
import os
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

import pipeline.tables.manifest
from pipeline.errors import StoreError
from pipeline.files.durable import digest_of, file_digest, json_text
from pipeline.run.run import Run
from pipeline.tables.arrow_reading import read_arrow
from pipeline.tables.manifest import Origin
from tests.builders.tables import COST, IDS, STEP, config, origin, tables, with_value

FACTS = {"skipped": 2}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "run", config(), {"hardware": "none"})


def commit(run: Run, table: str) -> Path:
    """Commit one made-up table and return its path."""
    run.commit(origin(table), tables()[table], FACTS, COST)
    return run.table_path(table, STEP)


def reopened(run: Run) -> Run:
    """Return the run as another process would see it: nothing is verified yet."""
    return Run.open(run.root)


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


# --- the layout ------------------------------------------------------------------------------


def test_the_layout_of_a_run(run: Run) -> None:
    root = run.root
    assert run.table_path("rollouts", 12) == root / "steps/000012/rollouts.arrow"
    assert run.table_path("evaluations", 20) == root / "evaluations/000020.arrow"
    assert run.metrics_path(12) == root / "steps/000012/metrics.json"
    assert run.snapshot_path(20) == root / "policy/000020"


def test_snapshots_are_listed_when_complete(run: Run) -> None:
    for name in ("000010", "000002", ".000030.tmp", "000020"):
        run.snapshot_path(0).with_name(name).mkdir(parents=True)
    for name in ("000010", "000002", ".000030.tmp"):
        (run.root / "policy" / name / "state.json").write_text("{}")
    assert run.snapshots() == [2, 10]


# --- tables ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", tables())
def test_every_table_round_trips(run: Run, name: str) -> None:
    assert not run.has(name, STEP)
    commit(run, name)
    found = reopened(run)
    assert found.has(name, STEP)
    expected = tables()[name]
    assert found.read(name, STEP).equals(expected)
    assert found.read(name, STEP).schema.equals(expected.schema)


def test_a_manifest_says_what_was_written(run: Run) -> None:
    path = commit(run, "rollouts")
    manifest = reopened(run).manifest("rollouts", STEP)
    assert manifest.origin == origin("rollouts")
    assert (manifest.rows, manifest.bytes) == (4, path.stat().st_size)
    assert manifest.sha256 == file_digest(path)
    assert (manifest.facts, manifest.index) == (FACTS, None)
    assert manifest.cost.model_copy(update={"write_seconds": None}) == COST
    assert manifest.cost.write_seconds is not None and 0 < manifest.cost.write_seconds < 60


def test_nothing_but_table_and_manifest_stays(run: Run) -> None:
    path = commit(run, "rollouts")
    commit(run, "rollouts")
    assert sorted(p.name for p in path.parent.iterdir()) == ["rollouts.arrow", "rollouts.json"]


def test_the_same_bytes_are_accepted_and_change_nothing(run: Run) -> None:
    path = commit(run, "rollouts")
    before = {p: (p.read_bytes(), p.stat().st_ino) for p in path.parent.iterdir()}
    slower = COST.model_copy(update={"seconds": 99.0})
    manifest = run.commit(origin("rollouts"), tables()["rollouts"], FACTS, slower)
    assert {p: (p.read_bytes(), p.stat().st_ino) for p in path.parent.iterdir()} == before
    assert manifest.cost.seconds == COST.seconds  # what was first


@pytest.mark.parametrize("what", ["data", "origin"])
def test_other_bytes_are_refused_and_the_table_stays(run: Run, what: str) -> None:
    path = commit(run, "rollouts")
    before = {p: p.read_bytes() for p in path.parent.iterdir()}
    data, source = tables()["rollouts"], origin("rollouts")
    if what == "data":
        data = with_value(data, "response_text", 2, "another")
    else:
        source = origin("rollouts", stage_version=2)
    with pytest.raises(StoreError, match=r"rollouts\.arrow: recomputing gave another file"):
        run.commit(source, data, FACTS, COST)
    assert {p: p.read_bytes() for p in path.parent.iterdir()} == before


def test_equal_commits_have_equal_digests_whatever_they_cost(tmp_path: Path) -> None:
    digests = []
    for name, cost in (("a", COST), ("b", COST.model_copy(update={"seconds": 9.0, "tokens": 1}))):
        run = Run.create(tmp_path / name, config(), {"hardware": name})
        manifest = run.commit(origin("teacher"), tables()["teacher"], {"other": name}, cost)
        digests.append((manifest.sha256, file_digest(run.table_path("teacher", STEP))))
    assert digests[0] == digests[1]


def test_equal_tables_in_other_chunks_have_equal_digests(tmp_path: Path) -> None:
    whole = tables()["rollouts"]
    split = pa.concat_tables([whole.slice(0, 1), whole.slice(1)])
    digests = []
    for name, data in (("a", whole), ("b", split)):
        run = Run.create(tmp_path / name, config(), {})
        digests.append(run.commit(origin("rollouts"), data, {}, COST).sha256)
    assert digests[0] == digests[1]


def test_arrow_metadata_holds_the_origin_and_nothing_else(run: Run) -> None:
    path = commit(run, "rollouts")
    with pa.memory_map(str(path)) as source:
        metadata = pa.ipc.open_file(source).schema.metadata
    assert metadata.keys() == {b"srpo"}
    assert Origin.model_validate_json(metadata[b"srpo"]) == origin("rollouts")
    for text in (COST.created, "skipped", "peak_memory"):
        assert text.encode() not in path.read_bytes()


def test_tables_keep_their_descriptions(run: Run) -> None:
    path = commit(run, "rollouts")
    with pa.memory_map(str(path)) as source:
        schema = pa.ipc.open_file(source).schema
    assert all(schema.field(name).metadata[b"description"] for name in schema.names)


@pytest.mark.parametrize("name", ["rollouts", "teacher"])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda table: table.drop_columns(["rollout_id"]),
        lambda table: table.append_column("more", pa.array([1] * table.num_rows)),
        lambda table: table.rename_columns(["id", *table.column_names[1:]]),
        lambda table: table.select(table.column_names[::-1]),
    ],
)
def test_other_schemas_are_refused(run: Run, name: str, spoil: object) -> None:
    assert callable(spoil)
    with pytest.raises(StoreError, match=f"{name} with a schema that differs"):
        run.commit(origin(name), spoil(tables()[name]), {}, COST)
    assert not run.table_path(name, STEP).parent.exists()


def test_nulls_in_columns_that_have_none_are_refused(run: Run) -> None:
    spoiled = with_value(tables()["rollouts"], "response_text", 2, None)
    with pytest.raises(StoreError, match="response_text"):
        run.commit(origin("rollouts"), spoiled, {}, COST)
    assert not run.has("rollouts", STEP)


# --- token tables ----------------------------------------------------------------------------


def test_token_tables_are_indexed_by_rollout(run: Run) -> None:
    data = tables()["weights"].take(pa.array([0, 1, 0]))
    ids = [IDS[1], IDS[1], IDS[3]]
    data = data.set_column(0, data.schema.field(0), pa.array(ids))
    run.commit(origin("weights"), data, {}, COST)
    assert reopened(run).manifest("weights", STEP).index == {IDS[1]: (0, 2), IDS[3]: (2, 1)}


def test_an_empty_token_table_has_an_empty_index(run: Run) -> None:
    run.commit(origin("teacher"), tables()["teacher"].slice(0, 0), {}, COST)
    found = reopened(run)
    assert found.manifest("teacher", STEP).index == {}
    assert found.read("teacher", STEP).num_rows == 0


def test_scattered_rows_of_a_rollout_are_refused(run: Run) -> None:
    data = tables()["weights"].take(pa.array([0, 1, 0]))
    data = data.set_column(0, data.schema.field(0), pa.array([IDS[1], IDS[3], IDS[1]]))
    with pytest.raises(StoreError, match="do not stand together"):
        run.commit(origin("weights"), data, {}, COST)
    assert not run.has("weights", STEP)


def test_teacher_columns_reach_torch_without_a_copy(run: Run) -> None:
    """The tensor's memory is the mapped file's: no page of a large table is copied to read it."""
    commit(run, "teacher")
    data = reopened(run).read("teacher", STEP)
    before = pa.total_allocated_bytes()
    column = data.column("teacher_logprobs")
    assert column.num_chunks == 1
    flat = column.chunk(0).flatten()
    array = flat.to_numpy(zero_copy_only=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the file is mapped read-only, and torch says so
        tensor = torch.from_numpy(array)
    assert tensor.data_ptr() == array.ctypes.data == flat.buffers()[1].address
    assert pa.total_allocated_bytes() == before
    assert tensor.tolist() == [-1.0, -2.0, -3.0, -1.5, -2.5, -3.5]


# --- damage ----------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [0, 100, -1, -200])
def test_a_flipped_byte_of_a_table_is_noticed(run: Run, at: int) -> None:
    path = commit(run, "rollouts")
    flip(path, at)
    with pytest.raises(StoreError, match=r"rollouts\.arrow: bytes differ from its manifest"):
        reopened(run).read("rollouts", STEP)


def test_damage_after_a_first_read_is_noticed(run: Run) -> None:
    path = commit(run, "rollouts")
    run.read("rollouts", STEP)
    flip(path, 100)
    os.utime(path, ns=(1, 1))
    with pytest.raises(StoreError, match="bytes differ"):
        run.read("rollouts", STEP)


def test_a_truncated_table_is_noticed(run: Run) -> None:
    path = commit(run, "rollouts")
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(StoreError, match=r"rollouts\.arrow: bytes differ"):
        reopened(run).read("rollouts", STEP)


def test_a_deleted_table_is_noticed(run: Run) -> None:
    path = commit(run, "rollouts")
    path.unlink()
    with pytest.raises(StoreError, match=r"rollouts\.arrow: committed but missing"):
        reopened(run).read("rollouts", STEP)


def test_a_table_without_manifest_does_not_exist(run: Run) -> None:
    path = commit(run, "rollouts")
    path.with_suffix(".json").unlink()
    found = reopened(run)
    assert not found.has("rollouts", STEP)
    with pytest.raises(StoreError, match="never committed"):
        found.read("rollouts", STEP)


@pytest.mark.parametrize("key", ["rows", "sha256", "facts", "cost", "digest"])
def test_a_changed_manifest_is_noticed(run: Run, key: str) -> None:
    path = commit(run, "rollouts").with_suffix(".json")
    record = json.loads(path.read_text())
    change = {"rows": 5, "sha256": "0" * 64, "facts": {}, "digest": "0" * 64}
    change["cost"] = {**record["cost"], "seconds": 1.0}
    path.write_text(json.dumps({**record, key: change[key]}))
    with pytest.raises(StoreError, match=r"rollouts\.json: changed since it was written"):
        reopened(run).read("rollouts", STEP)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("\x00", "not valid JSON"),
        ("[]", "not a JSON object"),
        ("{}", "changed since"),
        (json_text({"digest": digest_of({})}), "not a manifest"),
    ],
)
def test_a_broken_manifest_is_named(run: Run, text: str, problem: str) -> None:
    path = commit(run, "rollouts").with_suffix(".json")
    path.write_text(text)
    with pytest.raises(StoreError, match=rf"rollouts\.json: {problem}"):
        reopened(run).manifest("rollouts", STEP)


def test_a_table_of_another_schema_version_is_refused(run: Run) -> None:
    """The bytes are what was committed, but not what this code means by rollouts."""
    path = commit(run, "rollouts")
    data = tables()["rollouts"].drop_columns(["engine"])
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, data.schema) as writer:
        writer.write_table(data)
    manifest = run.manifest("rollouts", STEP)
    changed = {"sha256": file_digest(path), "bytes": path.stat().st_size}
    manifest.model_copy(update=changed).sealed().write(path.with_suffix(".json"))
    with pytest.raises(StoreError, match=r"rollouts\.arrow: schema differs"):
        reopened(run).read("rollouts", STEP)


def test_something_that_is_no_arrow_file(tmp_path: Path) -> None:
    (tmp_path / "x.arrow").write_bytes(b"no table at all")
    with pytest.raises(StoreError, match=r"x\.arrow: not a readable Arrow file"):
        read_arrow(tmp_path / "x.arrow")


@pytest.mark.parametrize("size", [0, 5])
def test_a_file_too_short_for_arrow(tmp_path: Path, size: int) -> None:
    (tmp_path / "x.arrow").write_bytes(b"A" * size)
    with pytest.raises(StoreError, match=r"x\.arrow: not a readable Arrow file"):
        read_arrow(tmp_path / "x.arrow")


def test_a_kill_between_table_and_manifest_leaves_the_step_rerunnable(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pipeline.tables.manifest, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            commit(run, "rollouts")
    assert run.table_path("rollouts", STEP).exists()
    found = reopened(run)
    assert not found.has("rollouts", STEP)
    other = with_value(tables()["rollouts"], "response_text", 0, "other")
    found.commit(origin("rollouts"), other, {}, COST)
    assert reopened(run).read("rollouts", STEP).equals(other)


# --- run.json --------------------------------------------------------------------------------


def test_a_run_remembers_its_configuration(run: Run) -> None:
    found = reopened(run)
    assert found.config == config()
    assert found.record["hardware"] == "none"


def test_a_folder_with_something_in_it_is_no_new_run(run: Run, tmp_path: Path) -> None:
    before = (run.root / "run.json").read_bytes()
    with pytest.raises(StoreError, match="there is something already"):
        Run.create(run.root, config(run={"seed": 1}), {})
    assert (run.root / "run.json").read_bytes() == before
    (tmp_path / "empty").mkdir()
    Run.create(tmp_path / "empty", config(), {})


def test_no_run_here(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no run here \(run\.json is missing\)"):
        Run.open(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("[]", "not a JSON object"),
        ("{}", "schema version None"),
        ('{"schema_version": 99}', "schema version 99, this code reads 2"),
        ('{"schema_version": 2}', "changed since it was written"),
    ],
)
def test_a_broken_run_file_is_named(run: Run, text: str, message: str) -> None:
    (run.root / "run.json").write_text(text)
    with pytest.raises(StoreError, match=rf"run\.json: .*{message}"):
        reopened(run)


def test_a_changed_setting_in_the_run_file_is_noticed(run: Run) -> None:
    path = run.root / "run.json"
    path.write_text(path.read_text().replace('"steps": 100', '"steps": 101'))
    with pytest.raises(StoreError, match=r"run\.json: changed since it was written"):
        reopened(run)


def test_a_run_can_be_made_longer(run: Run) -> None:
    longer = config(run={"steps": 200})
    run.extend(longer)
    assert run.config == longer
    assert reopened(run).config == longer
    assert reopened(run).record["hardware"] == "none"


def test_float16_is_not_a_float32(run: Run) -> None:
    data = tables()["weights"]
    index = data.schema.get_field_index("weight")
    narrow = pa.array(np.array([1.2, 0.8], dtype=np.float16))
    with pytest.raises(StoreError, match="schema that differs"):
        run.commit(origin("weights"), data.set_column(index, "weight", narrow), {}, COST)
