"""Verifiers as hostile as we can think of: the response or the reference says what to do.

`test_verifiers.py` runs them in a pool of their own, and as a task of a run.
"""

import ctypes
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.task import Message, Question, Verdict

VERIFIER = "hostile/1"
LONG_SLEEP = "98761"
GOOD = Verdict(1.0, True, "good")


class _Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class _Odd(Verdict):
    def __getattribute__(self, name: str) -> Any:
        if name == "reward":
            raise KeyError("no reward")
        return super().__getattribute__(name)


def load(path: str | None, split: str) -> list[Question]:
    """Return questions whose reference says what happens; a path makes them about that folder."""
    rows = ["good", "bomb", "good again", "daemon", "good", "kill parent", "good", f"vandal:{path}"]
    return [
        Question(f"{split} {i}", (Message("user", f"1+{i}="),), what) for i, what in enumerate(rows)
    ]


def verify(response: str, reference: str) -> Verdict:
    """Do what the reference says."""
    return judge("", reference, "")


def judge(name: str, response: str, reference: str) -> Verdict:
    """Do what the response says, `command:argument`."""
    command, _, argument = response.partition(":")
    return COMMANDS.get(command, lambda _: GOOD)(argument) or GOOD


def start_at_import(name: str) -> None:
    """Start a program that verdicts need."""
    global _helper
    _helper = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def ask_helper(argument: str) -> Verdict:
    assert _helper.stdin is not None and _helper.stdout is not None
    _helper.stdin.write(argument + "\n")
    _helper.stdin.flush()
    return Verdict(1.0, True, _helper.stdout.readline().strip())


def speak_badly(argument: str) -> None:
    raise _Unspeakable


def name_address(argument: str) -> None:
    raise ValueError(f"{object()} in {tempfile.mkdtemp()}")


def hang_with_signals_blocked(argument: str) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals))
    ctypes.PyDLL(None).sleep(1000)


def match_for_ever(argument: str) -> None:
    re.match(r"(a+)+$", "a" * 60 + "b")


def hang(argument: str) -> None:
    while True:
        time.sleep(1)


def fork_and_hang(argument: str) -> None:
    if os.fork() == 0:
        hang(argument)
    hang(argument)


def return_twice(argument: str) -> Verdict:
    return GOOD if os.fork() else Verdict(0.0, False, "the other")


def become_daemon(argument: str) -> None:
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.execvp("sleep", ["sleep", LONG_SLEEP])
        os._exit(0)


def expect_containment() -> None:
    """Raise outside of a PID namespace: what follows could harm the machine that runs the tests."""
    if os.getpid() != 2:
        raise RuntimeError("not in a PID namespace")


def bomb(argument: str) -> None:
    expect_containment()
    while True:
        os.fork()


def recurse(argument: str) -> None:
    recurse(argument)


def hoard(argument: str) -> None:
    kept = []
    while True:
        kept.append(bytearray(1 << 24))


def kill_parent(argument: str) -> None:
    expect_containment()
    os.kill(os.getppid(), signal.SIGKILL)


def connect(argument: str) -> None:
    socket.create_connection(("127.0.0.1", int(argument)), timeout=5.0)


def use_pair(argument: str) -> Verdict:
    ours, theirs = socket.socketpair()
    theirs.send(b"good")
    return Verdict(1.0, True, ours.recv(8).decode())


def run_program(argument: str) -> Verdict:
    told = subprocess.run(["sh", "-c", "echo good > $TMPDIR/f; cat $TMPDIR/f"], capture_output=True)
    return Verdict(1.0, True, told.stdout.decode().strip())


def vandalise(argument: str) -> None:
    done = []
    for path in sorted(Path(argument).rglob("*")):
        if path.is_file():
            for attempt in (path.unlink, lambda p=path: p.write_text("mine"), path.open):
                try:
                    attempt()
                    done.append(str(attempt))
                except PermissionError:
                    pass
    Path(argument, "mine").write_text("mine")


def write_much(argument: str) -> None:
    with tempfile.TemporaryFile() as file:
        while True:
            file.write(bytes(1 << 24))


def open_much(argument: str) -> None:
    kept = []
    while True:
        kept.append(open(os.devnull))  # noqa: SIM115


def leave_thread(argument: str) -> None:
    threading.Thread(target=hang, args=("",), daemon=True).start()


def print_much(argument: str) -> None:
    for _ in range(100):
        os.write(1, bytes(1 << 20))
        print("x" * (1 << 20), file=sys.stderr)


def write_garbage(argument: str) -> None:
    for number in range(3, 256):
        try:
            os.write(number, bytes(1 << 16))
        except OSError:
            continue


COMMANDS: dict[str, Callable[[str], Verdict | None]] = {
    "raises badly": speak_badly,
    "names address": name_address,
    "odd verdict": lambda argument: _Odd(1.0, True),
    "hangs": hang,
    "hangs in C": hang_with_signals_blocked,
    "regex": match_for_ever,
    "forks and hangs": fork_and_hang,
    "returns twice": return_twice,
    "daemon": become_daemon,
    "bomb": bomb,
    "prints": print_much,
    "returns much": lambda argument: Verdict(1.0, True, "x" * 100_000_000),
    "raises much": lambda argument: exec("raise ValueError('x' * 50_000_000)"),
    "recurses": recurse,
    "hoards": hoard,
    "exits": lambda argument: os._exit(0),
    "kill parent": kill_parent,
    "closes all": lambda argument: os.closerange(0, 256),
    "garbage": write_garbage,
    "connects": connect,
    "uses pair": use_pair,
    "runs program": run_program,
    "vandal": vandalise,
    "writes much": write_much,
    "opens much": open_much,
    "leaves thread": leave_thread,
    "infinite": lambda argument: Verdict(float("inf"), True),
    "minus infinite": lambda argument: Verdict(-float("inf"), True),
    "huge": lambda argument: Verdict(10**5000, True),
    "helper": ask_helper,
}
