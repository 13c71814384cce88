"""One writer per run: who holds it is named, and neither SIGKILL nor children keep it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from unittest.mock import ANY

import pytest

from pipeline.errors import StoreError
from pipeline.run.lock import LOCK_FILE, RunLock
from tests.conftest import Srpo
from tests.paths import PROJECT

HOLD = """
import sys, time
from pathlib import Path
from pipeline.run.lock import RunLock
RunLock(Path(sys.argv[1]))
print("held", flush=True)
{then}
time.sleep(600)
"""


@contextmanager
def holder(root: Path, then: str = "") -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    arguments = [sys.executable, "-c", HOLD.format(then=then), str(root)]
    with subprocess.Popen(
        arguments, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def test_a_second_writer_is_told_who_holds_the_run(tmp_path: Path) -> None:
    root = tmp_path / "run"
    with holder(root) as process:
        message = rf"another command is writing to it: -c .*process {process.pid} on .*, since 2"
        with pytest.raises(StoreError, match=message):
            RunLock(root)
        with pytest.raises(StoreError, match="wait until it has ended"):
            RunLock(root)  # being refused has not cost the holder its lock


def test_a_killed_writer_holds_nothing(tmp_path: Path) -> None:
    root = tmp_path / "run"
    with holder(root) as process:
        process.kill()
        process.wait()
        assert (root / LOCK_FILE).exists()
        with RunLock(root):
            assert str(os.getpid()) in (root / LOCK_FILE).read_text()
    assert not (root / LOCK_FILE).exists()


def test_children_of_a_killed_writer_hold_nothing(tmp_path: Path) -> None:
    with holder(tmp_path, then="import os; os.fork()") as process:
        process.kill()
        process.wait()
        RunLock(tmp_path).release()


def test_holds_of_one_process_share_the_lock(tmp_path: Path) -> None:
    first, second = RunLock(tmp_path), RunLock(tmp_path / ".." / tmp_path.name)
    first.release()
    first.release()
    assert (tmp_path / LOCK_FILE).exists()
    second.release()
    assert not (tmp_path / LOCK_FILE).exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"command": 1}', "\x00" * 10_000])
def test_what_a_lock_file_says_means_nothing_unless_it_is_locked(tmp_path: Path, text: str) -> None:
    (tmp_path / LOCK_FILE).write_text(text)
    RunLock(tmp_path).release()


def test_folders_in_which_nothing_was_made_go_with_the_lock(tmp_path: Path) -> None:
    root = tmp_path / "runs" / "new"
    with RunLock(root):
        assert root.exists()
    assert not root.parent.exists()
    with RunLock(root):
        (root.parent / "notes.txt").write_text("keep me")
    assert not root.exists() and (root.parent / "notes.txt").exists()
    with RunLock(root):
        (root / "run.json").write_text("{}")
    assert (root / "run.json").exists()
    (tmp_path / "old").mkdir()
    RunLock(tmp_path / "old").release()
    assert (tmp_path / "old").exists()


@pytest.mark.slow
def test_commands_that_write_respect_the_lock_and_those_that_read_need_none(
    tmp_path: Path, srpo: Srpo
) -> None:
    run, fork = tmp_path / "run", tmp_path / "fork"
    small = ["run.steps=1", "generate.questions=4", "evaluate.questions=4", "evaluate.rollouts=2"]
    settings = [part for value in small for part in ("--set", value)]
    assert srpo("train", "demo", "--run", str(run), *settings) == (0, ANY, "")
    writing = {
        "train": ("train", "--resume", "--run", str(run)),
        "stage": ("stage", "weigh", "--run", str(run), "--step", "0"),
        "evaluate": ("evaluate", f"{run}@0"),
        "fork": ("stage", "weigh", "--run", str(run), "--step", "0", "--fork", str(fork)),
        "replay": ("replay", str(run), "--from", "weigh", "--fork", str(fork)),
        "prune": ("prune", str(run)),
        "restore": ("restore", str(run)),
    }
    reading = [
        ("check", str(run)),
        ("prune", str(run), "--dry-run"),
        ("audit", str(run), "--format", "csv"),
        ("policy", f"{run}@1", str(tmp_path / "policy")),
        ("runs", str(tmp_path)),
    ]
    started = time.monotonic()
    with holder(run), holder(fork):
        for name, arguments in writing.items():
            code, _, error = srpo(*arguments)
            assert code == 2, name
            assert "another command is writing to it" in error, name
            assert error.count("\n") == 1, error
        for arguments in reading:
            assert srpo(*arguments)[0] == 0, arguments
        assert time.monotonic() - started < 590, "the holders have ended before their time"
    assert srpo(*writing["fork"])[0] == 0
