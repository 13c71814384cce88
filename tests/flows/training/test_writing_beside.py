"""Training with tables written beside the next stages: same bytes, and no harm from any end."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import pipeline.tables.arrow_writing
from flows.session.session import Session
from flows.training.loop import Outcome, Watcher, train
from pipeline.config.sections import Config
from pipeline.errors import StoreError
from pipeline.run.run import Run
from pipeline.run.step_layout import STEP_STAGES
from tests.flows.session.test_session import digests
from tests.golden.golden_run import golden_config
from tests.paths import PROJECT

STEPS = 1


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    overrides = {"run": {"steps": STEPS}, "generate": {"questions": 3, "rollouts": 4}}
    return golden_config(tmp_path_factory.mktemp("input"), overrides)


@pytest.fixture(scope="module")
def plain(config: Config, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The tables of a run whose every stage ended with its tables on the disk."""
    folder = tmp_path_factory.mktemp("runs") / "plain"
    session = Session.create(folder, config)
    session.run_stage("evaluate", 0)
    for step in range(STEPS):
        for name in STEP_STAGES:
            tables = session.run_stage(name, step)["tables"]
            assert all(session.run.has(table, step) for table in tables)
        session.finish_step(step)
    session.run_stage("evaluate", STEPS)
    session.close()
    return digests(folder)


def never() -> bool:
    return False


def go_on(session: Session, watcher: Watcher | None = None, stop: object = never) -> Outcome:
    assert callable(stop)
    try:
        return train(session, session.run_stage, [watcher or Watcher()], stop)
    finally:
        session.close()


def committed(run: Run, step: int) -> list[str]:
    return sorted(p.stem for p in (run.root / "steps" / f"{step:06d}").glob("[!.]*.json"))


def failing_sync(name: str) -> Callable[[int], None]:
    """Return an fsync that fails for one file: the disk is full."""
    sync = os.fsync

    def fsync(descriptor: int) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith(name):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    return fsync


def test_a_training_leaves_the_same_bytes(
    config: Config, plain: dict[str, str], tmp_path: Path
) -> None:
    session = Session.create(tmp_path / "run", config)
    assert go_on(session) == Outcome(STEPS, "steps")
    assert digests(tmp_path / "run") == plain
    assert not list((tmp_path / "run").rglob(".*.tmp"))


def test_all_is_on_the_disk_before_a_step_has_its_record(config: Config, tmp_path: Path) -> None:
    tables = {"rollouts", "verdicts", "routes", "scores", "teacher", "weights", "updates"}

    class Looking(Watcher):
        def stage_ended(self, name: str, reference: dict[str, object]) -> None:
            if name == "update":
                assert set(committed(session.run, session.next_step())) == tables
                self.seen = True

    session, watcher = Session.create(tmp_path / "run", config), Looking()
    go_on(session, watcher)
    assert watcher.seen


def test_a_training_stopped_between_stages_leaves_whole_tables(
    config: Config, plain: dict[str, str], tmp_path: Path
) -> None:
    class Stopping(Watcher):
        asked = False

        def stage_ended(self, name: str, reference: dict[str, object]) -> None:
            self.asked |= name == "route"

        def __call__(self) -> bool:
            return self.asked

    watcher = Stopping()
    outcome = go_on(Session.create(tmp_path / "run", config), watcher, watcher)
    assert outcome == Outcome(0, "stopped")
    run = Run.open(tmp_path / "run")
    assert committed(run, 0) == ["rollouts", "routes", "scores", "teacher", "verdicts"]
    go_on(Session.resume(run.root))
    assert digests(run.root) == plain


@pytest.mark.parametrize(
    ("name", "left"),
    [
        (".rollouts.arrow.tmp", []),
        (".teacher.arrow.tmp", ["rollouts", "routes", "scores", "verdicts"]),
        (".scores.json.tmp", ["rollouts", "routes", "verdicts"]),
    ],
)
def test_a_full_disk_ends_the_run_with_one_line_and_it_goes_on_later(
    name: str,
    left: list[str],
    config: Config,
    plain: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    session = Session.create(tmp_path / "run", config)
    table = name.split(".")[1]
    with monkeypatch.context() as patch:
        patch.setattr(pipeline.tables.arrow_writing, "RETRY_SECONDS", 0.0)
        patch.setattr(os, "fsync", failing_sync(name))
        said = r"No space left on device \(.* free there\); make room there; .* --resume"
        message = rf"{table}\.arrow: not written, .*: {said}"
        with pytest.raises(StoreError, match=message) as caught:
            go_on(session)
    assert "\n" not in str(caught.value)
    assert committed(session.run, 0) == left
    assert go_on(Session.resume(session.run.root)) == Outcome(STEPS, "steps")
    assert digests(session.run.root) == plain


STALLED = """
import os, sys, time
from pathlib import Path
from flows.training.loop import Watcher, train
from flows.session.session import Session

sync = os.fsync

def stall(descriptor):
    if os.readlink(f"/proc/self/fd/{descriptor}").endswith(sys.argv[2]):
        time.sleep(600)
    sync(descriptor)

class Telling(Watcher):
    def stage_started(self, name, step):
        print(name, step, flush=True)

os.fsync = stall
session = Session.resume(Path(sys.argv[1]))
train(session, session.run_stage, [Telling()], lambda: False)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "left"),
    [
        (".teacher.arrow.tmp", ["rollouts", "routes", "scores", "verdicts"]),
        (".weights.json.tmp", ["rollouts", "routes", "scores", "teacher", "verdicts"]),
    ],
)
def test_a_process_killed_while_it_writes_beside_an_update(
    name: str, left: list[str], config: Config, plain: dict[str, str], tmp_path: Path
) -> None:
    root = tmp_path / "run"
    Session.create(root, config).close()
    arguments = [sys.executable, "-c", STALLED, str(root), name]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    process = subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    seen = [next(process.stdout).strip()]
    while seen[-1] != "update 0":  # it has begun, and waits for the table that hangs
        seen.append(next(process.stdout).strip())
    while not list(root.rglob(name)):
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    assert process.wait(30) == -signal.SIGKILL
    run = Run.open(root)
    assert committed(run, 0) == left
    assert run.steps_done() == 0
    go_on(Session.resume(root))
    assert digests(root) == plain
