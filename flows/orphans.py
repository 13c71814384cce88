"""Flow runs whose process was killed: Prefect takes them for running until somebody says otherwise.

Only a server of ours is asked: its flow runs are trainings in the folders beside it, and each of
these has a lock (RUN/.lock) that the kernel drops with the process that trains.
"""

import fcntl
from pathlib import Path
from typing import Any

import httpx

from flows.api import ApiError, calling, warn
from pipeline.lock import LOCK_FILE

_RUNNING = {
    "flows": {"name": {"any_": ["train"]}},
    "flow_runs": {"state": {"type": {"any_": ["PENDING", "RUNNING"]}}},
}


def end_orphans(url: str, run: Path, limit_seconds: float) -> int:
    """Have flow runs recorded as crashed that nobody works on any more; return how many.

    Args:
        url: of a server of ours.
        run: the run that is about to be trained, by this process and by nobody else.
    """
    try:
        with calling(), httpx.Client(base_url=url, trust_env=False, timeout=limit_seconds) as api:
            found = api.post("/flow_runs/filter", json=_RUNNING).raise_for_status().json()
            orphans = [record for record in found if _is_orphan(record, run)]
            for record in orphans:
                message = "its process was ended"
                state = {"type": "CRASHED", "name": "Crashed", "message": message}
                wanted = {"state": state, "force": True}
                api.post(f"/flow_runs/{record['id']}/set_state", json=wanted).raise_for_status()
    except ApiError as error:
        warn(error)
        return 0
    return len(orphans)


def _is_orphan(record: dict[str, Any], run: Path) -> bool:
    """Tell whether nobody trains the run of a flow run.

    The lock of our own run must not be tried: closing its file would drop it.
    """
    folder = Path(record["parameters"]["run"])
    if folder == run.resolve():
        return True
    try:
        with (folder / LOCK_FILE).open("r+") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
