"""Disks that are full, read-only or limited: one clear line, nothing half-made, the run goes on."""

import contextlib
import errno
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import pipeline.tables.arrow_writing
from flows.session.session import Session
from flows.training.loop import Outcome, Watcher, train
from pipeline.check.check_run import check_run
from pipeline.config.sections import Config
from pipeline.errors import StoreError
from pipeline.machine.disk import errors_naming, os_error_line
from pipeline.run.run import Run, is_taken
from tests.faults.small_disk import SmallDisk, mounted
from tests.flows.session.test_session import digests
from tests.golden.golden_run import golden_config
from tests.paths import PROJECT

STEPS = 3
LIMIT_SECONDS = 240


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    overrides = {
        "run": {"steps": STEPS, "snapshot_every": 2},
        "generate": {"questions": 3, "rollouts": 4},
    }
    return golden_config(tmp_path_factory.mktemp("input"), overrides)


@pytest.fixture(scope="module")
def undisturbed(config: Config, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("runs") / "undisturbed"
    go_on(Session.create(root, config))
    return everything(root)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    found = mounted(tmp_path / "disk", 40)
    yield found
    found.unmount()


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.tables.arrow_writing, "RETRY_SECONDS", 0.0)


def everything(root: Path) -> dict[str, str]:
    """The SHA-256 of every table, and of the last policy."""
    last = Run.open(root).own_snapshot_path(STEPS) / "state.json"
    return {**digests(root), "policy": last.read_text(encoding="utf-8")}


class At(Watcher):
    """Does something once, when a stage of a step begins."""

    def __init__(self, stage: str, step: int, action: Callable[[], object]) -> None:
        self._place, self._action = (stage, step), action

    def stage_started(self, name: str, step: int) -> None:
        if (name, step) == self._place:
            self._action()


def go_on(session: Session, watcher: Watcher | None = None) -> Outcome:
    try:
        return train(session, session.run_stage, [watcher or Watcher()], lambda: False)
    finally:
        session.close()


