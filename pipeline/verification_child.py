"""The child process of `VerifierPool`: reads responses from a socket, writes verdicts to it.

It is kept small because it runs beside untrusted texts and starts often: it imports the verifier
and nothing of the pipeline but the vocabulary. Messages are lines of JSON, in both directions.
"""

import base64
import ctypes
import json
import os
import pickle
import resource
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from pipeline.task import Verdict

MAX_TEXT = 10_000
_PR_SET_PDEATHSIG = 1


def serve(settings: dict[str, Any]) -> None:
    """Set the limits, import the verifier, judge until the parent closes the socket."""
    _restrict(settings["memory_mb"], settings["parent"])
    connection = socket.socket(fileno=settings["socket"])
    # Programs the verifier starts must not inherit it.
    connection.set_inheritable(False)
    name: str = settings["name"]
    try:
        judge, prepare = pickle.loads(base64.b64decode(settings["judge"]))
        if prepare is not None:
            prepare(name)
    except MemoryError:
        os._exit(1)  # the parent sees a child that ended too early and names the limit
    except BaseException as error:
        # Importing runs code of the user's, which may raise anything, SystemExit included.
        connection.sendall(_line({"failed": _one_line(error)}))
        return
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
        connection.sendall(answer)


def _restrict(memory_mb: int, parent: int) -> None:
    """Limit what this process may do, and tie its life to the parent's."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)  # the parent was gone before the line above took effect
    wanted = memory_mb << 20
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    size = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


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
        # Whatever a verifier raises is its own fault and must cost one response only.
        return _error(f"verifier raised {_one_line(error)}")


def _checked(verdict: object) -> dict[str, object]:
    """Return a verdict's fields with bounded texts, or an error verdict's if it is none."""
    if not isinstance(verdict, Verdict):
        return _error(f"verifier returned a {type(verdict).__name__}, expected a Verdict")
    # A verifier is any code: types are what it really returned. The comparison is false for NaN.
    reward: object = verdict.reward
    format_ok: object = verdict.format_ok
    if isinstance(reward, bool) or not isinstance(reward, float | int) or not 0 <= reward <= 1:
        return _error(f"verifier returned the reward {reward!r}, expected a number in [0, 1]")
    if not isinstance(format_ok, bool):
        return _error(f"verifier returned format_ok {format_ok!r}, expected a bool")
    fields: dict[str, object] = {"reward": float(reward), "format_ok": format_ok}
    for field in ("prediction", "feedback", "error"):
        text = getattr(verdict, field)
        if not (text is None or isinstance(text, str)):
            return _error(f"verifier returned {field} of type {type(text).__name__}, expected text")
        fields[field] = None if text is None else _bounded(text)
    return fields


def _error(text: str) -> dict[str, object]:
    """Return the fields of an error verdict."""
    return asdict(Verdict(0.0, format_ok=False, error=_bounded(" ".join(text.split()))))


def _bounded(text: str) -> str:
    """Return a text that Arrow can hold (no lone surrogates), visibly cut if it is long."""
    text = text.encode("utf-8", "replace").decode()
    if len(text) <= MAX_TEXT:
        return text
    note = f" … [cut, {len(text)} characters in all]"
    return text[: MAX_TEXT - len(note)] + note


def _one_line(error: BaseException) -> str:
    """Return an error's type and message as one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def _line(message: dict[str, object]) -> bytes:
    """Return a message as it is sent."""
    return json.dumps(message).encode() + b"\n"
