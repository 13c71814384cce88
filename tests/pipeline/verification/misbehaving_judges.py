"""The judge that `test_verification.py` runs in child processes: the response says what it does."""

import contextlib
import ctypes
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable

from pipeline.task import Verdict


def judge(name: str, response: str, reference: str) -> Verdict:
    """Do what a response says, `command:argument`; return a right verdict if it returns none."""
    command, _, argument = response.partition(":")
    return COMMANDS[command](argument) or Verdict(1.0, True, f"{name} {reference}")


def prepare_badly(name: str) -> None:
    raise ImportError(f"no library\nfor {name}")


def prepare_slowly(name: str) -> None:
    time.sleep(1.5)


def fail(argument: str) -> None:
    raise ValueError("two\nlines")


def spin(argument: str) -> None:
    while True:
        pass


def sleep_in_c(argument: str) -> None:
    # PyDLL, unlike CDLL, keeps the interpreter's lock: no other Python code runs meanwhile.
    ctypes.PyDLL(None).sleep(1000)


def ignore_sigterm(argument: str) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    spin(argument)


def take_memory(argument: str) -> Verdict:
    return Verdict(1.0, True, str(len(bytearray(1 << 40))))


def take_memory_slowly(argument: str) -> None:
    hoard = []
    while True:
        hoard.append(bytes(1 << 20))  # not touched, so that it takes no time


def segfault(argument: str) -> None:
    ctypes.string_at(0)


def close_everything(argument: str) -> None:
    os.closerange(3, 1024)
    time.sleep(1000)


def write_everywhere(argument: str) -> None:
    for number in range(3, 1024):
        with contextlib.suppress(OSError):
            os.write(number, argument.encode() + b"\n")


def fork(argument: str) -> None:
    if os.fork() == 0:
        time.sleep(1000)
    os._exit(7)


def start_program(argument: str) -> Verdict:
    return Verdict(1.0, True, str(subprocess.Popen(["sleep", "1000"], close_fds=False).pid))


def use_streams(argument: str) -> Verdict:
    print("noise")
    print("noise", file=sys.stderr)
    os.write(1, b"noise")
    return Verdict(1.0, True, repr(sys.stdin.read()))


def tell_facts(argument: str) -> Verdict:
    facts = {
        "pid": os.getpid(),
        "group": os.getpgid(0),
        "core": resource.getrlimit(resource.RLIMIT_CORE),
        "memory": resource.getrlimit(resource.RLIMIT_AS)[0],
        "modules": sorted(sys.modules),
    }
    return Verdict(1.0, True, repr(facts))


COMMANDS: dict[str, Callable[[str], Verdict | None]] = {
    "fine": lambda argument: None,
    "echo": lambda argument: Verdict(0.5, False, argument, argument, argument),
    "length": lambda argument: Verdict(1.0, True, str(len(argument))),
    "naps": lambda argument: time.sleep(float(argument)),
    "fails": fail,
    "spins": spin,
    "sleeps in C": sleep_in_c,
    "ignores SIGTERM": ignore_sigterm,
    "takes memory": take_memory,
    "takes memory slowly": take_memory_slowly,
    "segfaults": segfault,
    "closes everything": close_everything,
    "writes everywhere": write_everywhere,
    "forks": fork,
    "exits": lambda argument: sys.exit(int(argument)),
    "exits at once": lambda argument: os._exit(int(argument)),
    "returns": lambda argument: eval(argument),
    "starts program": start_program,
    "uses streams": use_streams,
    "tells facts": tell_facts,
    "gets SIGINT": lambda argument: os.kill(os.getpid(), signal.SIGINT),
}
