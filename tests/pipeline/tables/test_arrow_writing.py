"""Tables are hashed as they pass, and written in order beside other work; failures end it."""

import errno
import os
import threading
from pathlib import Path

import pyarrow as pa
import pytest

import pipeline.files.durable
import pipeline.tables.arrow_writing
from pipeline.errors import StoreError
from pipeline.files.durable import file_digest, move_into_place
from pipeline.run.run import Run
from pipeline.stage.contract import Handles
from pipeline.stage.runner import run_stage
from pipeline.tables.arrow_reading import read_arrow
from pipeline.tables.arrow_writing import Writer, write_arrow
from tests.builders.tables import COST, STEP, config, origin, tables, with_value
from tests.pipeline.stage.test_runner import Recorder, make_verdicts

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
TABLE = tables()["rollouts"]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    made = Run.create(tmp_path / "run", config(), {})
    made.commit(origin("rollouts"), tables()["rollouts"], {}, COST)
    return made


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.tables.arrow_writing, "RETRY_SECONDS", 0.0)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """No table gets its name before this is set."""
    opened = threading.Event()

    def wait_and_move(temporary: Path, target: Path) -> None:
        assert opened.wait(30)
        move_into_place(temporary, target)

    monkeypatch.setattr(pipeline.files.durable, "move_into_place", wait_and_move)
    return opened


