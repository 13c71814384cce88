"""Running verifiers: many responses at once, each verdict bounded in time and memory.

Responses are untrusted and verifiers are any code at all, so child processes make the verdicts, one
response per child at a time, and a child that misbehaves is killed and replaced. Its response alone
gets an error verdict with reward 0; nothing that waits behind it is lost. A response whose child
somebody else kills gets a second child, once: a verdict must not depend on such a kill.

    parent                                child (pipeline/verification/child.py)
    start, with limits       ────────▶    import the verifier
                             ◀────────    ready
    response, reference      ────────▶    judge(name, response, reference)
    the clock runs           ◀────────    verdict, or nothing: the clock or the exit decides

Why not a library: `multiprocessing` with spawn imports the parent's `__main__` again, which under
the `srpo` command means Prefect and torch in every child; with fork it is unsafe beside torch's
threads. pebble builds on it, shares one locked channel between all children, holds that lock for up
to 3 s while it stops one that hangs in C, and takes a child that calls os._exit(0) for one that
still works. Here each child is a plain subprocess with a socket and a process group of its own.
"""

import base64
import json
import os
import pickle
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import wait
from typing import Any, Self

from pipeline.errors import ConfigError, DataError
from pipeline.task import Verdict
from pipeline.verification.guard import TOO_MANY
from pipeline.verification.sandbox import MAX_PROCESSES

Judge = Callable[[str, str, str], Verdict]

_TIME_OUT = re.compile(r"time limit of |verifier raised \w*time_?d?_?out\w*\b", re.IGNORECASE)

START_SECONDS = 60.0
# How long a guard may take to end all that a verifier started, and to remove its files.
END_SECONDS = 10.0
# How often exits are looked for that no closed socket shows: a grandchild may hold the socket open.
LOOK_SECONDS = 0.2
CLOSED_SECONDS = 3.0
MAX_FRAME_BYTES = 1 << 20

# -P here and wherever we start a Python: a json.py or pipeline.py in the user's current directory
# is not what our imports mean.
_BOOT = (
    "import json, sys; settings = json.loads(sys.argv[1]); sys.path[:] = settings['path']; "
    "from pipeline.verification.guard import guard; guard(settings)"
)


def timed_out(verdict: Verdict) -> bool:
    """Tell whether time was short for a verdict: ours, or a limit that the verifier set itself.

    Such a verdict depends on how busy the machine was.
    """
    return verdict.error is not None and _TIME_OUT.match(verdict.error) is not None


class _Child:
    """A child process and what it is doing: starting, waiting (ready, no task) or judging."""

    def __init__(self, settings: dict[str, object]) -> None:
        self.socket, theirs = socket.socketpair()
        with theirs:
            self._folder = os.path.join(
                tempfile.gettempdir(), f"srpo-verifier-{os.getpid()}-{secrets.token_hex(8)}"
            )
            text = json.dumps({**settings, "socket": theirs.fileno(), "folder": self._folder})
            # One thread each, since threads' stacks count as memory; a fixed hash seed, so that
            # equal runs get equal verdicts from verifiers that iterate over sets.
            environment = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
            environment["PYTHONHASHSEED"] = "0"
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", _BOOT, text],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=os.environ | environment,
                pass_fds=[theirs.fileno()],
                process_group=0,
            )
        self.socket.setblocking(False)
        self.ready = False
        self.task: int | None = None
        self.deadline = time.monotonic() + START_SECONDS
        self.closed = False
        self.broken = False
        self._received = b""

    def send(self, task: int, pair: tuple[str, str], seconds: float) -> None:
        """Hand over a response; from now on the clock runs."""
        self.task, self.deadline = task, time.monotonic() + seconds
        self.socket.settimeout(seconds)
        # A child that is gone or takes nothing in is found out by its exit or by the clock.
        with suppress(OSError):
            self.socket.sendall(json.dumps(pair).encode() + b"\n")
        self.socket.setblocking(False)

    def receive(self) -> dict[str, Any] | None:
        """Return the next message if all of it has arrived, without waiting."""
        with suppress(BlockingIOError, ConnectionError):
            while b"\n" not in self._received and len(self._received) < MAX_FRAME_BYTES:
                data = self.socket.recv(1 << 16)
                if not data:
                    self.closed = True
                    break
                self._received += data
        line, newline, rest = self._received.partition(b"\n")
        if not newline:
            self.broken = len(line) >= MAX_FRAME_BYTES
            return None
        self._received = rest
        # A verifier may have written to our socket: such a child can't be trusted any more.
        with suppress(ValueError):
            message = json.loads(line)
            if isinstance(message, dict):
                return message
        self.broken = True
        return None

    def has_exited(self) -> bool:
        """Say whether the process is gone."""
        return self.process.poll() is not None

    def is_lost(self) -> bool:
        """Say whether a waiting child is gone, or speaks without being asked."""
        said = self.receive()
        return said is not None or self.closed or self.broken or self.has_exited()

    def ending(self) -> str:
        """Return how the process ended, for messages."""
        if self.broken:
            return "broke its connection"
        # The socket closes before the exit can be seen: what the verifier started ends first.
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(CLOSED_SECONDS)
        code = self.process.returncode
        if code is None:
            return "broke its connection"
        if code == TOO_MANY:
            return f"started more than {MAX_PROCESSES} processes"
        if code >= 0:
            return f"ended with exit code {code}"
        with suppress(ValueError):
            return f"was ended by {signal.Signals(-code).name}"
        return f"was ended by signal {-code}"

    def end(self) -> None:
        """Have the process end, and what it started, without waiting for it."""
        self.process.terminate()

    def was_killed(self) -> bool:
        """Say whether SIGKILL ended the process; we ourselves end one by SIGTERM."""
        return self.process.returncode == -signal.SIGKILL

    def kill(self) -> None:
        """End the process and what it started, and wait until all are gone."""
        self.end()
        try:
            self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.socket.close()
        shutil.rmtree(self._folder, ignore_errors=True)  # a guard that was killed could not


