"""A bank in whole runs: what is in it, resumed and killed runs, forks, replays, single stages."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from flows.reruns.replay import Plan, replay
from flows.session.fork_run import fork_run
from flows.session.session import Session
from pipeline.check.check_run import check_run
from pipeline.compare.run_diff import diff_runs
from pipeline.errors import ConfigError, StoreError
from pipeline.files.durable import digest_of
from pipeline.run.run import Run
from pipeline.run.step_layout import ALL_STAGES, ALL_TABLES, STEP_TABLES, TABLES_OF_STAGE
from tests.builders.bank_runs import (
    SOURCES,
    STEPS,
    bank_config,
    bank_run,
    expected_bank,
    train_on,
)

FOUR_QUESTIONS = 4
WITH_BANK = 'route.sources=["sibling", "bank"]'


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of six steps with a bank; never write to it."""
    return bank_run(tmp_path_factory.mktemp("kept"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same without a bank; never write to it."""
    return bank_run(tmp_path_factory.mktemp("plain"), route={"sources": ["sibling"]})


def expect_banks(run: Run, steps: range) -> int:
    """Expect the banks of some steps to be what a plain loop finds; return their rows."""
    for step in steps:
        assert run.read("bank", step).to_pylist() == expected_bank(run, step), step
    return sum(run.manifest("bank", step).rows for step in steps)


def bytes_of(run: Path) -> dict[str, str]:
    return {
        f"{path.relative_to(run)}": hashlib.sha256(path.read_bytes()).hexdigest()
        for path in run.glob("steps/*/*.arrow")
    }


def test_the_bank_of_each_step_is_what_a_plain_loop_finds(kept: Run) -> None:
    assert expect_banks(kept, range(STEPS)) > 2 * FOUR_QUESTIONS
    assert kept.manifest("bank", 0).rows == 0
    ages = {s - row["step"] for s in range(STEPS) for row in kept.read("bank", s).to_pylist()}
    assert min(ages) >= 1 and len(ages) > 1  # the newest with an answer isn't always of one epoch


def test_its_origin_names_all_that_it_was_made_from(kept: Run) -> None:
    before = [[kept.manifest(t, s).sha256 for t in ("rollouts", "verdicts")] for s in range(3)]
    origin = kept.manifest("bank", 3).origin
    asked = kept.manifest("rollouts", 3).sha256
    assert origin.inputs == {"rollouts": asked, "earlier": digest_of(before)}
    assert origin.settings == {} and origin.policy_version is None
    assert kept.manifest("routes", 3).origin.inputs["bank"] == kept.manifest("bank", 3).sha256


def test_a_run_without_the_source_has_no_bank(plain: Run) -> None:
    assert not list(plain.root.glob("steps/*/bank.*"))
    assert set(plain.manifest("routes", 3).origin.inputs) == {"rollouts", "verdicts", "seed"}
    assert plain.tables_of(3) == STEP_TABLES
    assert "seconds_bank" not in plain.metrics(3)
    with (
        Session.resume(plain.root) as session,
        pytest.raises(
            ConfigError, match=r"step 3 has no bank, route\.sources is sibling; in a fork"
        ),
    ):
        session.run_stage("bank", 3)


def test_records_count_its_time(kept: Run) -> None:
    record = kept.metrics(3)
    assert record["seconds_bank"] == kept.manifest("bank", 3).cost.seconds
    parts = sum(v for k, v in record.items() if k.startswith("seconds_"))
    assert record["seconds"] == pytest.approx(parts)


@pytest.mark.parametrize("step", [0, 3])
@pytest.mark.parametrize("done", range(1, len(ALL_STAGES)))
def test_resume_between_any_two_stages(kept: Run, tmp_path: Path, step: int, done: int) -> None:
    run = Path(shutil.copytree(kept.root, tmp_path / "run"))
    there = {table for stage in ALL_STAGES[:done] for table in TABLES_OF_STAGE[stage]}
    for path in run.glob("steps/*/*"):
        number = int(path.parent.name)
        if number > step or (number == step and path.stem not in there):
            path.unlink()
    for folder in (run / "policy").iterdir():
        if int(folder.name) > step:
            shutil.rmtree(folder)
    train_on(Session.resume(run))
    assert bytes_of(run) == bytes_of(kept.root)


def test_written_beside_what_follows_it_is_the_same(kept: Run, tmp_path: Path) -> None:
    """Route reads the bank from memory, as training does; nothing makes it twice."""
    session = Session.create(tmp_path / "run", kept.config)
    with session.writing_beside():
        run = train_on(session)
    assert bytes_of(run.root) == bytes_of(kept.root)


def test_a_stage_runs_alone_where_the_folder_was_copied(kept: Run, tmp_path: Path) -> None:
    """Route needs no table of another step: the bank of its own is enough."""
    run = Path(shutil.copytree(kept.root, tmp_path / "elsewhere"))
    committed = (run / "steps/000004/routes.arrow").read_bytes()
    for path in (run / "steps/000004").glob("rout*.*"):
        if not path.name.startswith("rollouts"):
            path.unlink()
    for path in (run / "steps/000001").glob("[rv]*.*"):
        path.unlink()
    with Session.resume(run) as session:
        session.stages.run("route", 4, lambda done, total: None, decisions_only=True)
    assert (run / "steps/000004/routes.arrow").read_bytes() == committed


def test_a_bank_can_be_made_again(kept: Run, tmp_path: Path) -> None:
    run = Path(shutil.copytree(kept.root, tmp_path / "run"))
    (run / "steps/000003/bank.arrow").unlink()
    with Session.resume(run) as session:
        session.run_stage("bank", 3)
    assert bytes_of(run) == bytes_of(kept.root)


def replayed(parent: Run, root: Path, stage: str, last: str, steps: str, *settings: str) -> Run:
    replay(parent, root, Plan.of(parent, stage, last, steps), settings).close()
    return Run.open(root)


@pytest.mark.parametrize("stage", ["bank", "route"])
def test_a_fork_adds_a_bank_over_saved_rollouts(plain: Run, tmp_path: Path, stage: str) -> None:
    """From several steps' tables of the parent, which it may not change."""
    before = bytes_of(plain.root)
    fork = replayed(plain, tmp_path / "fork", stage, "update", "2:5", WITH_BANK)
    assert expect_banks(fork, range(2, 5)) > 0
    assert fork.tables_of(1) == STEP_TABLES and fork.tables_of(2) == ALL_TABLES
    assert all(fork.owner("bank", step) is fork for step in (2, 3, 4))
    assert bytes_of(plain.root) == before
    trained = train_on(Session.resume(fork.root))
    assert expect_banks(trained, range(2, STEPS)) > 0
    assert not check_run(trained).findings


def test_decisions_of_several_steps_with_a_bank(plain: Run, tmp_path: Path) -> None:
    fork = replayed(plain, tmp_path / "fork", "route", "decisions", "2:6", WITH_BANK)
    assert expect_banks(fork, range(2, STEPS)) > 0
    assert not fork.has("teacher", 2) and fork.has("routes", 5)


def test_one_stage_in_a_fork_makes_the_bank_first(plain: Run, tmp_path: Path) -> None:
    made = fork_run(plain, tmp_path / "fork", "route", 4, 5, [WITH_BANK])
    with Session(made) as session:
        session.run_stage("route", 4)
    assert expect_banks(Run.open(made.root), range(4, 5)) > 0


def test_a_fork_without_the_bank_has_none(kept: Run, tmp_path: Path) -> None:
    fork = replayed(kept, tmp_path / "fork", "route", "weigh", "4", 'route.sources=["sibling"]')
    assert fork.tables_of(4) == STEP_TABLES and not fork.has("bank", 4)
    assert fork.tables_of(3) == ALL_TABLES and fork.has("bank", 3)


def test_from_weigh_the_bank_is_the_parents(kept: Run, tmp_path: Path) -> None:
    fork = replayed(kept, tmp_path / "fork", "weigh", "weigh", "2:5", "weigh.beta=2")
    assert all(fork.owner("bank", step).root == kept.root for step in range(5))
    assert not list(fork.root.glob("steps/*/bank.*"))
    assert diff_runs(kept, fork).first.table == "weights"  # type: ignore[union-attr]


def test_from_verify_its_own_verdicts_count_from_the_fork_on(kept: Run, tmp_path: Path) -> None:
    """Everything is right in the fork's steps, as before in its parent's."""
    fork = replayed(
        kept, tmp_path / "fork", "verify", "decisions", "3:6", "verify.success_threshold=0"
    )
    expect_banks(fork, range(3, STEPS))
    wrong = {
        row["rollout_id"]
        for step in range(STEPS)
        for row in kept.read("verdicts", step).to_pylist()
        if not row["correct"]
    }
    rows = [row for step in (3, 4, 5) for row in fork.read("bank", step).to_pylist()]
    assert {row["step"] >= 3 for row in rows if row["rollout_id"] in wrong} == {True}


def test_what_workers_do_at_once_waits_for_verdicts(kept: Run, plain: Run) -> None:
    """From verify, a step's bank needs the verdicts of the steps before it."""
    config = kept.config
    assert Plan("verify", "decisions", 0, 4).stages_at_once(config) == ["verify"]
    assert Plan("verify", "decisions", 0, 4).stages_at_once(plain.config) == ["verify", "route"]
    assert Plan("route", "decisions", 0, 4).stages_at_once(config) == ["bank", "route"]
    assert Plan("route", "update", 0, 4).stages_at_once(config) == ["bank"]


def test_earlier_steps_are_read_once_in_a_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session.create(tmp_path / "run", bank_config(tmp_path))
    reads: list[tuple[str, int]] = []
    read = Run.read

    def noting(run: Run, table: str, step: int) -> Any:
        reads.append((table, step))
        return read(run, table, step)

    with session:
        for step in range(4):
            for name in ALL_STAGES:
                if name == "bank":
                    monkeypatch.setattr(Run, "read", noting)
                session.run_stage(name, step)
                monkeypatch.undo()
            session.finish_step(step)
    verdicts = [step for table, step in reads if table == "verdicts"]
    assert len(verdicts) == len(set(verdicts))  # texts alone are read again
    assert len([r for r in reads if r[0] == "rollouts"]) <= 4 + 3 + 2 * 3


def test_a_bank_that_was_made_from_other_steps_is_refused(kept: Run, tmp_path: Path) -> None:
    """A run whose earlier verdicts are others doesn't go on with the bank that is there."""
    run = Path(shutil.copytree(kept.root, tmp_path / "run"))
    other = bank_run(tmp_path / "other", 2, run={"seed": 4})
    for name in ("rollouts.arrow", "rollouts.json", "verdicts.arrow", "verdicts.json"):
        shutil.copy(other.root / "steps/000001" / name, run / "steps/000001" / name)
    with (
        Session.resume(run) as session,
        pytest.raises(StoreError, match=r"bank\.arrow was made otherwise \(inputs\.earlier: "),
    ):
        session.run_stage("bank", 3)


def test_settings_of_the_bank_are_recorded_only_where_they_are_set(kept: Run, plain: Run) -> None:
    assert "sources" not in json.loads((plain.root / "run.json").read_text())["config"]["route"]
    recorded = json.loads((kept.root / "run.json").read_text())["config"]["route"]["sources"]
    assert recorded == SOURCES


def test_the_writer_may_hold_the_bank_when_route_begins(tmp_path: Path) -> None:
    """What is made but not written yet is not made a second time."""
    session = Session.create(tmp_path / "run", bank_config(tmp_path))
    with session, session.writing_beside():
        for name in ("generate", "verify", "bank"):
            session.run_stage(name, 0)
        assert not session.stages._lacks_bank(0)
