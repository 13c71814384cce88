"""Prefect's server gone or frozen under a training, and what is left of killed ones in its records.

Trainings are of a session that does no work; the limits are short.
"""

import asyncio
import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import pytest

from flows.prefect_api.server import open_server
from flows.training.loop import Watcher
from pipeline.errors import NumericalError, SrpoError
from pipeline.run.lock import RunLock
from tests.conftest import OwnServer
from tests.flows.prefect_api.test_server import server_pid
from tests.flows.training.fake_session import FakeSession
from tests.paths import PROJECT

if TYPE_CHECKING:
    from flows.session.session import Session

pytestmark = pytest.mark.slow

LIMIT = 5.0
TRY = """
import fcntl, sys
try:
    fcntl.lockf(open(sys.argv[1], "a"), fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError:
    sys.exit(1)
"""


class Server(NamedTuple):
    """Where a server is, and its process."""

    url: str
    pid: int


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, own_server: OwnServer) -> Iterator[Server]:
    """A server that the tests, in their order, use, freeze and end."""
    given = os.environ.pop("PREFECT_API_URL", None)
    root = own_server(tmp_path_factory.mktemp("runs"))
    server = open_server(root)
    server.wait()
    pid = server_pid(root)
    yield Server(server.url, pid)
    server.release()
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    if given is not None:
        os.environ["PREFECT_API_URL"] = given


class Hitting(Watcher):
    """Sends the server a signal when a stage begins."""

    def __init__(self, pid: int, number: signal.Signals, stage: tuple[str, int]) -> None:
        self._pid, self._number, self._stage = pid, number, stage

    def stage_started(self, name: str, step: int) -> None:
        if (name, step) == self._stage:
            os.kill(self._pid, self._number)


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Have another process hold a POSIX lock."""
    code = (
        "import fcntl, sys; file = open(sys.argv[1], 'a'); fcntl.lockf(file, fcntl.LOCK_EX); "
        "print(flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    try:
        yield
    finally:
        holder.communicate()


def is_locked(path: Path) -> bool:
    """Tell whether this process holds a POSIX lock."""
    return subprocess.run([sys.executable, "-c", TRY, str(path)]).returncode == 1


def hit(pid: int, number: int) -> int:
    """Send a process a signal, as a piece of work."""
    os.kill(pid, number)
    return pid


def run_flow(session: FakeSession, watcher: Watcher) -> Any:
    from flows.training.train_flow import run_training

    return run_training(cast("Session", session), [watcher])


def give_up_sending() -> None:
    """Have Prefect's client drop what it could not send: it would hold up the end of the tests."""
    from prefect._internal.concurrency.threads import get_global_loop

    loop = get_global_loop()._loop
    assert loop is not None
    senders = [t for t in asyncio.all_tasks(loop) if "_QueueServiceBase" in repr(t.get_coro())]
    for task in senders:
        loop.call_soon_threadsafe(task.cancel)


