"""Where the time of a run's profiled steps goes: the table and the chart of the run page."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.run.run import Run
from pipeline.run.step_profiles import (
    STAGES,
    Machine,
    Profile,
    lines_of,
    profile_path,
    read_profile,
)
from pipeline.text import count
from pipeline.viewer.history import Record

_PROFILES: dict[tuple[Path, int], Profile | None] = {}


def profiles_of(run: Run, steps: Sequence[int]) -> list[Profile]:
    """Return the profiles of the steps that have one; each file is read once."""
    return [profile for step in steps if (profile := _profile(run, step)) is not None]


def profile_context(profiles: Sequence[Profile]) -> dict[str, Any]:
    """Return what the run page shows of profiled steps."""
    return {
        "steps": len(profiles),
        "machines": list(dict.fromkeys(_described(profile.machine) for profile in profiles)),
        "lines": lines_of(profiles),
    }


def with_profiles(records: Sequence[Record], profiles: Sequence[Profile]) -> list[Record]:
    """Add the seconds of each stage to the records of profiled steps."""
    seconds = {
        profile.step: {
            f"profile_{stage}": spent
            for stage, spent in profile.stage_seconds().items()
            if stage in STAGES
        }
        for profile in profiles
    }
    return [{**record, **seconds.get(record["step"], {})} for record in records]


def _profile(run: Run, step: int) -> Profile | None:
    path = profile_path(run, step)
    if not path.exists():
        return None
    key = path, path.stat().st_mtime_ns
    if key not in _PROFILES:
        _PROFILES[key] = read_profile(run, step)
    return _PROFILES[key]


def _described(machine: Machine) -> str:
    threads = "1 thread" if machine.threads == 1 else f"{count(machine.threads)} threads"
    rate = f"{machine.matmul_flops / 1e9:,.0f} GFLOP/s"
    return f"{rate} ({machine.device}, {machine.dtype}, {threads})"
