"""The server of a run root: reused, gone when nobody holds it, and clear when it can't start."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.prefect_api.server import CLIENT_SETTINGS, ServerHandle, open_server, server_state
from pipeline.errors import SrpoError
from tests.conftest import OwnServer
from tests.paths import PROJECT

HOLDER = """
import sys, time
from pathlib import Path
from flows.prefect_api.server import open_server
server = open_server(Path(sys.argv[1]))
server.wait()
print(server.url, flush=True)
time.sleep(600)
"""

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def no_server_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)


@contextlib.contextmanager
def holder(root: Path) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """Another command that holds a lease; yields its process and the address it got."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(root)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
    )
    assert process.stdout is not None
    try:
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def server_pid(root: Path) -> int:
    return int(json.loads((root / ".prefect" / "server.json").read_text())["pid"])


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def wait_until_gone(pid: int, limit_seconds: float) -> float:
    started = time.monotonic()
    while time.monotonic() - started < limit_seconds:
        with contextlib.suppress(FileNotFoundError):
            if not alive(pid):
                return time.monotonic() - started
        time.sleep(0.2)
    raise AssertionError(f"process {pid} is still there after {limit_seconds} s")


def test_commands_share_a_server_and_sigkill_of_all_of_them_ends_it(
    tmp_path: Path, own_server: OwnServer
) -> None:
    own_server(tmp_path)
    with holder(tmp_path) as (first, url):
        pid = server_pid(tmp_path)
        with holder(tmp_path) as (second, same_url):
            assert same_url == url
            first.kill()
            time.sleep(6)
            assert alive(pid), "the second command still needs it"
            assert server_state(tmp_path).alive
            second.send_signal(signal.SIGKILL)
            wait_until_gone(pid, 30)
    assert server_state(tmp_path) == (None, True, False)
    with holder(tmp_path) as (_, _):
        assert server_pid(tmp_path) != pid


def test_two_commands_that_start_together_get_one_server(tmp_path: Path) -> None:
    with holder(tmp_path) as (_, one), holder(tmp_path) as (_, other):
        assert one == other


def test_a_command_killed_during_the_start_leaves_nothing(tmp_path: Path) -> None:
    code = HOLDER.replace("server.wait()", "print(1, flush=True); time.sleep(600)")
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
    )
    assert process.stdout is not None
    process.stdout.readline()
    pid = server_pid(tmp_path)
    process.kill()
    process.wait()
    process.stdout.close()
    wait_until_gone(pid, 30)


def test_a_server_that_cannot_start_is_one_line_that_names_its_log(tmp_path: Path) -> None:
    home = tmp_path / ".prefect"
    home.mkdir()
    (home / "ready").touch()
    (home / "prefect.db").write_bytes(b"this is no database" * 1000)
    server = open_server(tmp_path)
    try:
        pid = server_pid(tmp_path)
        with pytest.raises(SrpoError, match=r"prefect_seconds is 60.*its process ended") as caught:
            server.wait()
    finally:
        server.release()
    assert str(home / "server.log") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert b"not a database" in (home / "server.log").read_bytes()
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)


def test_a_given_server_is_used_and_no_own_one_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    server = open_server(tmp_path, limit_seconds=2.0)
    try:
        assert server.url == "http://127.0.0.1:9/api"
        assert not (tmp_path / ".prefect").exists()
        with pytest.raises(SrpoError, match="PREFECT_API_URL"):
            server.wait()
    finally:
        server.release()


def test_release_restores_the_environment(tmp_path: Path) -> None:
    before = {name: os.environ.get(name) for name in CLIENT_SETTINGS}
    server: ServerHandle = open_server(tmp_path)
    pid = server_pid(tmp_path)
    assert os.environ["PREFECT_API_URL"] == server.url
    server.release()
    assert "PREFECT_API_URL" not in os.environ
    assert {name: os.environ.get(name) for name in CLIENT_SETTINGS} == before
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)


def test_a_server_whose_folder_is_deleted_ends(tmp_path: Path, own_server: OwnServer) -> None:
    root = tmp_path / "runs"
    server = open_server(own_server(root))
    server.wait()
    pid = server_pid(root)
    shutil.rmtree(root)
    wait_until_gone(pid, 30)
    server.release()