def test_flow_runs_of_killed_commands_are_recorded_as_crashed(
    server: Server, tmp_path: Path
) -> None:
    import httpx

    from flows.prefect_api.killed_runs import end_orphans, this_process

    ended = subprocess.run(
        [
            sys.executable,
            "-c",
            "from flows.prefect_api.killed_runs import this_process; print(this_process())",
        ],
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout.strip()
    working: list[tuple[str, str, dict[str, str]]] = [
        ("killed", "fan-out", {"process": ended}),
        ("number-used-again", "fan-out", {"process": f"{os.getpid()} 1"}),
        ("of-an-earlier-version", "fan-out", {}),
        ("at-work", "fan-out", {"process": this_process()}),
    ]
    for name in ("killed", "trained-elsewhere", "ours"):
        (tmp_path / name).mkdir()
        working.append((name, "train", {"run": str(tmp_path / name)}))
    (tmp_path / "killed" / ".lock").touch()
    with httpx.Client(base_url=server.url) as api:
        made = {}
        for name, flow, parameters in working:
            record = {
                "flow_id": api.post("/flows/", json={"name": flow}).json()["id"],
                "name": name,
                "parameters": parameters,
                "state": {"type": "RUNNING"},
            }
            made[name, flow] = api.post("/flow_runs/", json=record).json()["id"]
        with held(tmp_path / "trained-elsewhere" / ".lock"), RunLock(tmp_path / "ours"):
            assert end_orphans(server.url, LIMIT) == 5
            assert is_locked(tmp_path / "ours" / ".lock"), "to look at a lock must not drop it"
        states = {n: api.get(f"/flow_runs/{i}").json()["state"]["type"] for n, i in made.items()}
    assert [name for name, state in states.items() if state == "RUNNING"] == [
        ("at-work", "fan-out"),
        ("trained-elsewhere", "train"),
    ]


@pytest.mark.campaign
def test_a_frozen_server_costs_a_training_its_limits_and_one_line(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    session = FakeSession(tmp_path / "frozen", "run.steps=2", f"run.prefect_seconds={LIMIT}")
    hitting = Hitting(server.pid, signal.SIGSTOP, ("route", 0))
    started = time.monotonic()
    with pytest.raises(SrpoError) as caught:
        run_flow(session, hitting)
    assert time.monotonic() - started < 10 * LIMIT
    assert "update 1" in session.events and session.events[-1] == "snapshot 2"
    text = str(caught.value)
    assert text.startswith(f"Prefect's API at {server.url} fails (ReadTimeout")
    assert text.endswith(f"srpo train --resume --run {tmp_path / 'frozen'}")
    warning = capsys.readouterr().err
    assert warning.count("\n") == 1 and "the work goes on without it" in warning
    os.kill(server.pid, signal.SIGCONT)
    give_up_sending()


@pytest.mark.campaign
def test_work_on_other_workers_is_done_although_the_server_freezes_meanwhile(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    from prefect.settings import temporary_settings

    from flows.prefect_api.calls import client_settings
    from flows.workers.runner_spec import RunnerSpec
    from flows.workers.worker_pool import WorkerPool

    items = [{"pid": server.pid, "number": int(signal.SIGSTOP)}]
    function = f"{__name__}:hit"
    started = time.monotonic()
    with (
        temporary_settings(client_settings(LIMIT)),
        WorkerPool(RunnerSpec("processes", 1)) as worker_pool,
    ):
        assert worker_pool.map("hit", function, items) == [server.pid]
        assert capsys.readouterr().err.count("; the work goes on without it\n") == 1
        with pytest.raises(SrpoError, match=r"hit can't be placed on processes:1: .*1 pieces of"):
            worker_pool.map("hit", function, items)
    assert time.monotonic() - started < 20 * LIMIT
    os.kill(server.pid, signal.SIGCONT)
    give_up_sending()


def test_another_command_that_never_gets_its_server_up_is_waited_for_with_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    home = tmp_path / ".prefect"
    home.mkdir()
    with (home / "start.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(SrpoError, match=r"waited 1 s .*for another command to start") as caught:
            open_server(tmp_path, limit_seconds=1.0)
    assert str(home / "server.log") in str(caught.value)


def test_a_server_that_hangs_while_it_holds_the_lease_is_waited_for_with_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    home = tmp_path / ".prefect"
    home.mkdir()
    (home / "server.json").write_text('{"url": "http://127.0.0.1:9/api", "pid": 4242}')
    with held(home / "lease"), pytest.raises(SrpoError, match=r"waited 1 s .*kill -9 4242$"):
        open_server(tmp_path, limit_seconds=1.0)


def test_an_error_of_ours_is_told_although_the_server_is_gone(
    server: Server, tmp_path: Path
) -> None:
    class Diverging(FakeSession):
        def run_stage(self, name: str, step: int, progress: Any = None) -> dict[str, Any]:
            if name == "update":
                raise NumericalError("the loss of 000000-0000-00 is not finite")
            return super().run_stage(name, step, progress)

    session = Diverging(tmp_path / "gone", "run.steps=2", f"run.prefect_seconds={LIMIT}")
    with pytest.raises(NumericalError, match="is not finite"):
        run_flow(session, Hitting(server.pid, signal.SIGKILL, ("route", 0)))
    give_up_sending()
