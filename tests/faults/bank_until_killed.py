"""A run with a bank, killed by SIGKILL at a place of step 3 that is chosen.

    python -m tests.faults.bank_until_killed FOLDER NAME PLACE

bank      the bank's file is there, its manifest is not
route     when route begins; the writer may have the bank still
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from flows.session import stage_runner
from flows.session.session import Session
from flows.training import loop
from pipeline.tables.manifest import Manifest
from tests.builders.bank_runs import bank_config

STEP = 3


def train(folder: Path, name: str) -> Path:
    """Begin a run on the task and policy of a folder, or go on with it, to its end."""
    run = folder / name
    there = (run / "run.json").exists()
    session = Session.resume(run) if there else Session.create(run, bank_config(folder))
    with session:
        loop.train(session, session.run_stage, [], lambda: False)
    return run


def _die_in_bank() -> None:
    write = Manifest.write

    def dying(manifest: Manifest, path: Path) -> None:
        if (manifest.origin.table, manifest.origin.step) == ("bank", STEP):
            os.kill(os.getpid(), signal.SIGKILL)
        write(manifest, path)

    Manifest.write = dying  # type: ignore[method-assign]


def _die_in_route() -> None:
    run_stage = stage_runner.run_stage

    def dying(run: Any, stage: Any, handles: Any, writer: Any) -> Any:
        if (stage.name, handles.step) == ("route", STEP):
            os.kill(os.getpid(), signal.SIGKILL)
        return run_stage(run, stage, handles, writer)

    stage_runner.run_stage = dying


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"bank": _die_in_bank, "route": _die_in_route}[sys.argv[3]]()
    train(Path(sys.argv[1]), sys.argv[2])
