"""The seconds of runs that had the machine to themselves: files of `remake --quiet-out`.

A file lies at GROUP/WORLD/VARIANT/SEED.json, and has of each stage its mean seconds over each
`WINDOW` steps, as rows have them. All runs of one variant together are its clock.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.errors import StoreError
from pipeline.study.study_row import WINDOW
from pipeline.text import one_line

Clocks = Mapping[str, Mapping[str, Sequence[float]]]
"""Of GROUP/WORLD/VARIANT, by stage: the seconds of each step."""


class QuietRun(BaseModel):
    """One run.

    Attributes:
        name: GROUP/WORLD/VARIANT/SEED.
        seconds: of each stage, its mean over each `WINDOW` steps; None where no step had it.
        load: load average of the machine at the end.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    commit: str
    processor: str
    seconds: dict[str, list[float | None]]
    load: float


def read_clocks(folder: Path) -> Clocks:
    """Return the clock of each variant that has quiet runs below a folder: means over them.

    Raises:
        StoreError: a file can't be read, or runs of one variant differ in length.
    """
    found: dict[str, list[QuietRun]] = {}
    for path in sorted(folder.glob("*/*/*/*.json")):
        try:
            run = QuietRun.model_validate_json(path.read_bytes())
        except (ValidationError, OSError) as error:
            raise StoreError(f"{path}: no quiet run: {one_line(error)}") from None
        found.setdefault(run.name.rpartition("/")[0], []).append(run)
    return {name: _clock(runs) for name, runs in found.items()}


def _clock(runs: Sequence[QuietRun]) -> dict[str, list[float]]:
    lengths = {len(values) for run in runs for values in run.seconds.values()}
    if len(lengths) > 1:
        raise StoreError(
            f"{runs[0].name}: expected quiet runs of equal length, found {sorted(lengths)} windows"
        )
    clock = {}
    for stage in runs[0].seconds:
        windows = np.array([[s or 0.0 for s in run.seconds.get(stage, ())] for run in runs])
        if windows.any():
            clock[stage] = np.repeat(windows.mean(axis=0), WINDOW).tolist()
    return clock
