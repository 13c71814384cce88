"""The Prefect API a run talks to: the user's `PREFECT_API_URL`, else one server per folder of runs.

    command A ─ shared lock on ROOT/.prefect/lease ─┐
    command B ─ shared lock on ROOT/.prefect/lease ─┤ held: the server lives
    server ──── asks for the exclusive lock, once a second; got it for 3 s: it ends

The locks vanish with the process that holds them, however it ended, so no command can leave a
server behind. The server (`server_process`) has a session of its own, so that Ctrl-C in a terminal
does not reach it. The command that starts it binds the port and passes it the socket: the address
is known at once, can't be taken by anybody else, and connections queue until the server answers.
"""

import fcntl
import http.client
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import IO, Any, NamedTuple

from pipeline.errors import SrpoError
from pipeline.machine.disk import errors_naming, trouble_at
from pipeline.machine.proxies import EXEMPT, exempt_loopback, expect_usable_proxies

LIMIT_SECONDS = 60.0
"""What a server may take to start or to end where no configuration says otherwise."""

CLIENT_SETTINGS = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "false",
    "PREFECT_LOGGING_LEVEL": "WARNING",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_INTERNAL_LEVEL": "CRITICAL",
}
"""For the commands. The two levels keep Prefect's tracebacks and its complaints about a lost server
out of our display; the API has the first, and the command prints the error itself."""

SERVER_SETTINGS = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_LEVEL": "WARNING",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "WARNING",
    "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
    "PREFECT_API_BLOCKS_REGISTER_ON_START": "false",
    "PREFECT_MEMOIZE_BLOCK_AUTO_REGISTRATION": "false",
    "PREFECT_SERVER_SERVICES_SCHEDULER_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_LATE_RUNS_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_FOREMAN_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_PAUSE_EXPIRATIONS_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_CANCELLATION_CLEANUP_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "50",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
}
"""For the server of a run root. It lives as long as its runs: schedules, late runs, work pools and
automations belong on a server that stays, which `PREFECT_API_URL` names. Recording task runs in
batches, and not keeping the events they are made of, cut its work per task from 50 to 11 ms. The
interval is in whole seconds: below 1 the server spins."""


class ServerState(NamedTuple):
    """Which API the runs of a root talk to, and whether it answers."""

    url: str | None
    own: bool
    alive: bool


