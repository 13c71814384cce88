"""Tables that go and come back: what stays readable, what is said, and that nothing is lost."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.cli import main
from flows.session.fork_run import fork_run
from flows.session.session import Session
from flows.training.loop import Outcome
from pipeline.audit.rollout import rollout_record
from pipeline.check.check_run import check_run
from pipeline.compare.run_diff import diff_runs
from pipeline.errors import ConfigError, StoreError
from pipeline.files.durable import file_digest
from pipeline.housekeeping.parquet_archive import archive, archive_path, restore
from pipeline.housekeeping.pruning import Piece, plan_pruning, pruned_tables, remove
from pipeline.run.removal import PRUNABLE, record_path, removal
from pipeline.run.run import Run
from tests.faults.test_disk import go_on
from tests.flows.session.test_session import digests
from tests.golden.golden_run import golden_config

STEPS = 5
Srpo = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Snapshots after 0, 2, 4 and 5 steps; both tables of every step."""
    folder = tmp_path_factory.mktemp("made")
    overrides = {
        "run": {"steps": STEPS, "snapshot_every": 2},
        "generate": {"questions": 3, "rollouts": 4},
    }
    go_on(Session.create(folder / "run", golden_config(folder, overrides)))
    return folder / "run"


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Run:
    """A copy to be pruned."""
    return Run.open(Path(shutil.copytree(made, tmp_path / "runs" / "run")))


