"""The confined process that runs a response's code, seen from the verifier.

The limits are constants, since a verdict must not depend on anything but response and tests. All of
them together stay below the default of `verify.timeout_seconds`, so a response that never ends is
judged wrong, with feedback; one that runs into the pool's limit could not be judged at all.
"""

import os
import resource
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Self

from data.code_tests.plain_data import cut, decoded, literal
from pipeline.verification.confinement import bystander, confine

VERDICT_SECONDS = 8.0
"""Time for all tests of a response, by the clock; `verify.timeout_seconds` is 10."""
PROCESSOR_SECONDS = 4
"""Processor time of one process: of all calls, or of one program with its input."""
MEMORY_MB = 1024
"""Address space of a process, the interpreter's some 30 MB included."""
OUTPUT_MB = 2
"""What a program may print, or a function return."""

_UNSTARTED = f"{sys.executable} does not start in its confinement"
_START_SECONDS = 1.0
"""With less time left no process is started."""
_TEXT, _LINE = 200, 80
"""Characters of an exception's text, and of the line that raised it, in feedback."""


class Failed(Exception):
    """The response's code did not answer; the text says what it did instead: "raised …"."""


class Killed(BaseException):
    """Something killed the process: the system, which says nothing of the response, or itself."""


class Program:
    """A process that has loaded a response's code and answers calls of its functions.

    Args:
        preamble: code that runs before the response's: imports and helpers of the prompt.
        code: the response's.
        deadline: when all has to be over, by `time.monotonic`.
        output: where a whole program (not functions) reads and prints: two descriptors.

    Raises:
        Failed: the code can't be loaded.
        Killed: see there.
        RuntimeError, TimeoutError: the process does not start: nothing is known of the response.
    """

    def __init__(
        self, preamble: str, code: str, deadline: float, output: tuple[int, int] | None = None
    ) -> None:
        bystander()
        self._code, self._deadline = code, deadline
        self._used = _processor_seconds()
        self._socket, theirs = socket.socketpair()
        reads, prints = output or (subprocess.DEVNULL, subprocess.DEVNULL)
        try:
            with theirs:
                self._process = _started(theirs.fileno(), reads, prints)
        except OSError as error:
            self._socket.close()
            raise RuntimeError(f"{_UNSTARTED}: {error}") from error
        self._received = b""
        try:
            self._expect_hello()
            self._send(ascii(("program" if output else "functions", preamble, code)))
            if output is None:
                self._reply()
        except BaseException:
            self.close()
            raise

    def _expect_hello(self) -> None:
        """Wait until the interpreter runs; nothing of the response is there yet to be blamed."""
        try:
            if self._line(1000) != b'{"hello": 1}\n':
                raise RuntimeError(_UNSTARTED)
        except Failed as late:
            raise TimeoutError(f"{sys.executable} {late}") from late

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process, if it hasn't ended."""
        self._process.kill()
        self._process.wait()
        self._socket.close()

    def call(
        self, function: str, arguments: tuple[object, ...], named: dict[str, object]
    ) -> object:
        """Return what a function of the response returns, as plain data.

        Args:
            function: its name; of a method its class's, a dot and its own.

        Raises:
            Failed, Killed: as above.
        """
        request = literal((function, arguments, named))
        if self._process.returncode is not None:
            raise Failed("was not called, as the program had ended before")
        self._send(request)
        return self._reply()

    def wait(self) -> None:
        """Wait for the end of a whole program, whatever its exit code.

        Raises:
            Failed, Killed: as above.
        """
        first = line = self._line(OUTPUT_MB << 20)
        while line:
            line = self._line(OUTPUT_MB << 20)
        self._exit_code()
        if first:
            self._understood(first)

    def _send(self, request: str) -> None:
        self._socket.settimeout(self._left())
        # A process that is gone or takes nothing in is found out when it doesn't answer.
        with suppress(OSError):
            self._socket.sendall(request.encode() + b"\n")

    def _reply(self) -> object:
        """Return the value of the next reply."""
        line = self._line(OUTPUT_MB << 20)
        if not line:
            raise Failed(f"ended its process (exit code {self._exit_code()})")
        return self._understood(line)

    def _understood(self, line: bytes) -> object:
        message = decoded(line) if line.endswith(b"\n") else {"large": None}
        match message:
            case {"value": value} | {"ready": value}:
                return value
            case {"large": _}:
                self.close()
                raise Failed(f"returned more than {OUTPUT_MB} MB")
            case {"other": str(kind)}:
                raise Failed(f"returned {cut(_one_line(kind), _LINE)}, which is no plain data")
            case {"raised": [str(kind), str(text), int(number)]}:
                raise Failed(f"raised {self._exception(kind, text, number)}")
        self.close()
        raise Failed("wrote to the connection of its judge")

    def _exception(self, kind: str, text: str, number: int) -> str:
        """Return an exception in one line: type, text, and the line of code that raised it."""
        said = f"{cut(_one_line(kind), _LINE)}: {cut(_one_line(text), _TEXT)}".rstrip(": ")
        lines = self._code.splitlines()
        if not 0 < number <= len(lines):
            return said
        return f"{said} (line {number}: {cut(lines[number - 1].strip(), _LINE)})"

    def _line(self, most: int) -> bytes:
        """Return the next line, less than a line if it is too long, or nothing at the end."""
        while b"\n" not in self._received and len(self._received) <= most:
            if not select.select([self._socket], [], [], self._left())[0]:
                raise Failed(self._late())
            with suppress(ConnectionError):
                data = self._socket.recv(1 << 16)
                if data:
                    self._received += data
                    continue
            return b""
        line, newline, self._received = self._received.partition(b"\n")
        return line + newline

    def _left(self) -> float:
        """Return the seconds that are left, some at least."""
        return max(self._deadline - time.monotonic(), 0.001)

    def _late(self) -> str:
        self.close()
        return f"gave no answer within {VERDICT_SECONDS:g} s"

    def _exit_code(self) -> int:
        """Return how the process ended, which has closed its connection.

        Raises:
            Failed: a limit or a crash ended it.
            Killed: see there.
        """
        try:
            code = self._process.wait(self._left())
        except subprocess.TimeoutExpired:
            raise Failed(self._late()) from None
        spent = _processor_seconds() - self._used
        if -code == signal.SIGXCPU or (-code == signal.SIGKILL and spent >= PROCESSOR_SECONDS):
            raise Failed(f"gave no answer within {PROCESSOR_SECONDS} s of processor time")
        if -code == signal.SIGKILL:
            raise Killed
        if code < 0:
            raise Failed(f"ended its process ({_name(-code)})")
        return code


