"""The process between the pool and a verifier: whatever a verifier starts ends with it.

    pool ──▶ guard ──▶ init ──▶ verifier, and what it starts
             waits     PID 1    (pipeline/verification/child.py)

The guard runs no code of a verifier. It ends when the verifier does, in the same way; on SIGTERM,
which the kernel also sends it when the pool's thread is gone; and when there are too many
processes. By then all others are gone, and so is their temporary folder. Where the kernel gives no
PID namespace there is no init, and the guard adopts and ends one by one what is left.
"""

import os
import resource
import shutil
import signal
import socket
import sys
from collections.abc import Iterator
from typing import Any, NoReturn

from pipeline.verification import sandbox
from pipeline.verification.child import serve

TOO_MANY = 251
"""The guard's exit code for a verifier that started too many processes."""
LOOK_SECONDS = 0.1
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_OURS = {signal.SIGTERM, signal.SIGCHLD}


def guard(settings: dict[str, Any]) -> NoReturn:
    """Start the verifier, wait for its end or for the signal to end it, and clear up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform != "linux":
        serve(settings)
        os._exit(0)
    signal.pthread_sigmask(signal.SIG_BLOCK, _OURS)
    sandbox.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    own = sandbox.own_processes()
    sandbox.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != settings["parent"]:
        os._exit(1)  # the pool was gone before the line above took effect
    ours, theirs = socket.socketpair()
    first = os.fork()
    if first == 0:
        ours.close()
        _tie(theirs)
        if own:
            _init(settings, theirs)
        _verify(settings, theirs)
    theirs.close()
    os.close(settings["socket"])
    status = _watch(first)
    _end_all()
    said = ours.recv(8)
    shutil.rmtree(settings["folder"], ignore_errors=True)
    _end_like(int.from_bytes(said, "little") if said else status)


def _tie(guard: socket.socket) -> None:
    """Tie this process's life to the guard's, whose end of a socket closes when it ends."""
    sandbox.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    guard.setblocking(False)
    try:
        if not guard.recv(1, socket.MSG_PEEK):
            os._exit(1)
    except BlockingIOError:
        return


def _init(settings: dict[str, Any], guard: socket.socket) -> NoReturn:
    """Be the first process of a PID namespace, which ends with it: adopt orphans, collect exits."""
    sandbox.own_proc()
    verifier = os.fork()
    if verifier == 0:
        _verify(settings, guard)
    os.close(settings["socket"])
    while True:
        ended, status = os.wait()
        if ended == verifier:
            guard.send(status.to_bytes(8, "little"))
            os._exit(0)


def _verify(settings: dict[str, Any], guard: socket.socket) -> NoReturn:
    """Become the verifier's process."""
    guard.close()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _OURS)
    os.setsid()
    serve(settings)
    os._exit(0)


def _watch(first: int) -> int:
    """Wait for the first child's end, the pool's signal or too many processes."""
    while True:
        received = signal.sigtimedwait(_OURS, LOOK_SECONDS)
        if received is not None and received.si_signo == signal.SIGTERM:
            os.kill(first, signal.SIGKILL)
            return int(signal.SIGTERM)
        for ended, status in _collected(os.WNOHANG):
            if ended == first:
                return status
        if _count(first, sandbox.MAX_PROCESSES) > sandbox.MAX_PROCESSES:
            os.kill(first, signal.SIGKILL)
            return TOO_MANY << 8


def _collected(options: int = 0) -> Iterator[tuple[int, int]]:
    """Yield children that ended and how, until there are none."""
    while True:
        try:
            ended, status = os.waitpid(-1, options)
        except ChildProcessError:
            return
        if ended == 0:
            return
        yield ended, status


def _children(process: int) -> list[int]:
    """Return the children of a process, those of all its threads."""
    found: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{process}/task"):
            with open(f"/proc/{process}/task/{thread}/children") as file:
                found += map(int, file.read().split())
    except OSError:
        return found  # it has ended, or this kernel has no such file
    return found


def _count(first: int, enough: int) -> int:
    """Count a process and its descendants; stop beyond `enough`."""
    waiting, number = [first], 0
    while waiting and number <= enough:
        number += 1
        waiting += _children(waiting.pop())
    return number


def _end_all() -> None:
    """End all descendants; what loses its parent becomes a child of this process."""
    while True:
        for process in _children(os.getpid()):
            os.kill(process, signal.SIGKILL)
        if not next(_collected(), None):
            return


def _end_like(status: int) -> NoReturn:
    """End as a child ended that has this status."""
    if os.WIFEXITED(status):
        os._exit(os.WEXITSTATUS(status))
    number = os.WTERMSIG(status)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if number not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    os.kill(os.getpid(), number)
    os._exit(1)