class ServerHandle:
    """A handle on the Prefect API; a folder's own server lives while any process has one.

    One handle per process and folder: POSIX locks belong to the process, not to the open file.
    """

    def __init__(
        self,
        url: str,
        log: Path | None,
        lock: IO[str] | None,
        previous: dict[str, str],
        limit_seconds: float,
    ) -> None:
        self.url = url
        self._limit_seconds = limit_seconds
        self._log = log
        self._lock = lock
        self._previous = previous

    @property
    def own(self) -> bool:
        """Tell whether the server is one of ours, on its way up."""
        return self._log is not None

    def wait(self) -> None:
        """Block until the API answers.

        Raises:
            SrpoError: it does not answer within the limit, or its process ended.
        """
        started, limit_seconds = time.monotonic(), self._limit_seconds
        reason = _health(self.url, limit_seconds)
        while reason is not None and self._log is None:
            left = started + limit_seconds - time.monotonic()
            if left < 1:
                break
            time.sleep(0.5)  # somebody else's server may be starting too
            reason = _health(self.url, left)
        if reason is None:
            return
        place = "it is what PREFECT_API_URL names"
        if self._log is not None:
            pid = _announcement(self._log.parent).get("pid")
            place = f"its log is {self._log}; if it hangs, end it: kill -9 {pid}"
            if trouble := trouble_at(self._log.parent):
                place = f"{trouble}: make room there, its database needs some 5 MB; {place}"
        raise SrpoError(
            f"no Prefect server at {self.url}/health after {time.monotonic() - started:.0f} s "
            f"(run.prefect_seconds is {limit_seconds:g}): {reason}; {place}"
        )

    def release(self) -> None:
        """Give up the handle and restore the environment."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None
        for name in [*CLIENT_SETTINGS, "PREFECT_HOME", "PREFECT_API_URL", *EXEMPT]:
            if name in self._previous:
                os.environ[name] = self._previous[name]
            else:
                os.environ.pop(name, None)


def open_server(root: Path, limit_seconds: float = LIMIT_SECONDS) -> ServerHandle:
    """Return a handle on the Prefect API for the runs in `root`, without waiting for its answer.

    Sets the environment for Prefect's client, so call it before anything imports prefect.

    Args:
        limit_seconds: within which the last server must have ended and this one must answer.

    Raises:
        SrpoError: the environment names a proxy that Prefect's client can't use.
    """
    previous = dict(os.environ)
    expect_usable_proxies()
    exempt_loopback()
    for name, value in CLIENT_SETTINGS.items():
        os.environ.setdefault(name, value)
    given = os.environ.get("PREFECT_API_URL")
    if given:
        return ServerHandle(given.rstrip("/"), None, None, previous, limit_seconds)
    home = Path((root / ".prefect").resolve())  # also beside a mirror it is this machine's
    home.mkdir(parents=True, exist_ok=True)
    lock = _keep_alive(home, limit_seconds)
    with errors_naming(home):
        url = _running_or_new(home, limit_seconds)
    os.environ["PREFECT_HOME"] = str(home)
    os.environ["PREFECT_API_URL"] = url
    return ServerHandle(url, home / "server.log", lock, previous, limit_seconds)


def server_state(root: Path) -> ServerState:
    """Tell which API a run in `root` would use and whether it is there now."""
    given = os.environ.get("PREFECT_API_URL")
    if given:
        return ServerState(given, own=False, alive=_health(given.rstrip("/"), 5.0) is None)
    url = _announced(root / ".prefect")
    return ServerState(url, own=True, alive=url is not None and _health(url, 5.0) is None)


def _keep_alive(home: Path, limit_seconds: float) -> IO[str]:
    """Return the shared lock that keeps a server alive; the server itself takes it for moments."""
    lock = (home / "lease").open("a+")
    deadline = time.monotonic() + limit_seconds
    while True:
        try:
            fcntl.lockf(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return lock
        except (BlockingIOError, PermissionError):
            if time.monotonic() > deadline:
                lock.close()
                pid = _announcement(home).get("pid")
                raise SrpoError(
                    f"waited {limit_seconds:g} s (run.prefect_seconds) for {home / 'lease'}: a "
                    f"Prefect server keeps it; if it hangs, end it: kill -9 {pid}"
                ) from None
            time.sleep(0.05)


def _running_or_new(home: Path, limit_seconds: float) -> str:
    """Return the address of the live server of `home`, starting one where there is none."""
    deadline = time.monotonic() + limit_seconds
    while time.monotonic() < deadline:
        with (home / "start.lock").open("w") as start, (home / "server.lock").open("w") as alive:
            if not _take(start):
                waiting_for = "another command to start a Prefect server"
            elif _take(alive):
                return _start(home, alive)
            elif (url := _announced(home)) is not None:
                return url
            else:  # it is on its way out and has withdrawn its address
                waiting_for = "the last Prefect server to end"
        time.sleep(0.1)
    raise SrpoError(
        f"waited {limit_seconds:g} s (run.prefect_seconds) for {waiting_for} in {home}; its log is "
        f"{home / 'server.log'}"
    )


def _take(lock: IO[str]) -> bool:
    """Take a lock if nobody has it, and tell; it is given up when the file is closed."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _start(home: Path, alive: IO[str]) -> str:
    """Start a server that inherits the held lock `alive`, and announce its address."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=128)
    url = f"http://127.0.0.1:{listening.getsockname()[1]}/api"
    project = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join(filter(None, [project, os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, **SERVER_SETTINGS, "PYTHONPATH": paths, "PREFECT_HOME": str(home)}
    environment["PREFECT_UI_API_URL"] = url
    arguments = [str(home), str(listening.fileno())]
    with listening, (home / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "flows.prefect_api.server_process", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=home,
            env=environment,
            start_new_session=True,
            pass_fds=[listening.fileno(), alive.fileno()],
        )
    text = json.dumps({"url": url, "pid": process.pid})
    (home / "server.json.new").write_text(text, encoding="utf-8")
    (home / "server.json.new").replace(home / "server.json")
    return url


def _announced(home: Path) -> str | None:
    """Return the address in server.json, if there is one."""
    return _announcement(home).get("url")


def _announcement(home: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((home / "server.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return found


def _health(url: str, limit_seconds: float) -> str | None:
    """Return None if the API is well, else what is wrong; connections queue until it is up."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    opener = direct if "//127.0.0.1" in url else urllib.request.build_opener()
    try:
        with opener.open(f"{url}/health", timeout=limit_seconds):
            return None
    except urllib.error.HTTPError as error:  # below 500: it wants a login, and so is well
        return None if error.code < 500 else f"it answered {error.code}"
    except TimeoutError:
        return "no answer"
    except urllib.error.URLError as error:
        if isinstance(error.reason, TimeoutError):
            return "no answer"
        return f"no connection ({error.reason})"
    except (ConnectionError, http.client.HTTPException) as error:
        return f"its process ended ({type(error).__name__})"