@pytest.fixture
def srpo(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Srpo:
    """Run a command; return its exit code and all that it printed."""

    def call(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["srpo", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr()
        return end.value.code if isinstance(end.value.code, int) else 0, said.out + said.err

    return call


def teachers(run: Run) -> list[int]:
    return run.steps_of("teacher")


def drop(run: Run, *steps: int, table: str = "teacher") -> None:
    for step in steps:
        remove(run, Piece(table, step), "a test")


def test_a_training_keeps_so_many_teacher_tables(made: Path, tmp_path: Path) -> None:
    """Those before the last snapshot go when it is taken; all else is the same, and goes on."""
    config = Run.open(made).config
    few = config.run.model_copy(update={"keep_teacher_tables": 1, "steps": 3})
    session = Session.create(tmp_path / "run", config.model_copy(update={"run": few}))
    assert go_on(session) == Outcome(3, "steps")
    assert teachers(session.run) == [2]
    assert [step for _, step in pruned_tables(session.run)] == [0, 1]
    longer = config.model_copy(update={"run": few.model_copy(update={"steps": STEPS})})
    session.run.extend(longer)
    assert go_on(Session.resume(session.run.root)) == Outcome(STEPS, "steps")
    assert teachers(session.run) == [4]
    whole = digests(made)
    left = digests(session.run.root)
    del left["evaluations/000003.arrow"]  # the end of the first three steps
    assert left == {k: v for k, v in whole.items() if "teacher" not in k or "000004" in k}
    report = check_run(session.run)
    assert not report.findings
    assert sum("pruned on purpose" in note for note in report.notes) == 1


def test_what_resuming_needs_never_goes(run: Run) -> None:
    newest = run.own_snapshot_path(STEPS)
    shutil.rmtree(newest)
    assert sorted(plan_pruning(run, PRUNABLE).pieces) == [
        Piece(table, step) for table in ("teacher", "weights") for step in range(4)
    ]
    drop(run, 0, 1, 2, 3)
    assert go_on(Session.resume(run.root)) == Outcome(STEPS, "steps")
    assert newest.exists()


def test_the_rest_of_a_run_never_goes(run: Run) -> None:
    with pytest.raises(ConfigError, match="table rollouts never goes: only teacher and weights"):
        plan_pruning(run, ["rollouts"])


def test_choosing_steps_and_snapshots(run: Run) -> None:
    assert [p.step for p in plan_pruning(run).pieces] == [0, 1, 2, 3, 4]
    assert [p.step for p in plan_pruning(run, before=2).pieces] == [0, 1]
    assert [p.step for p in plan_pruning(run, keep_last=4).pieces] == [0]
    assert [p.step for p in plan_pruning(run, before=3, keep_last=4).pieces] == [0]
    found = plan_pruning(run, before=3, snapshots=True)
    assert list(found.snapshots) == [2, 4]  # 0 starts, is the best and 5 the newest
    assert found.lost_states() == [1, 2, 3, 4]


def test_what_becomes_impossible(run: Run) -> None:
    assert plan_pruning(run).lost_states() == [1, 3]
    assert plan_pruning(run, before=1).lost_states() == [1]
    drop(run, 0)
    assert plan_pruning(run).lost_states() == [3]
    assert plan_pruning(run, snapshots=True).lost_states() == [2, 3, 4]
    assert plan_pruning(run, before=0, snapshots=True).lost_states() == [2, 3, 4]


def test_every_reader_says_that_it_was_on_purpose(run: Run, srpo: Srpo, made: Path) -> None:
    drop(run, 1)
    said = f"pruned on purpose on .* to have it back: srpo restore {run.root}"
    with pytest.raises(StoreError, match=said):
        run.read("teacher", 1)
    session = Session.resume(run.root)
    with pytest.raises(StoreError, match=said):
        session.run_stage("update", 1)
    session.close()
    with pytest.raises(StoreError, match=said):
        fork_run(run, run.root.with_name("fork"), "weigh", 1, 2)
    index = run.manifest("teacher", 1).index or {}
    taught = rollout_record(run, next(iter(index)))
    assert "pruned on purpose" in taught.not_recorded["teacher_top"]
    assert "pruned on purpose" in taught.not_recorded["loss"]
    assert taught.tokens[0].weight is not None and taught.tokens[0].loss is None
    assert taught.batch_tokens
    ids = run.read("rollouts", 1)["rollout_id"].to_pylist()
    other = rollout_record(run, next(i for i in ids if i not in index))
    assert "pruned" not in str(other.not_recorded) and other.tokens[0].loss is not None
    assert diff_runs(run, Run.open(made)).equal
    assert srpo("check", run.root)[0] == 0
    assert srpo("audit", run.root, "--step", 1)[0] == 0
    assert srpo("view", run.root, "--export", run.root.with_name("pages"))[0] == 0


def test_tables_that_differ_and_were_pruned_are_not_called_equal(
    run: Run, made: Path, tmp_path: Path
) -> None:
    fork = fork_run(run, run.root.with_name("fork"), "weigh", 4, 5, ["weigh.beta=2"])
    session = Session.resume(fork.root)
    for name in ("weigh", "update"):
        session.run_stage(name, 4)
    session.close()
    drop(fork, 4, table="weights")
    found = diff_runs(Run.open(made), fork)
    assert {s.table: s.unread for s in found.summaries}["weights"] == (4,)
    assert not found.equal


def test_a_pruned_table_is_made_anew_bit_for_bit(run: Run, srpo: Srpo, made: Path) -> None:
    code, said = srpo("prune", run.root, "--tables", "teacher,weights", "--snapshots")
    assert code == 0 and "rebuilding states 1 to 4" in said
    assert not teachers(run) and run.own_snapshots() == [0, STEPS]
    code, said = srpo("policy", f"{run.root}@3", run.root.with_name("out"))
    assert code == 2 and "pruned on purpose" in said
    code, said = srpo("restore", run.root)
    assert code == 0 and "0 tables restored from an archive, 10 made anew" in said
    assert digests(run.root) == digests(made)
    assert not list(run.root.rglob("*.pruned.json"))
    assert srpo("policy", f"{run.root}@4", run.root.with_name("out"))[0] == 0
    kept = Run.open(made).snapshot_path(4)
    for name in ("model.safetensors", "teacher.safetensors", "optimizer.safetensors"):
        assert file_digest(run.root.with_name("out") / name) == file_digest(kept / name)


def test_an_archive_brings_tables_back_bit_for_bit(run: Run, srpo: Srpo, made: Path) -> None:
    place, moved = run.root.with_name("archive"), run.root.with_name("moved")
    arguments = ("prune", run.root, "--tables", "teacher,weights", "--archive", place)
    code, said = srpo(*arguments, "--dry-run")
    assert code == 0 and "would go" in said
    assert digests(run.root) == digests(made) and not place.exists()
    assert srpo(*arguments)[0] == 0
    assert not teachers(run)
    code, said = srpo(*arguments)
    assert code == 0 and "nothing can go" in said
    place.rename(moved)
    code, said = srpo("restore", run.root)
    assert code == 2 and "no such archived table; name the folder it was moved to" in said
    code, said = srpo("restore", run.root, moved)
    assert code == 0 and "10 tables restored from an archive, 0 made anew" in said
    assert digests(run.root) == digests(made)
    assert not check_run(run).findings


def test_an_archive_that_is_damaged_or_of_another_table_is_refused(run: Run) -> None:
    place = run.root.with_name("archive")
    path = archive(run, "teacher", 0, place)
    assert archive(run, "teacher", 0, place) == path  # there and sound
    of_another = archive_path(place, "teacher", 1)
    of_another.parent.mkdir()
    shutil.copy(path, of_another)
    with pytest.raises(StoreError, match="another table's, or damaged"):
        archive(run, "teacher", 1, place)
    assert run.has("teacher", 1)
    drop(run, 0)
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)
    with pytest.raises(StoreError, match=r"teacher\.parquet: "):
        restore(run, "teacher", 0, path)
    assert removal(run.table_path("teacher", 0)) is not None


def test_half_precision_and_no_student_survive_the_archive(made: Path, tmp_path: Path) -> None:
    config = Run.open(made).config
    half = config.route.model_copy(update={"kept_dtype": "float16", "keep_student_logprobs": False})
    short = config.run.model_copy(update={"steps": 1})
    changed = config.model_copy(update={"route": half, "run": short})
    session = Session.create(tmp_path / "run", changed)
    go_on(session)
    path = archive(session.run, "teacher", 0, tmp_path / "archive")
    before = digests(session.run.root)
    drop(session.run, 0)
    restore(session.run, "teacher", 0, path)
    assert digests(session.run.root) == before


def test_cut_short_between_record_and_table_it_can_be_run_again(run: Run, srpo: Srpo) -> None:
    path = run.table_path("teacher", 0)
    table = path.read_bytes()
    drop(run, 0)
    path.write_bytes(table)  # as if killed before the table went
    assert removal(path) is None and run.read("teacher", 0).num_rows
    assert not check_run(run).findings
    assert srpo("prune", run.root, "--before", 1)[0] == 0
    assert removal(path) is not None


def test_a_record_that_was_changed_is_damage(run: Run) -> None:
    drop(run, 0)
    beside = record_path(run.table_path("teacher", 0))
    beside.write_text(beside.read_text(encoding="utf-8").replace("a test", "b test"))
    with pytest.raises(StoreError, match=r"teacher\.pruned\.json: changed since it was written"):
        run.read("teacher", 0)
    (finding,) = check_run(run).findings
    assert finding.path == str(beside)
    beside.unlink()
    with pytest.raises(StoreError, match="committed but missing"):
        run.read("teacher", 0)


def test_what_a_fork_needs_stays(run: Run, srpo: Srpo) -> None:
    """Of the fork: its inputs, the start of its replay and the way there; of its own fork too."""
    fork = fork_run(run, run.root.with_name("fork"), "weigh", 3, 4, ["weigh.beta=2"])
    session = Session.resume(fork.root)
    for name in ("weigh", "update"):
        session.run_stage(name, 3)
    session.finish_step(3)
    session.close()
    inner = run.root.parent / "sweeps" / "deep"
    fork_run(fork, inner, "generate", 1, 2, ["generate.temperature=0.9"])
    found = plan_pruning(run, PRUNABLE, snapshots=True)
    assert {claim.fork.root for claim in found.claims} == {fork.root.resolve(), inner.resolve()}
    # The fork replays update 2 from snapshot 2, and reads teacher of step 3; the inner update 0.
    assert [p.step for p in found.pieces if p.table == "teacher"] == [1, 4]
    assert [p.step for p in found.pieces if p.table == "weights"] == [1, 3, 4]
    assert list(found.snapshots) == [4]
    code, said = srpo("prune", run.root, "--tables", "teacher,weights", "--snapshots")
    assert code == 0 and "for the fork" in said
    session = Session.resume(fork.root)
    session.prepare(4)
    session.close()
    session = Session.resume(inner)
    session.run_stage("generate", 1)
    session.close()


def test_a_fork_that_can_not_be_read_stops_it(run: Run, srpo: Srpo) -> None:
    fork = fork_run(run, run.root.with_name("fork"), "weigh", 3, 4, ["weigh.beta=2"])
    (fork.root / "run.json").write_text("{", encoding="utf-8")
    code, said = srpo("prune", run.root)
    assert code == 2 and "may be a fork of" in said and teachers(run) == [0, 1, 2, 3, 4]


def test_a_training_goes_on_beside_a_fork_that_can_not_be_read(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """It keeps its tables, and says why."""
    few = run.config.run.model_copy(update={"keep_teacher_tables": 1, "steps": STEPS + 1})
    run.extend(run.config.model_copy(update={"run": few}))
    fork = fork_run(run, run.root.with_name("fork"), "weigh", 3, 4, ["weigh.beta=2"])
    (fork.root / "run.json").write_text("{", encoding="utf-8")
    assert go_on(Session.resume(run.root)) == Outcome(STEPS + 1, "steps")
    assert teachers(run) == list(range(STEPS + 1))
    assert "nothing more is removed" in capsys.readouterr().err


def test_nothing_goes_when_the_newest_snapshot_is_damaged(run: Run, srpo: Srpo) -> None:
    path = run.own_snapshot_path(STEPS) / "optimizer.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    code, said = srpo("prune", run.root)
    assert code == 2 and "nothing was removed" in said and teachers(run) == [0, 1, 2, 3, 4]