class Commits:
    """Notes the order of commits, each of which may fail some number of times."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.calls: list[str] = []

    def submit(self, writer: Writer, name: str, *errors: Exception) -> None:
        left = list(errors)

        def commit() -> None:
            self.calls.append(name)
            if left:
                raise left.pop(0)
            self.done.append(name)

        writer.submit(Path(name), TABLE, commit)


# --- bytes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", tables())
def test_bytes_are_those_of_arrow_and_the_digest_is_theirs(name: str, tmp_path: Path) -> None:
    data = tables()[name]
    assert write_arrow(tmp_path / "ours", data) == file_digest(tmp_path / "ours")
    path = str(tmp_path / "arrows")
    with pa.OSFile(path, "wb") as sink, pa.ipc.new_file(sink, data.schema) as writer:
        writer.write_table(data)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "arrows").read_bytes()


def test_a_table_larger_than_any_buffer(tmp_path: Path) -> None:
    data = pa.table({"x": pa.array(range(1_000_000), pa.int64())})
    assert write_arrow(tmp_path / "x", data) == file_digest(tmp_path / "x")
    assert read_arrow(tmp_path / "x").equals(data)


# --- the writer ------------------------------------------------------------------------------


def test_commits_come_in_order_and_in_another_thread() -> None:
    commits, slow, threads = Commits(), threading.Event(), set()

    def first() -> None:
        assert slow.wait(30)
        threads.add(threading.current_thread())
        commits.done.append("first")

    with Writer() as writer:
        writer.submit(Path("first"), TABLE, first)
        for name in "abc":
            commits.submit(writer, name)
        assert commits.done == []
        assert all(writer.pending(Path(n)) is TABLE for n in ("first", "a", "b", "c"))
        slow.set()
        writer.wait()
        assert commits.done == ["first", "a", "b", "c"]
        assert all(writer.pending(Path(n)) is None for n in ("first", "a", "b", "c"))
    assert threading.current_thread() not in threads


def test_leaving_the_block_waits() -> None:
    commits = Commits()
    with Writer() as writer:
        for name in "abcdef":
            commits.submit(writer, name)
    assert commits.done == list("abcdef")


def test_what_the_machine_failed_once_is_tried_again() -> None:
    commits = Commits()
    with Writer() as writer:
        commits.submit(writer, "a", FULL)
        commits.submit(writer, "b")
    assert commits.calls == ["a", "a", "b"]
    assert commits.done == ["a", "b"]


def test_after_a_failed_write_nothing_is_committed() -> None:
    commits = Commits()
    message = (
        r"^b: not written, also at a second try: No space left on device .*; no table after it"
    )
    with pytest.raises(StoreError, match=message) as caught, Writer() as writer:
        commits.submit(writer, "a")
        commits.submit(writer, "b", FULL, FULL)
        with pytest.raises(StoreError, match=message):
            writer.wait()
        with pytest.raises(StoreError, match=message):
            commits.submit(writer, "c")
        with pytest.raises(StoreError, match=message):
            writer.check()
    assert "\n" not in str(caught.value)
    assert commits.calls == ["a", "b", "b"]
    assert commits.done == ["a"]


def test_tables_behind_a_failed_one_are_given_up() -> None:
    commits, slow = Commits(), threading.Event()
    with pytest.raises(StoreError, match=r"^other bytes$"), Writer() as writer:
        writer.submit(Path("first"), TABLE, lambda: slow.wait(30))
        commits.submit(writer, "b", StoreError("other bytes"))
        commits.submit(writer, "c")
        slow.set()
    assert commits.calls == ["b"]  # an error of ours is final


def test_an_error_of_the_block_goes_first() -> None:
    commits = Commits()
    with pytest.raises(ZeroDivisionError), Writer() as writer:
        commits.submit(writer, "a")
        commits.submit(writer, "b", StoreError("other bytes"))
        raise ZeroDivisionError
    assert commits.done == ["a"]


# --- stages ----------------------------------------------------------------------------------


def chain(run: Run, writer: Writer | None) -> None:
    """Run two stages, the second of which reads what the first one makes."""
    judge = make_verdicts(Recorder("verdicts"), name="judge")
    score = make_verdicts(
        Recorder("routes", "scores"),
        name="score",
        reads=("rollouts", "verdicts"),
        writes=("routes", "scores"),
    )
    for stage in (judge, score):
        run_stage(run, stage, Handles(0, STEP), writer)


def test_the_next_stage_computes_while_a_table_is_written(run: Run, gate: threading.Event) -> None:
    with Writer() as writer:
        first = run_stage(run, make_verdicts(Recorder("verdicts")), Handles(0, STEP), writer)
        assert (first.rows, first.manifests, first.skipped) == ({"verdicts": 4}, {}, False)
        work = Recorder("scores")
        reads = ("rollouts", "verdicts")
        following = make_verdicts(work, name="score", reads=reads, writes=("scores",))
        run_stage(run, following, Handles(0, STEP), writer)
        given = work.calls[0][0]["verdicts"]
        assert given.equals(tables()["verdicts"])
        assert not run.has("verdicts", STEP)
        gate.set()
        writer.wait()
    found = run.manifest("scores", STEP).origin
    assert found.inputs == {name: run.manifest(name, STEP).sha256 for name in reads}


def test_bytes_are_the_same_with_and_without_a_writer(tmp_path: Path) -> None:
    folders = []
    for beside in (False, True):
        made = Run.create(tmp_path / str(beside), config(), {})
        made.commit(origin("rollouts"), tables()["rollouts"], {}, COST)
        with Writer() as writer:
            chain(made, writer if beside else None)
        folders.append(made.root / "steps" / f"{STEP:06d}")
    names = [sorted(p.name for p in folder.iterdir()) for folder in folders]
    assert names[0] == names[1]
    for name in (n for n in names[0] if n.endswith(".arrow")):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()


def test_what_is_wrong_is_found_in_the_stage_itself(run: Run, gate: threading.Event) -> None:
    wrong = Recorder(verdicts=with_value(tables()["verdicts"], "reward", 1, 1.5))
    with Writer() as writer:
        with pytest.raises(StoreError, match=r"rewards in \[0, 1\]"):
            run_stage(run, make_verdicts(wrong), Handles(0, STEP), writer)
        assert writer.pending(run.table_path("verdicts", STEP)) is None


def test_a_stage_whose_tables_are_being_written_is_done(run: Run, gate: threading.Event) -> None:
    """Asked for again at once, it waits for its own tables and finds them."""
    work = Recorder("verdicts")
    with Writer() as writer:
        run_stage(run, make_verdicts(work), Handles(0, STEP), writer)
        gate.set()
        assert run_stage(run, make_verdicts(work), Handles(0, STEP), writer).skipped
        with pytest.raises(StoreError, match="stage_version: 1, not 2"):
            run_stage(run, make_verdicts(work, version=2), Handles(0, STEP), writer)
    assert len(work.calls) == 1


def test_what_was_written_is_read_from_the_file(run: Run) -> None:
    """No copy stays in memory: the table's columns lie in the mapped file."""
    with Writer() as writer:
        run_stage(run, make_verdicts(Recorder("verdicts")), Handles(0, STEP), writer)
        writer.wait()
        before = pa.total_allocated_bytes()
        data = run.read("verdicts", STEP)
        assert pa.total_allocated_bytes() == before
        assert data.equals(tables()["verdicts"])


def test_no_stage_begins_after_a_failed_write(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> str:
        raise FULL

    later = Recorder("scores")
    with pytest.raises(StoreError, match=r"verdicts\.arrow: not written"), Writer() as writer:
        monkeypatch.setattr(pipeline.run.run, "write_arrow", full)
        run_stage(run, make_verdicts(Recorder("verdicts")), Handles(0, STEP), writer)
        with pytest.raises(StoreError, match=r"verdicts\.arrow: not written"):
            writer.wait()
        run_stage(run, make_verdicts(later, writes=("scores",)), Handles(0, STEP), writer)
    assert not later.calls
