"""The panels that make up the figures: how a comparison's rows are drawn.

A series by step is the mean over a row's seeds: a thin line, and a rolling mean ± 1 standard
deviation over 5 steps. Evaluations are points with their 95% interval, rolled in the same way, or
only joined where 5 steps hold fewer than three of them.
"""

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator, PercentFormatter

from pipeline.compare.comparison import Axis, MethodRow, row_interval
from pipeline.compare.pass_change import PassChange
from pipeline.run.metrics import Interval
from pipeline.run.step_layout import ALL_STAGES
from pipeline.text import count

WINDOW = 5
"""Steps of the rolling mean and deviation."""

Floats = npt.NDArray[np.float64]

# Rows differ by marker and dash as well as by colour (the theme's, in turn).
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
PASS_LOOKS: dict[str, dict[str, Any]] = {
    "start": {"label": "before training", "color": "C6", "linestyle": ":", "marker": "s"},
    "last": {"label": "last evaluation", "color": "C0", "linestyle": "-", "marker": "o"},
}
STAGE_COLOURS = ("#4a6fb5", "#fde725", "#b5a0d0", "#21918c", "#d55e00", "#8f8f8f")
_LABEL = 46
_AXIS_NAMES = {"steps": "training steps", "tokens": "sampled tokens"}


def rolling(at: Sequence[int], values: Sequence[float]) -> tuple[Floats, Floats]:
    """Return mean and deviation of the values at steps n - 4 to n, for each step n in `at`.

    The deviation is the population's: divided by the number of values, not by one less.
    """
    steps, found = np.asarray(at), np.asarray(values, dtype=np.float64)
    parts = [found[(steps > n - WINDOW) & (steps <= n)] for n in steps]
    return np.array([p.mean() for p in parts]), np.array([p.std() for p in parts])


def step_series(row: MethodRow, key: str) -> tuple[list[int], list[float]]:
    """Return the steps that all seeds of a row have, and the mean of a metric over the seeds.

    Steps at which a seed has no number (no taught token, say) are left out.
    """
    known = [
        {step: record[key] for step, record in c.steps.items() if record.get(key) is not None}
        for c in row.curves
    ]
    steps = sorted(set.intersection(*(set(values) for values in known)))
    return steps, [float(np.mean([values[step] for values in known])) for step in steps]


def look_of(index: int) -> dict[str, Any]:
    """Return a row's colour and dash: cycles of different lengths, so that pairs repeat late."""
    return {"color": f"C{index % len(_MARKERS)}", "linestyle": DASHES[index % len(DASHES)]}


def accuracy_panel(panel: Axes, rows: Sequence[MethodRow], axis: Axis, measure: str) -> None:
    """Draw the accuracy of evaluations against the cost of training up to each."""
    scale, name = _scale(rows, axis)
    for index, row in enumerate(rows):
        known = [{e.steps: e for e in c.evaluations if e.at(axis) is not None} for c in row.curves]
        steps = sorted(set.intersection(*(set(evaluations) for evaluations in known)))
        if not steps:
            continue
        places = [np.mean([found[n].at(axis) or 0 for found in known]) / scale for n in steps]
        intervals = [row_interval([found[n] for found in known]) for n in steps]
        mean = np.array([interval.mean for interval in intervals])
        colour = look_of(index)["color"]
        _bars(panel, places, intervals, colour)
        panel.plot(places, mean, linestyle="none", color=colour, **marker_of(index))
        if np.diff(steps).max(initial=0) <= WINDOW // 2:
            _band(panel, np.array(places), *rolling(steps, mean.tolist()), look_of(index))
        else:
            panel.plot(places, mean, linewidth=1.2, **look_of(index))
    panel.set_xlabel(name)
    panel.set_ylabel(measure)
    panel.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    panel.xaxis.set_major_locator(MaxNLocator(5, integer=axis == "steps"))
    if axis == "tokens":
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: thousands(value)))


def pass_panel(panel: Axes, change: PassChange) -> None:
    """Draw pass@k against k, on an axis of powers of two: at the start and the last evaluation."""
    ks = sorted(change.at)
    for part, look in PASS_LOOKS.items():
        intervals = [getattr(change.at[k], part) for k in ks]
        _bars(panel, ks, intervals, look["color"])
        panel.plot(ks, [i.mean for i in intervals], linewidth=1.4, markersize=3, **look)
    panel.set_xscale("log", base=2)
    panel.set_xticks(ks, [str(k) for k in ks])
    panel.xaxis.set_minor_locator(NullLocator())
    panel.set_xlabel("k")


def _bars(panel: Axes, places: Sequence[Any], intervals: Sequence[Interval], colour: str) -> None:
    mean, low, high = np.array(intervals).T
    panel.errorbar(
        places, mean, yerr=(mean - low, high - mean), fmt="none",
        ecolor=colour, elinewidth=0.8, capsize=1.5, capthick=0.8, alpha=0.6,
    )  # fmt: skip


