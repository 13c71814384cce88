"""Flow runs whose process was killed: Prefect takes them for running until somebody says otherwise.

Only a server of ours is asked. Its flow runs are trainings in the folders beside it, each of which
has a lock (RUN/.lock) that the kernel drops with the process that trains; and work that commands
of this machine fan out, of which each flow run names its process.
"""

import os
from pathlib import Path
from typing import Any

import httpx

from flows.prefect_api.calls import ApiError, calling, warn
from pipeline.run.lock import is_held_elsewhere

_RUNNING = {
    "flows": {"name": {"any_": ["train", "fan-out"]}},
    "flow_runs": {"state": {"type": {"any_": ["PENDING", "RUNNING"]}}},
}


def end_orphans(url: str, limit_seconds: float) -> int:
    """Record flow runs that nobody works on any more as crashed; return how many.

    Call it before this process begins a flow run.

    Args:
        url: of a server of ours.
    """
    try:
        with calling(), httpx.Client(base_url=url, trust_env=False, timeout=limit_seconds) as api:
            found = api.post("/flow_runs/filter", json=_RUNNING).raise_for_status().json()
            orphans = [record for record in found if _is_orphan(record["parameters"])]
            for record in orphans:
                message = "its process was ended"
                state = {"type": "CRASHED", "name": "Crashed", "message": message}
                wanted = {"state": state, "force": True}
                api.post(f"/flow_runs/{record['id']}/set_state", json=wanted).raise_for_status()
    except ApiError as error:
        warn(error)
        return 0
    return len(orphans)


def this_process() -> str:
    """Return a name that no other process of this machine ever has: its number and start time."""
    return f"{os.getpid()} {_start(os.getpid())}"


def _is_orphan(parameters: dict[str, Any]) -> bool:
    """Tell whether nobody works on a flow run with these parameters."""
    if "run" in parameters:
        return not is_held_elsewhere(Path(parameters["run"]))
    if "process" not in parameters:  # of an earlier version, which named none
        return True
    number, _, start = str(parameters["process"]).partition(" ")
    return start != f"{_start(int(number))}"


def _start(process: int) -> str | None:
    """Return when a process began, in the kernel's ticks; None: it has ended."""
    try:
        text = Path(f"/proc/{process}/stat").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, *rest = text.rpartition(")")[2].split()  # its name, in brackets, may hold anything
    return None if state in "ZX" else rest[18]
