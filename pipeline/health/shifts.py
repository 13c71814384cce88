"""When a number has moved away from its own past: robust against the noise of small runs.

A shift is a recent window that lies beyond a limit. The limit is the furthest of a relative change,
an absolute change, and what the number's own noise explains; and two of three recent steps must lie
beyond it, so one bad step is none.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import median
from typing import Any, NamedTuple

Record = Mapping[str, Any]
Records = Sequence[Record]

RECENT = 3
"""Steps of the recent window."""
MAJORITY = 2
"""Of the recent steps, so many must lie beyond the limit: alarms come a step after an onset."""
PAST = 5
"""Steps that the past must have before anything is compared with it."""
WINDOW = 20
"""Steps of the near past: half of them may be spoilt before its median is."""
NOISE = 4.0
"""Deviations of the near past that are still noise. They are those of the logarithm: lengths and
entropies vary by factors, and a fall is then found as surely as a rise."""
_OF_CHANGES = 1.4826 / math.sqrt(2)
"""Deviation of a normal distribution, over the median absolute change from one to the next: other
than the deviation from the median, it does not take a trend for noise."""
_LARGEST = 50.0
"""Of a change's logarithm: larger ones are all the same, and overflow."""


class Point(NamedTuple):
    """A number of one step."""

    step: int
    value: float


class Shift(NamedTuple):
    """A number that moved away from its past.

    Attributes:
        onset: first recent step that lies beyond the limit.
        was, now: medians of the past, and of the recent steps beyond the limit.
        limit: what the number would have had to keep to.
    """

    onset: int
    was: float
    now: float
    limit: float


def number(record: Record, key: str) -> float | None:
    """Return a finite number of a record; None where there is none."""
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def points(records: Records, key: str) -> list[Point]:
    """Return the steps that have a number, in their order."""
    numbers = ((record.get("step"), number(record, key)) for record in records)
    return [Point(step, value) for step, value in numbers if value is not None and step is not None]


def shift(series: Sequence[Point], factor: float, least: float, ever: bool = True) -> Shift | None:
    """Return how the newest numbers differ from those before; None if they don't.

    Args:
        factor: below 1, a fall to that share of the past; above 1, a rise to that multiple.
        least: the absolute change that it must be at least.
        ever: compare with the highest window of the whole past, so that a slow fall is found and a
            slow rise is not.
    """
    if len(series) < PAST + RECENT:
        return None
    past, recent = [point.value for point in series[:-RECENT]], series[-RECENT:]
    was = _best(past) if ever else median(past[-WINDOW:])
    sign = 1.0 if factor > 1 else -1.0
    change = max(abs(math.log(factor)), NOISE * _deviation(past[-WINDOW:]))
    relative = abs(was) * abs(math.expm1(sign * min(change, _LARGEST)))
    limit = was + sign * max(relative, least)
    beyond = [point for point in recent if sign * (point.value - limit) >= 0]
    if len(beyond) < MAJORITY:
        return None
    return Shift(beyond[0].step, was, median(point.value for point in beyond), limit)


def _best(past: Sequence[float]) -> float:
    """Return the highest median of a window of the past."""
    last = max(len(past) - WINDOW, 0)
    starts = {*range(0, last, PAST), last}
    return max(median(past[start : start + WINDOW]) for start in starts)


def _deviation(near: Sequence[float]) -> float:
    """Return the standard deviation of a number's logarithm from one step to the next."""
    changes = [abs(math.log(b / a)) for a, b in pairwise(near) if a > 0 and b > 0]
    return _OF_CHANGES * median(changes) if changes else 0.0


def share_noise(share: float, count: float) -> float:
    """Return three deviations of a share of so many, never 0: a few rollouts show little."""
    count = max(count, 0.0)
    likely = (share * count + 1) / (count + 2)
    return 3 * math.sqrt(max(likely * (1 - likely), 0.0) / max(count, 1.0))
