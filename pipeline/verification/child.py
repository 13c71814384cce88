"""The child process of `VerifierPool`: reads responses from a socket, writes verdicts to it.

It stays small because it runs beside untrusted texts and starts often: it imports the verifier and
nothing of the pipeline but `task` and `sandbox`. Messages are lines of JSON, in both directions.
The guard (`guard.py`) starts it and clears up after it.
"""

import base64
import json
import os
import pickle
import re
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from pipeline.task import Verdict
from pipeline.verification import sandbox

MAX_TEXT = 10_000
MAX_SHOWN = 100
# What the dynamic linker says when a compiled library does not fit into the address space.
_NO_ROOM = "failed to map segment"
# A path in a verifier's temporary folder. It is tried where a word begins only: else a long text
# would be searched again from each of its characters.
_WORD = r"[^\s'\"=(<:,]"
_TEMPORARY = re.compile(rf"(?<!{_WORD}){_WORD}*/srpo-verifier-\d+-[0-9a-f]{{16}}(?:/{_WORD}*)?")
# The guard's init is 1 and forks this process next. Outside of a PID namespace of our own nothing
# gives us this number: on a machine 2 is a kernel thread, in a container it is older than we are.
# Signals to "all processes" depend on it.
_IN_NAMESPACE = 2


def serve(settings: dict[str, Any]) -> None:
    """Set the limits, import the verifier, judge until the parent closes the socket."""
    connection = socket.socket(fileno=settings["socket"])
    # Programs the verifier starts must not inherit it.
    connection.set_inheritable(False)
    name: str = settings["name"]
    try:
        _restrict(settings["memory_mb"], settings["folder"])
        judge, prepare = pickle.loads(base64.b64decode(settings["judge"]))
        if prepare is not None:
            prepare(name)
    except MemoryError:
        os._exit(1)  # the parent sees a child that ended too early and names the limit
    except BaseException as error:
        # Importing runs the user's code, which may raise anything, SystemExit included.
        text = _one_line(error)
        if _NO_ROOM in text:
            os._exit(1)
        connection.sendall(_line({"failed": text}))
        return
    # Processes that a verifier starts when it is imported serve all its verdicts: they are spared.
    me = os.getpid()
    sweeps = me == _IN_NAMESPACE and not _others(0)
    connection.sendall(_line({"ready": True}))
    # Made beforehand: there may be no memory left when it is needed.
    out_of_memory = _line(
        {"verdict": _error(f"memory limit of {settings['memory_mb']} MB exceeded"), "last": True}
    )
    for line in connection.makefile("rb"):
        try:
            response, reference = json.loads(line)
            answer = _line({"verdict": _judged(judge, name, response, reference), "last": False})
        except MemoryError:
            answer = out_of_memory
        if os.getpid() != me:
            os._exit(0)  # a verifier forked, and both processes returned: one verdict is enough
        if sweeps and _others(signal.SIGKILL):
            _collect()
        connection.sendall(answer)


def _restrict(memory_mb: int, folder: str) -> None:
    """Limit what this process and all that it starts may do."""
    os.mkdir(folder, 0o700)
    os.environ["TMPDIR"] = folder
    sandbox.bound(memory_mb)
    if sys.platform == "linux":
        sandbox.no_network()
        sandbox.read_only(folder)


def _others(number: int) -> bool:
    """Send a signal (0: none) to all of our PID namespace but 1 and us; say if there are any.

    Raises:
        RuntimeError: this process is in no PID namespace of its own.
    """
    if os.getpid() != _IN_NAMESPACE:
        raise RuntimeError(
            "expected a PID namespace of our own: nothing is signalled outside of one"
        )
    try:
        os.kill(-1, number)
    except OSError:
        return False
    return True


def _collect() -> None:
    """Wait until all children of this process, which are being killed, are gone."""
    with suppress(ChildProcessError):
        while True:
            os.wait()


def _judged(
    judge: Callable[[str, str, str], object], name: str, response: str, reference: str
) -> dict[str, object]:
    """Return a checked verdict, as fields."""
    try:
        return _checked(judge(name, response, reference))
    except MemoryError:
        raise
    except SystemExit:
        return _error("verifier called sys.exit")
    except BaseException as error:
        # Whatever a verifier raises must cost no more than this one verdict.
        return _error(f"verifier raised {_one_line(error)}")


def _checked(verdict: object) -> dict[str, object]:
    """Return a verdict's fields with bounded texts, or an error verdict's if it is none."""
    if not isinstance(verdict, Verdict):
        return _error(f"verifier returned a {type(verdict).__name__}, expected a Verdict")
    # A verifier is any code, so annotations promise nothing. The comparison is false for NaN.
    reward, format_ok = _number(verdict.reward), _flag(verdict.format_ok)
    if reward is None or not 0 <= reward <= 1:
        shown = _shown(verdict.reward)
        return _error(f"verifier returned the reward {shown}, expected a number in [0, 1]")
    if format_ok is None:
        return _error(f"verifier returned format_ok {_shown(verdict.format_ok)}, expected a bool")
    fields: dict[str, object] = {"reward": reward, "format_ok": format_ok}
    for field in ("prediction", "feedback", "error"):
        text = getattr(verdict, field)
        if not (text is None or isinstance(text, str)):
            return _error(f"verifier returned {field} of type {type(text).__name__}, expected text")
        fields[field] = None if text is None else _bounded(text)
    if not (verdict.error or "").strip():
        fields["error"] = None  # a blank error says that there was none
    return fields


def _number(value: object) -> float | None:
    """Return anything that calls itself a number: NumPy's, torch's, a bool; None if it is none."""
    if not hasattr(type(value), "__float__"):
        return None  # texts among them, though float() would read some
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError, RuntimeError):  # an array of several, a huge int
        return None


def _flag(value: object) -> bool | None:
    """Return a bool, also one of NumPy's or torch's; None if it is none."""
    if isinstance(value, bool):
        return value
    kind = str(getattr(value, "dtype", ""))
    return _number(value) == 1 if kind in ("bool", "torch.bool") else None


def _shown(value: object) -> str:
    """Return what a verifier gave instead of what was expected, cut to a few words."""
    text = " ".join(repr(value).split())
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]} …"


def _error(text: str) -> dict[str, object]:
    """Return the fields of an error verdict."""
    return asdict(Verdict(0.0, format_ok=False, error=_bounded(_repeatable(text))))


def _repeatable(text: str) -> str:
    """Return an error text as one line, without what differs between equal runs.

    That is addresses of objects, and the names of files in the temporary folder.
    """
    text = re.sub(r"\bat 0x[0-9a-fA-F]+", "at 0x…", " ".join(text.split()))
    return _TEMPORARY.sub("$TMPDIR", text)


def _bounded(text: str) -> str:
    """Return a text that Arrow can hold (no lone surrogates), visibly cut if it is long."""
    text = text.encode("utf-8", "replace").decode()
    if len(text) <= MAX_TEXT:
        return text
    note = f" … [cut, {len(text)} characters in all]"
    return text[: MAX_TEXT - len(note)] + note


def _one_line(error: BaseException) -> str:
    """Return an error's type and message as one line."""
    try:
        text = str(error)
    except MemoryError:
        raise
    except BaseException as another:
        # `__str__` is the verifier's code, too.
        text = f"(its text can't be had: {type(another).__name__})"
    return " ".join(f"{type(error).__name__}: {text}".split())


def _line(message: dict[str, object]) -> bytes:
    """Return a message as it is sent."""
    return json.dumps(message).encode() + b"\n"
