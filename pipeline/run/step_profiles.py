"""Profiles of training steps: profile.json beside metrics.json, and a summary of many.

A profile depends on the machine and the moment: two equal runs have different ones. So it is no
table, no fact and no part of metrics.json, and a step is complete without one.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.errors import StoreError
from pipeline.files.sealed_json import read_sealed, write_sealed
from pipeline.machine.phases import REST, PhaseTotal
from pipeline.run.run import Run
from pipeline.run.step_layout import ALL_STAGES, TABLES_OF_STAGE, stages_of

BETWEEN = "between"
"""Time between stages: displays, Prefect's records, metrics and alarms of the step."""

STAGES = (*ALL_STAGES, BETWEEN)
_MEGA = 1e6


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Machine(_Record):
    """The hardware of a session, and its measured rate of matrix products.

    Attributes:
        dtype: of the matrix products, float32 or bfloat16.
        matmul_flops: measured floating-point operations per second.
    """

    device: str
    dtype: str
    threads: int
    matmul_flops: float


class StageCost(_Record):
    """What the manifests of a stage's tables say.

    Attributes:
        tokens: tokens handled.
        peak_memory_mb: largest resident memory of the process (MiB), and of its GPU.
        bytes: size of its tables.
    """

    tokens: int
    peak_memory_mb: float
    bytes: int


class Profile(_Record):
    """Where the time of one step went.

    Attributes:
        rows: seconds, tokens and operations by stage and phase, see `pipeline.machine.phases`.
        stages: costs by stage.
        digest: SHA-256 of the rest.
    """

    step: int
    machine: Machine
    rows: list[PhaseTotal]
    stages: dict[str, StageCost]
    digest: str = ""

    @property
    def seconds(self) -> float:
        """Return the seconds of the step: all stages, and the time between them."""
        return sum(row.seconds for row in self.rows if not row.beside)

    def stage_seconds(self) -> dict[str, float]:
        """Return the seconds of each stage, and of the time between them."""
        known = {stage: 0.0 for stage in STAGES if any(r.stage == stage for r in self.rows)}
        for row in self.rows:
            if not row.beside:
                known[row.stage] = known.get(row.stage, 0.0) + row.seconds
        return known


@dataclass(frozen=True)
class Line:
    """One line of the table over many steps: a stage, or a phase of the stage above it.

    Attributes:
        phase: empty for the stage as a whole; both empty for the step as a whole.
        seconds: median over steps.
        share: of the seconds of all steps; None beside the stages.
        tokens_per_second, flops_per_second: None where none were counted.
        of_rate: share of the measured rate of matrix products.
        peak_mb, written_mb: largest, and median over steps; megabytes, of stages.
    """

    stage: str
    phase: str
    beside: bool
    seconds: float
    share: float | None
    tokens_per_second: float | None
    flops_per_second: float | None
    of_rate: float | None
    peak_mb: float | None
    written_mb: float | None


def profile_path(run: Run, step: int) -> Path:
    """Return where the profile of a step lives: in the run that made the step."""
    return run.metrics_path(step).with_name("profile.json")


def write_profile(run: Run, step: int, machine: Machine, rows: Sequence[PhaseTotal]) -> Profile:
    """Write the profile of a complete step."""
    stages = {}
    for stage in stages_of(run.config):
        made = [run.manifest(table, step) for table in TABLES_OF_STAGE[stage]]
        stages[stage] = StageCost(
            tokens=made[0].cost.tokens,
            peak_memory_mb=max(manifest.cost.peak_memory_mb for manifest in made),
            bytes=sum(manifest.bytes for manifest in made),
        )
    profile = Profile(step=step, machine=machine, rows=list(rows), stages=stages)
    record = write_sealed(profile_path(run, step), profile.model_dump(mode="json"))
    return profile.model_copy(update={"digest": record["digest"]})


def read_profile(run: Run, step: int) -> Profile | None:
    """Return the profile of a step; None if it has none.

    Raises:
        StoreError: it was changed since it was written, or is no profile.
    """
    path = profile_path(run, step)
    if not path.exists():
        return None
    advice = "delete it, no other file depends on it"
    try:
        return Profile.model_validate(read_sealed(path))
    except StoreError as error:
        raise StoreError(f"{error}; {advice}") from None
    except ValidationError:
        raise StoreError(f"{path}: not a profile; {advice}") from None


def lines_of(profiles: Sequence[Profile]) -> list[Line]:
    """Return the table over these steps: each stage with its phases, and the step as a whole."""
    if not profiles:
        return []
    rows = [{(r.stage, r.phase, r.beside): r for r in p.rows} for p in profiles]
    keys = sorted({k: None for of_step in rows for k in of_step}, key=_order)
    lines = []
    for stage in dict.fromkeys(key[0] for key in keys):
        lines.append(_whole(profiles, stage))
        own = [key for key in keys if key[0] == stage]
        if [key[1] for key in own] != [REST]:
            lines += [_part(profiles, rows, key) for key in own]
    return [*lines, _whole(profiles, "")]


def _order(key: tuple[str, str, bool]) -> tuple[int, bool, bool]:
    """Return the sort key of a row: stages in order, then background work, the rest last."""
    stage, phase, aside = key
    place = STAGES.index(stage) if stage in STAGES else len(STAGES)
    return place, aside, phase == REST


def _whole(profiles: Sequence[Profile], stage: str) -> Line:
    """Return the line of a stage, or of whole steps."""
    seconds = [p.stage_seconds().get(stage, 0.0) if stage else p.seconds for p in profiles]
    rows = [[r for r in p.rows if not r.beside and stage in ("", r.stage)] for p in profiles]
    costs = [[c for name, c in p.stages.items() if stage in ("", name)] for p in profiles]
    peaks = [cost.peak_memory_mb for of_step in costs for cost in of_step]
    written = [sum(cost.bytes for cost in of_step) for of_step in costs if of_step]
    tokens = sum(cost.tokens for of_step in costs for cost in of_step) if stage else 0
    return _line(
        (stage, "", False),
        profiles,
        seconds,
        tokens,
        [sum(row.flops for row in of_step) for of_step in rows],
        max(peaks, default=None),
        statistics.median(written) / _MEGA if written else None,
    )


def _part(
    profiles: Sequence[Profile],
    rows: Sequence[Mapping[tuple[str, str, bool], PhaseTotal]],
    key: tuple[str, str, bool],
) -> Line:
    """Return the line of a phase; a step without it counts as 0 seconds."""
    found = [of_step.get(key, PhaseTotal(*key)) for of_step in rows]
    seconds, flops = [row.seconds for row in found], [row.flops for row in found]
    return _line(key, profiles, seconds, sum(row.tokens for row in found), flops, None, None)


def _line(
    key: tuple[str, str, bool],
    profiles: Sequence[Profile],
    seconds: Sequence[float],
    tokens: int,
    flops: Sequence[float],
    peak_mb: float | None,
    written_mb: float | None,
) -> Line:
    spent, all_seconds = sum(seconds), sum(p.seconds for p in profiles)
    possible = sum(s * p.machine.matmul_flops for s, p in zip(seconds, profiles, strict=True))
    return Line(
        *key,
        seconds=statistics.median(seconds),
        share=None if key[2] or not all_seconds else spent / all_seconds,
        tokens_per_second=tokens / spent if tokens and spent else None,
        flops_per_second=sum(flops) / spent if sum(flops) and spent else None,
        of_rate=sum(flops) / possible if sum(flops) and possible else None,
        peak_mb=peak_mb,
        written_mb=written_mb,
    )