def line_of(session: Session, watcher: Watcher) -> str:
    """Train into the trouble and return the line that a user would see."""
    with pytest.raises((OSError, StoreError)) as caught:
        go_on(session, watcher)
    error = caught.value
    return os_error_line(error) if isinstance(error, OSError) else str(error)


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Limit the files that this process writes, as ulimit -f does."""
    known = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, known[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, known)


def expect_sound_and_finish(root: Path, undisturbed: dict[str, str]) -> None:
    """What is there is whole; the rest follows, bit for bit."""
    assert not check_run(Run.open(root)).findings
    assert go_on(Session.resume(root)) == Outcome(STEPS, "steps")
    assert everything(root) == undisturbed
    assert not check_run(Run.open(root)).findings


@pytest.mark.parametrize(
    ("stage", "step", "left", "names"),
    [
        ("evaluate", 0, 4096, "evaluations"),
        ("generate", 0, 4096, "steps/000000"),
        ("route", 1, 8192, "steps/000001"),
        ("update", 1, 4096, "steps/000001"),
        ("snapshot", 2, 0, "policy"),
        ("snapshot", 2, 65536, "policy/000002"),
        ("snapshot", 2, 200_000, "policy/000002"),
    ],
)
def test_a_full_disk_is_one_clear_line_and_the_run_goes_on(
    stage: str,
    step: int,
    left: int,
    names: str,
    disk: SmallDisk,
    config: Config,
    undisturbed: dict[str, str],
) -> None:
    root = disk.root / "run"
    line = line_of(Session.create(root, config), At(stage, step, lambda: disk.fill(left)))
    assert line.startswith(f"{root}/{names}")
    assert "No space left on device" in line
    assert "free there); make room there" in line
    assert "\n" not in line
    disk.free()
    expect_sound_and_finish(root, undisturbed)


@pytest.mark.parametrize("largest", [100, 4096, 20_000])
def test_a_run_whose_beginning_can_not_be_written_is_no_run(
    largest: int, tmp_path: Path, config: Config
) -> None:
    root = tmp_path / "run"
    with largest_file(largest), pytest.raises(OSError, match="File too large") as caught:
        Session.create(root, config)
    assert os_error_line(caught.value).startswith(f"{root}/")
    assert not is_taken(root)
    with pytest.raises(StoreError, match="no run here"):
        Run.open(root)
    Session.create(root, config).close()
    assert not check_run(Run.open(root)).findings


@pytest.mark.parametrize(("stage", "step"), [("verify", 1), ("snapshot", 2)])
def test_a_disk_that_turns_read_only(
    stage: str, step: int, disk: SmallDisk, config: Config, undisturbed: dict[str, str]
) -> None:
    root = disk.root / "run"
    session = Session.create(root, config)

    def turn() -> None:
        assert session._lock is not None
        session._lock.release()  # a kernel turns a disk read-only under open files; mount does not
        disk.remount("ro")

    line = line_of(session, At(stage, step, turn))
    assert "Read-only file system (nothing can be written there); mount it writable" in line
    before = sorted(root.rglob("*"))
    with pytest.raises(OSError, match="Read-only file system"):
        Session.resume(root)
    assert sorted(root.rglob("*")) == before
    disk.remount("rw")
    expect_sound_and_finish(root, undisturbed)


def test_a_limit_on_the_size_of_files(
    tmp_path: Path, config: Config, undisturbed: dict[str, str]
) -> None:
    root = tmp_path / "run"
    session = Session.create(root, config)
    with largest_file(4096):
        line = line_of(session, Watcher())
    assert "File too large" in line
    assert "raise that limit" in line
    expect_sound_and_finish(root, undisturbed)


class Syncs:
    """What becomes of every fsync under a folder, while it is in place."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self._root, self._real = root, os.fsync
        self.error: int | None = None
        self.seconds = 0.0
        patch.setattr(os, "fsync", self)

    def __call__(self, descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").readlink().is_relative_to(self._root):
            time.sleep(self.seconds)
            if self.error is not None:
                raise OSError(self.error, os.strerror(self.error))
        self._real(descriptor)


@pytest.mark.parametrize(("stage", "step"), [("evaluate", 0), ("verify", 1), ("snapshot", 2)])
@pytest.mark.parametrize(
    ("error", "words"),
    [
        (errno.EDQUOT, "Disk quota exceeded (your quota there is used up); make room there"),
        (errno.EIO, "Input/output error (the disk or its connection failed); look at the kernel's"),
    ],
)
def test_a_quota_that_is_used_up_and_a_disk_that_fails(
    error: int,
    words: str,
    stage: str,
    step: int,
    tmp_path: Path,
    config: Config,
    undisturbed: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root = tmp_path / "run"
    syncs = Syncs(root, monkeypatch)
    session = Session.create(root, config)
    line = line_of(session, At(stage, step, lambda: setattr(syncs, "error", error)))
    assert line.startswith(str(root)) and "\n" not in line
    assert words in line
    syncs.error = None
    expect_sound_and_finish(root, undisturbed)


def test_a_slow_disk_changes_nothing_but_the_time(
    tmp_path: Path, config: Config, undisturbed: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "run"
    Syncs(root, monkeypatch).seconds = 0.02
    started = time.perf_counter()
    assert go_on(Session.create(root, config)) == Outcome(STEPS, "steps")
    assert time.perf_counter() - started > 1.0
    assert everything(root) == undisturbed


def test_what_rust_says_becomes_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left on device") as caught, errors_naming(tmp_path):
        raise RuntimeError("Error while serializing: I/O error: nothing left (os error 28)")
    assert caught.value.filename == str(tmp_path)
    with pytest.raises(RuntimeError, match="another"), errors_naming(tmp_path):
        raise RuntimeError("another error")


SMALL = ["run.steps=3", "run.snapshot_every=1", "run.threads=1", "generate.questions=4"]
SMALL += ["evaluate.questions=2", "evaluate.rollouts=2", "evaluate.every=9", "verify.workers=1"]


@pytest.mark.slow
def test_the_command_says_it_in_one_line(disk: SmallDisk, environment: dict[str, str]) -> None:
    """The disk fills up in the middle of a step, for Prefect's database as well."""
    run, settings = disk.root / "run", [part for one in SMALL for part in ("--set", one)]
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "train", "demo", "--run", str(run), *settings],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (run / "steps" / "000000" / "updates.json").exists():
        assert process.poll() is None
        time.sleep(0.01)
    disk.fill(0)
    _, said = process.communicate(timeout=LIMIT_SECONDS)
    *before, line = said.splitlines()
    assert process.returncode == 2, said
    assert all(text.startswith("warning: the disk of") for text in before), said
    assert line.startswith(f"error: {run}/") and "No space left on device (" in line, said
    assert line.endswith((f"go on: srpo train --resume --run {run}", "go on with --resume")), said
    disk.free()
    assert go_on(Session.resume(run)) == Outcome(3, "steps")
    assert not check_run(Run.open(run)).findings


@pytest.mark.slow
def test_a_server_that_finds_no_room(disk: SmallDisk, environment: dict[str, str]) -> None:
    disk.fill(500_000)
    code = (
        "import sys; from pathlib import Path; from flows.prefect_api.server import open_server; "
    )
    code += "open_server(Path(sys.argv[1])).wait()"
    done = subprocess.run(
        [sys.executable, "-c", code, str(disk.root)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
    )
    assert f"the disk that holds {disk.root}/.prefect is full" in done.stderr
    assert "make room there" in done.stderr


@pytest.fixture
def environment() -> dict[str, str]:
    values = {k: v for k, v in os.environ.items() if k != "PREFECT_API_URL"}
    return {**values, "PYTHONPATH": str(PROJECT)}
