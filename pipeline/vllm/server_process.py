"""The process of a vLLM server of ours: its start, its log and its end.

It runs under `process_guard`, which reads from a pipe that we hold open. When the pipe closes,
because we close it or because this process ended, the guard ends the server and all its children.
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from pipeline.distributed import ranks
from pipeline.vllm.launch import (
    Launch,
    expect_installed,
    server_environment,
    server_options,
)
from pipeline.vllm.replica import EngineError

_POLL_SECONDS = 0.25
_END_SECONDS = 20.0
_LOG_BYTES = 4000
_LOG_LINES = 3
_MARKS = ("error", "exception", "traceback", "killed")


class ServerProcess:
    """One server, started when it is needed, and again if it has ended.

    Args:
        log: takes its stdout and stderr.
        socket: path of the Unix socket to listen on; None: a free port of 127.0.0.1, chosen at each
            start.
    """

    def __init__(self, launch: Launch, log: Path, socket: Path | None = None) -> None:
        self._launch, self._log, self.socket = launch, log, socket
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0

    @property
    def url(self) -> str:
        """Return where it listens; with a socket the name in the URL means nothing."""
        return "http://vllm" if self.socket else f"http://127.0.0.1:{self._port}"

    @property
    def label(self) -> str:
        """Return the name for messages."""
        return f"vLLM of rank {ranks.rank()}" if self.socket else f"vLLM at {self.url}"

    def start(self) -> bool:
        """Start the process unless it runs; return whether it was started."""
        if self._process is not None and self._process.poll() is None:
            return False
        expect_installed()
        if self.socket is None:
            self._port = free_port()
        else:
            self.socket.unlink(missing_ok=True)
        command = [sys.executable, "-P", "-m", "vllm.entrypoints.openai.api_server"]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-P", "-m", "pipeline.vllm.process_guard"),
                    *command,
                    *server_options(self._launch, self.socket or self._port),
                ],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=server_environment(self._launch, os.environ),
                start_new_session=True,
            )
        return True

    def wait(self, healthy: Callable[[], bool]) -> None:
        """Block until the server answers.

        Raises:
            EngineError: it ended, or did not answer within `vllm.start_seconds`.
        """
        assert self._process is not None
        limit = time.monotonic() + self._launch.seconds
        while not healthy():
            if (code := self._process.poll()) is not None:
                raise EngineError(
                    f"{self.label} ended at its start (exit code {code}); its log ends: "
                    f"{self.log_tail()}"
                )
            if time.monotonic() > limit:
                self.end()
                raise EngineError(
                    f"{self.label} did not come up within vllm.start_seconds = "
                    f"{self._launch.seconds:g} s; its log ends: {self.log_tail()}"
                )
            time.sleep(_POLL_SECONDS)

    def log_tail(self) -> str:
        """Return on one line the log's path, and its last lines about errors, or its last lines."""
        try:
            with self._log.open("rb") as log:
                log.seek(max(0, self._log.stat().st_size - _LOG_BYTES))
                text = log.read().decode(errors="replace")
        except OSError:
            return f"{self._log}: (no log)"
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        telling = [line for line in lines if any(mark in line.lower() for mark in _MARKS)]
        return f"{self._log}: {' | '.join((telling or lines)[-_LOG_LINES:]) or '(empty)'}"

    def end(self) -> None:
        """End the server and its children, and wait for it."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
