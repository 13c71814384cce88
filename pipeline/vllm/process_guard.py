"""Run a command, and end it with all its children when standard input closes.

    python -m pipeline.vllm.process_guard COMMAND …

The parent holds the other end of standard input, which closes when the parent ends, however it
ends. The command gets a process group of its own; what is left of the group when the command ends
is ended too.
"""

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress

_POLL_SECONDS = 0.5
_GRACE_SECONDS = 5.0
_PR_SET_PDEATHSIG = 1


def main() -> int:
    """Run the command until it ends or standard input closes; return its exit code."""
    child = subprocess.Popen(
        sys.argv[1:],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=_die_with_parent if sys.platform == "linux" else None,
    )
    while child.poll() is None:
        readable, _, _ = select.select([sys.stdin], [], [], _POLL_SECONDS)
        if readable and not os.read(sys.stdin.fileno(), 1):
            break
    _end_group(child)
    return child.returncode if child.returncode is not None else 1


def _die_with_parent() -> None:
    """Have the child killed if this guard is."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _end_group(child: "subprocess.Popen[bytes]") -> None:
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGTERM)
    limit = time.monotonic() + _GRACE_SECONDS
    while time.monotonic() < limit and (child.poll() is None or _group_lives(child.pid)):
        time.sleep(0.1)
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
