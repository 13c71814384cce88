"""Run folders of every schema version that users may have: every tool reads them, they go on."""

import shutil
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from flows.session.fork_run import fork_run
from flows.session.open_run import Start, checked_start, open_session, resumed_config
from flows.session.session import Session
from pipeline.audit.listing import samples
from pipeline.audit.rollout import rollout_record
from pipeline.check.check_run import check_run
from pipeline.compare.run_diff import diff_runs
from pipeline.errors import StoreError
from pipeline.files.sealed_json import read_sealed, write_sealed
from pipeline.housekeeping.run_listing import overview
from pipeline.run.run import Run
from pipeline.run.step_layout import STEP_STAGES, STEP_TABLES
from pipeline.tables.schemas import SCHEMA_VERSION
from pipeline.viewer.app import create_app
from stages.route import STAGE as ROUTE
from tests.golden.golden_run import TASK
from tests.golden.keep_runs import KEPT

VERSIONS = sorted(path.name for path in KEPT.iterdir())
RUNS = [KEPT / version / name for version in VERSIONS for name in ("parity", "sharper")]


def name_of(root: Path) -> str:
    return "/".join(root.parts[-2:])


@pytest.fixture(params=RUNS, ids=name_of)
def kept(request: pytest.FixtureRequest) -> Run:
    return Run.open(request.param)


def test_there_is_a_kept_run_of_this_schema_version() -> None:
    assert str(SCHEMA_VERSION) in VERSIONS


def test_every_table_is_read_whole(kept: Run) -> None:
    for step in range(3):
        assert kept.metrics(step)["rollouts"] == 12
        for table in STEP_TABLES:
            data = kept.read(table, step)
            assert data.num_rows == kept.manifest(table, step).rows > 0, table
    assert kept.steps_done() == 3
    assert kept.steps_of("evaluations") == ([0, 3] if kept.fork is None else [0])


def test_check_finds_nothing_broken(kept: Run) -> None:
    report = check_run(kept)
    assert not report.findings
    assert report.tables > 0


def test_a_snapshot_opens_with_teacher_and_optimizer(kept: Run) -> None:
    session = Session.resume(kept.root, writes=False)
    policy = session.prepare(3)
    assert policy.version == kept.manifest("updates", 2).facts["next_policy_version"]
    assert len(policy.optimizer.state) == len(policy.trainable())
    assert policy.teacher_model is not None
    session.close()


def test_audits_show_what_was_decided(kept: Run) -> None:
    frame = samples(kept).collect()
    assert frame.height == 36
    assert set(frame["route"]) == {"grpo", "sdpo"}
    taught = frame.filter(frame["route"] == "sdpo")["rollout_id"][0]
    tokens = rollout_record(kept, taught).tokens
    assert all(token.weight is not None and token.weight > 0 for token in tokens)
    assert overview(kept.root)["steps"] == 3


def test_pages_are_served(kept: Run) -> None:
    with TestClient(create_app([kept]), base_url="http://127.0.0.1") as client:
        for page in ("", "steps/1/", "rollouts/000001-0000-00/"):
            assert client.get(f"/runs/{kept.root.name}/{page}").status_code == 200, page


def copied(version: str, tmp_path: Path) -> Path:
    """Return a copy of a kept run, whose task is there again."""
    root = Path(shutil.copytree(KEPT / version / "parity", tmp_path / "run"))
    record = read_sealed(root / "run.json")
    task = tmp_path / "parity.py"  # the one that it began with is gone
    task.write_text(TASK, encoding="utf-8")
    data = {**record["config"]["data"], "task": str(task)}
    write_sealed(root / "run.json", {**record, "config": {**record["config"], "data": data}})
    return root


@pytest.mark.parametrize("version", VERSIONS)
def test_older_rules_are_not_gone_on_with(version: str, tmp_path: Path) -> None:
    root = copied(version, tmp_path)
    before = sorted(root.rglob("*"))
    run = Run.open(root)
    config = resumed_config(run, None, ["run.steps=5"])
    with pytest.raises(StoreError) as found:
        open_session(Start(root, config, run))
    said = str(found.value)
    assert said.startswith(f"{root} was made by other rules") and "\n" not in said
    for stage in ("generate", "verify", "route", "update", "evaluate"):
        assert f"{stage} version " in said
    assert f"now {ROUTE.version} (unjudged rollouts are left out)" in said
    assert f"srpo stage generate --run {root} --step 3 --fork NEW --set run.steps=5" in said
    assert sorted(root.rglob("*")) == before
    open_session(checked_start(None, root, [], resume=True)).close()  # it is complete


@pytest.mark.parametrize("version", VERSIONS)
def test_training_goes_on_in_a_fork(version: str, tmp_path: Path) -> None:
    root, fork = copied(version, tmp_path), tmp_path / "fork"
    fork_run(Run.open(root), fork, "generate", 3, 4, ["run.steps=5"])
    with open_session(checked_start(None, fork, [], resume=True)) as session:
        assert session.next_step() == 3
        for step in (3, 4):
            for name in STEP_STAGES:
                session.run_stage(name, step)
            session.finish_step(step)
    with open_session(checked_start(None, fork, [], resume=True)) as session:
        session.snapshot(5)
    run = Run.open(fork)
    assert run.steps_done() == 5
    next_version = run.manifest("updates", 2).facts["next_policy_version"]
    assert run.manifest("rollouts", 3).origin.policy_version == next_version
    assert not check_run(run).findings


@pytest.mark.parametrize("version", VERSIONS)
def test_a_fork_differs_in_the_weights_it_changed(version: str) -> None:
    parent, fork = (Run.open(KEPT / version / name) for name in ("parity", "sharper"))
    differing = {s.table: s.differing_rows for s in diff_runs(parent, fork).summaries}
    assert {t for t, rows in differing.items() if rows} == {"weights", "updates"}
