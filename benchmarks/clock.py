"""Wall and CPU seconds by phase and step, and how busy the machine was with other work."""

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

_PRESSURE = Path("/proc/pressure/cpu")


class Lap(NamedTuple):
    """Seconds of one phase of one step: wall clock, CPU of this process, waiting for a CPU."""

    wall: float
    cpu: float
    stalled: float


class Clock:
    """Times the phases of one step after another."""

    def __init__(self) -> None:
        self._steps: list[dict[str, Lap]] = []

    def next_step(self) -> None:
        """Begin another step."""
        self._steps.append({})

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a piece of work of the current step; each name once per step."""
        started = time.perf_counter(), time.process_time(), _stalled()
        yield
        ended = time.perf_counter(), time.process_time(), _stalled()
        self._steps[-1][name] = Lap(*(b - a for a, b in zip(started, ended, strict=True)))

    def summary(self, warm_up: int) -> dict[str, Any]:
        """Return medians over the steps after warm-up; `all` is the sum of a step's phases."""
        steps = [{**laps, "all": _total(laps)} for laps in self._steps[warm_up:]]
        waited = [laps["all"].stalled / laps["all"].wall for laps in steps]
        return {
            "median_wall_s": _medians(steps, "wall"),
            "median_cpu_s": _medians(steps, "cpu"),
            "stall_share": round(statistics.median(waited), 3),
        }


def _total(laps: dict[str, Lap]) -> Lap:
    return Lap(*(sum(column) for column in zip(*laps.values(), strict=True)))


def _medians(steps: list[dict[str, Lap]], field: str) -> dict[str, float]:
    names = steps[0]
    return {
        name: round(statistics.median(getattr(laps[name], field) for laps in steps), 4)
        for name in names
    }


def _stalled() -> float:
    """Return the seconds in which some task of the machine waited for a CPU (0 if unknown)."""
    try:
        first = _PRESSURE.read_text(encoding="ascii").splitlines()[0]
    except OSError:
        return 0.0
    return int(first.rpartition("total=")[2]) / 1e6