class VerifierPool:
    """Child processes that judge responses; kept for a whole run, usable from any thread.

    Args:
        judge: judges a response, `judge(name, response, reference)`. It is named to the children,
            not sent: a function at the top level of a module other than `__main__`.
        name: of the task, the first argument of `judge`.
        workers: number of children; they start when they are first needed.
        timeout_seconds: time limit of one verdict.
        memory_mb: limit of a child's address space, the interpreter and its libraries included.
        prepare: called once in each child with `name` before it takes its first response, so that
            importing a task's libraries is not counted as time of a verdict.
    """

    def __init__(
        self,
        judge: Judge,
        name: str,
        workers: int,
        timeout_seconds: float,
        memory_mb: int,
        prepare: Callable[[str], object] | None = None,
    ) -> None:
        self._name, self._workers = name, workers
        self._timeout_seconds, self._memory_mb = timeout_seconds, memory_mb
        self._settings: dict[str, object] = {
            "judge": base64.b64encode(pickle.dumps((judge, prepare))).decode(),
            "name": name,
            "memory_mb": memory_mb,
            "parent": os.getpid(),
        }
        self._children: list[_Child] = []
        self._lock = threading.Lock()
        # Linux ends children with the *thread* that started them: this one lives until `close`.
        self._starter: ThreadPoolExecutor | None = ThreadPoolExecutor(1, "verifier-starter")

    def verify(self, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        """Return the verdicts on pairs of response and reference, in order.

        Raises:
            DataError: the task can't be opened in a child.
            ConfigError: a child ends or hangs before it is ready.
        """
        with self._lock:
            verdicts: dict[int, Verdict] = {}
            waiting = deque(range(len(pairs)))
            killed = set[int | None]()
            try:
                while len(verdicts) < len(pairs):
                    self._hire(min(self._workers, len(pairs) - len(verdicts)))
                    for child in self._children:
                        if child.ready and child.task is None and waiting:
                            task = waiting.popleft()
                            child.send(task, pairs[task], self._timeout_seconds)
                    self._wait()
                    for child in list(self._children):
                        task_or_none, verdict = child.task, self._look(child, killed)
                        if task_or_none is None:
                            continue
                        if verdict is not None:
                            verdicts[task_or_none] = verdict
                        elif child not in self._children:
                            waiting.appendleft(task_or_none)
            finally:
                # Only after an error or Ctrl-C: the next call must not receive this one's answers.
                for child in [c for c in self._children if c.task is not None]:
                    self._dismiss(child)
            return [verdicts[i] for i in range(len(pairs))]

    def close(self) -> None:
        """End all children. A closed pool can't be used again."""
        with self._lock:
            for child in self._children:
                child.end()
            for child in list(self._children):
                self._dismiss(child)
            if self._starter is not None:
                self._starter.shutdown()
                self._starter = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _hire(self, number: int) -> None:
        """Replace waiting children that are gone, and start more, up to `number` in all."""
        if self._starter is None:
            raise ConfigError("the verifier pool is closed: open a new one")
        for child in [c for c in self._children if c.task is None and c.ready and c.is_lost()]:
            self._dismiss(child)
        while len(self._children) < number:
            # The path is taken now, not when the pool was made: it may have grown since.
            settings = self._settings | {"path": sys.path}
            self._children.append(self._starter.submit(_Child, settings).result())

    def _dismiss(self, child: _Child) -> None:
        """End a child."""
        child.kill()
        self._children.remove(child)

    def _wait(self) -> None:
        """Wait until a child sends something, a deadline passes, or exits must be looked for."""
        active = [c for c in self._children if c.task is not None or not c.ready]
        left = min(child.deadline for child in active) - time.monotonic()
        wait([child.socket for child in active], min(max(left, 0.0), LOOK_SECONDS))

    def _look(self, child: _Child, killed: set[int | None]) -> Verdict | None:
        """Receive a child's message or notice its end; return the verdict on its task, if any.

        A task whose child is killed while it starts or judges gets one more child.

        Args:
            killed: tasks whose child was killed; None stands for a start.
        """
        # In this order: what a child sent before it ended must still be received.
        exited, message = child.has_exited(), child.receive()
        if message is not None and "failed" in message:
            self._dismiss(child)
            raise DataError(f"the verifier of task {self._name} can't start: {message['failed']}")
        if message is not None and "verdict" in message:
            child.task = None
            if message["last"]:
                self._dismiss(child)
            return Verdict(**message["verdict"])
        if message is not None:
            child.ready = True
            return None
        gone = exited or child.closed or child.broken
        late = time.monotonic() > child.deadline
        if (child.ready and child.task is None) or not (gone or late):
            return None
        ending = child.ending() if gone else ""
        again = gone and child.was_killed() and child.task not in killed
        self._dismiss(child)
        if again:
            killed.add(child.task)
            return None
        if not child.ready:
            raise ConfigError(
                f"the verifier of task {self._name} can't start: its process "
                f"{ending or 'took too long'}; raise verify.memory_mb (now {self._memory_mb}) if "
                "it needs more"
            )
        limit = f"time limit of {self._timeout_seconds:g} s exceeded"
        error = f"verifier process {ending}" if gone else limit
        return Verdict(0.0, format_ok=False, error=error)
