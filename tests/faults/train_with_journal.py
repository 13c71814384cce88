"""`srpo train`, with a journal: when each stage began to compute and when it was done.

    python -m tests.faults.train_with_journal JOURNAL train …

The lines say what a killed command had computed, whether it had reached the disk or not. Nothing is
imported earlier than `srpo` does it: the server shall start as early as ever.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import flows.session.open_run
from flows.cli import main

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.config.sections import Config
    from pipeline.stage.contract import Handles, Output, Stage


class Entry(NamedTuple):
    """A stage that ran: from when to when, or without an end if it was cut short."""

    name: str
    step: int
    began: float
    ended: float | None


def read(path: Path) -> list[Entry]:
    """Return the stages that ran, in order."""
    found: list[Entry] = []
    for line in path.read_text().splitlines() if path.exists() else []:
        word, name, step, moment = line.split()
        if word == "began":
            found.append(Entry(name, int(step), float(moment), None))
        else:
            found[-1] = found[-1]._replace(ended=float(moment))
    return found


def _noted(stage: Stage, journal: int) -> Stage:
    def note(word: str, step: int) -> None:
        os.write(journal, f"{word} {stage.name} {step} {time.time():.3f}\n".encode())

    def run(tables: Mapping[str, pa.Table], config: Config, handles: Handles) -> Output:
        note("began", handles.step)
        output = stage.run(tables, config, handles)
        note("ended", handles.step)
        return output

    return replace(stage, run=run)


def _note_in(path: str) -> None:
    """Have the stages of the session that the command will open write to a journal."""
    opened = flows.session.open_run.open_session
    journal = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def open_session(start: Any) -> Any:
        from flows.session.stage_runner import STAGES

        STAGES.update({name: _noted(stage, journal) for name, stage in STAGES.items()})
        return opened(start)

    flows.session.open_run.open_session = open_session


if __name__ == "__main__":
    _note_in(sys.argv.pop(1))
    main()
