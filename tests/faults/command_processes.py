"""All processes of the commands in a folder: themselves, Prefect's server, verifier children."""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal

import psutil

from tests.paths import PROJECT

Kind = Literal["command", "server", "verifier", "everything"]
MARK = "SRPO_TEST_FAMILY"
_GONE = (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess)


class CommandProcesses:
    """A command, and whoever it or an earlier one in the same folder started.

    They are found by a mark in the environment, which children inherit, and by their parents.

    Attributes:
        command: the process itself.
        used: CPU seconds of the command when it was last looked at.
        log: what it printed.
    """

    def __init__(self, arguments: list[str], folder: Path, log: Path) -> None:
        self._mark = str(folder)
        self._known: set[psutil.Process] = set()
        self.log = log
        environment = {k: v for k, v in os.environ.items() if k != "PREFECT_API_URL"}
        environment |= {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1", MARK: self._mark}
        self.used = 0.0
        with log.open("wb") as output:
            self.command = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def members(self) -> list[psutil.Process]:
        """Return all that live."""
        for process in psutil.process_iter():
            with contextlib.suppress(*_GONE):
                if process.environ().get(MARK) == self._mark:
                    self._known.add(process)
        for process in list(self._known):
            with contextlib.suppress(*_GONE):
                self._known.update(process.children(recursive=True))
        return [process for process in self._known if _lives(process)]

    def find(self, kind: Kind) -> list[psutil.Process]:
        """Return the living processes of a kind; none may be there."""
        members = self.members()
        if kind == "everything":
            return members
        return [process for process in members if self.kind(process) == kind]

    def kind(self, process: psutil.Process) -> str:
        """Return what a process is to the command."""
        if process.pid == self.command.pid:
            return "command"
        with contextlib.suppress(*_GONE):
            line = " ".join(process.cmdline())
            if "flows.prefect_api.server_process" in line:
                return "server"
            if "pipeline.verification.guard" in line:
                return "verifier"
        return "other"

    def wait(self, limit_seconds: float) -> int | None:
        """Return the command's exit code, or None if it still runs after the limit."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.command.wait(limit_seconds)
        return None

    def wait_for_work(self, cpu_seconds: float, limit_seconds: float) -> int | None:
        """Wait until the command has worked so long or ended; return as `wait` does.

        CPU time is a measure of how far it is that does not depend on what else the machine does.
        """
        deadline = time.monotonic() + limit_seconds
        while self.used < cpu_seconds and time.monotonic() < deadline:
            if (code := self.wait(0.05)) is not None:
                return code
            with contextlib.suppress(*_GONE):
                times = psutil.Process(self.command.pid).cpu_times()
                self.used = times.user + times.system
        return None

    def wait_until_gone(self, limit_seconds: float) -> float | None:
        """Return after how many seconds nobody was left; None: somebody is."""
        started = time.monotonic()
        while self.members():
            if time.monotonic() - started > limit_seconds:
                return None
            time.sleep(0.1)
        return time.monotonic() - started

    def end(self) -> None:
        """Kill whoever is left."""
        for process in self.members():
            with contextlib.suppress(*_GONE):
                process.kill()
        self.command.wait()


def _lives(process: psutil.Process) -> bool:
    with contextlib.suppress(*_GONE):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False