def printed(preamble: str, code: str, text: str, deadline: float) -> str:
    """Return what a whole program prints when it reads a text.

    Raises:
        Failed: it raises, doesn't end, or prints too much.
        Killed, RuntimeError, TimeoutError: as for `Program`.
    """
    if deadline - time.monotonic() < _START_SECONDS:
        raise Failed(f"gave no answer within {VERDICT_SECONDS:g} s")
    with tempfile.TemporaryFile() as reads, tempfile.TemporaryFile() as prints:
        reads.write(text.encode("utf-8", "surrogatepass"))
        reads.seek(0)
        failure = None
        try:
            with Program(preamble, code, deadline, (reads.fileno(), prints.fileno())) as program:
                program.wait()
        except Failed as failed:
            failure = failed
        if os.fstat(prints.fileno()).st_size >= OUTPUT_MB << 20:
            raise Failed(f"printed more than {OUTPUT_MB} MB")
        if failure is not None:
            raise failure
        prints.seek(0)
        return prints.read().decode("utf-8", "replace")


def _started(connection: int, reads: int, prints: int) -> "subprocess.Popen[bytes]":
    """Start an interpreter in its confinement.

    It has no site and no variables: the response gets the standard library, and the order of a set
    is the same in each verdict.
    """
    return subprocess.Popen(
        [sys.executable, "-P", "-s", "-S", "-c", _inside(), str(connection)],
        stdin=reads,
        stdout=prints,
        stderr=subprocess.DEVNULL,
        env={"PYTHONHASHSEED": "0", "PYTHONUTF8": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        cwd="/",
        pass_fds=[connection],
        start_new_session=True,
        preexec_fn=_confine,
    )


def _name(number: int) -> str:
    """Return what a signal is called."""
    with suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _confine() -> None:
    confine(MEMORY_MB, PROCESSOR_SECONDS, OUTPUT_MB)


def _processor_seconds() -> float:
    """Return what processes used that this one has waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@cache
def _inside() -> str:
    """Return the program of the process."""
    return f"{Path(__file__).with_name('inside.py').read_text()}\nserve(int(sys.argv[1]))\n"