def step_panel(panel: Axes, rows: Sequence[MethodRow], key: str, name: str) -> None:
    """Draw a key of metrics.json by step, on an axis that begins at 0."""
    drawn = False
    for index, row in enumerate(rows):
        steps, values = step_series(row, key)
        rolled_line(panel, steps, values, look_of(index))
        drawn = drawn or bool(steps)
    if not drawn:
        panel.text(0.5, 0.5, "no such numbers", transform=panel.transAxes, ha="center")
    panel.set_ylabel(name)
    panel.set_ylim(bottom=0)
    step_axis(panel)


def stage_panel(panel: Axes, rows: Sequence[MethodRow]) -> None:
    """Draw a bar per row, with its marker: the mean seconds of a step, stage by stage."""
    left = np.zeros(len(rows))
    for stage, colour in _stages(rows):
        series = [step_series(row, f"seconds_{stage}")[1] for row in rows]
        width = np.array([np.mean(values) if values else 0.0 for values in series])
        panel.barh(range(len(rows)), width, left=left, color=colour, height=0.6)
        left += width
    beside = panel.get_yaxis_transform()
    for index in range(len(rows)):
        marker = {**marker_of(index), "markersize": 5, "color": look_of(index)["color"]}
        panel.plot(-0.06, index, transform=beside, clip_on=False, linestyle="none", **marker)
    panel.set_yticks([])
    panel.invert_yaxis()
    panel.set_xlabel("seconds per step, mean")


def rolled_line(
    panel: Axes, steps: Sequence[int], values: Sequence[float], look: dict[str, Any]
) -> None:
    """Draw values by step: raw, and as rolling mean and deviation."""
    if steps:
        panel.plot(steps, values, linewidth=0.6, color=look["color"], alpha=0.55)
        _band(panel, np.array(steps), *rolling(steps, values), look)


def _band(
    panel: Axes, places: npt.NDArray[Any], mean: Floats, deviation: Floats, look: dict[str, Any]
) -> None:
    panel.plot(places, mean, linewidth=1.6, **look)
    panel.fill_between(
        places, mean - deviation, mean + deviation, color=look["color"], alpha=0.18, linewidth=0
    )


def step_axis(panel: Axes) -> None:
    """Put training steps on the horizontal axis."""
    panel.set_xlabel("training step")
    panel.xaxis.set_major_locator(MaxNLocator(5, integer=True))


def row_legend(canvas: Canvas, rows: Sequence[MethodRow], beside: bool = False) -> None:
    """Name the rows below the panels; on the left if another legend stands beside."""
    handles = [
        Line2D([], [], label=shown_label(row.label), linewidth=1.6, **marker_of(i), **look_of(i))
        for i, row in enumerate(rows)
    ]
    columns = min(len(rows), 4 if max(len(row.label) for row in rows) < 24 else 2)
    if beside:
        canvas.legend(handles=handles, loc="outside lower left", ncols=(columns + 1) // 2)
    else:
        canvas.legend(handles=handles, loc="outside lower center", ncols=columns)


def stage_legend(canvas: Canvas, rows: Sequence[MethodRow], columns: int) -> None:
    """Name the stages below the panels, on the right."""
    handles = [Patch(label=stage, color=colour) for stage, colour in _stages(rows)]
    canvas.legend(
        handles=handles, loc="outside lower right", ncols=columns, handlelength=1, columnspacing=1
    )


def _stages(rows: Sequence[MethodRow]) -> list[tuple[str, str]]:
    """Return the stages with their colours; the bank only if a row has one."""
    banks = any(step_series(row, "seconds_bank")[1] for row in rows)
    pairs = zip(ALL_STAGES, STAGE_COLOURS, strict=True)
    return [pair for pair in pairs if banks or pair[0] != "bank"]


def marker_of(index: int) -> dict[str, Any]:
    """Return a row's marker, which goes with its colour."""
    return {"marker": _MARKERS[index % len(_MARKERS)], "markersize": 3.5}


def _scale(rows: Sequence[MethodRow], axis: Axis) -> tuple[float, str]:
    """Return what to divide by on an axis, and its name with its unit."""
    if axis != "seconds":
        return 1.0, _AXIS_NAMES[axis]
    longest = max(curve.reach(axis) for row in rows for curve in row.curves)
    for unit, size in (("hours", 3600.0), ("minutes", 60.0)):
        if longest >= 2 * size:
            return size, f"training time, {unit}"
    return 1.0, "training time, seconds"


def thousands(value: float) -> str:
    """Return 12000 as 12k, for an axis that has little room."""
    for size, sign in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{sign}"
    return count(value)


def shown_label(label: str, width: int = _LABEL) -> str:
    """Return a label cut to a length that a figure has room for."""
    return textwrap.shorten(label, width, placeholder=" …")
