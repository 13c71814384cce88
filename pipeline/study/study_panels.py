"""The panels of the study's figures: one variant's seeds in one world, drawn in the variant's look.

An accuracy is the mean over seeds with its bootstrap interval, and a thin line for each seed. A
number of steps is the mean over seeds, and the range of the seeds as a band.
"""

import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator, PercentFormatter

from pipeline.compare.panels import DASHES, STAGE_COLOURS, marker_of, thousands
from pipeline.run.metrics import Interval
from pipeline.run.step_layout import ALL_STAGES
from pipeline.study.curve_measures import BUDGETS, accuracy
from pipeline.study.study_results import Finished, Floats, VariantResult
from pipeline.study.study_row import WINDOW, Row

MOST_POINTS = 20
"""Points of a line of steps: more are not seen at this size, and make a figure large."""
_ALARM: dict[str, Any] = {
    "linestyle": "none", "marker": "x", "markersize": 4, "markeredgewidth": 1.1,
}  # fmt: skip
_GREY = "C6"
_BEFORE: dict[str, Any] = {"color": _GREY, "linestyle": ":", "linewidth": 1.4, "marker": "."}
_LINE, _HANDLE = 118, 9
"""Characters across a figure, and how many of them a legend's line and its distances take."""


Place = Callable[[Finished], Floats]
"""Where each seed's evaluations stand on the horizontal axis, [seeds, evaluations]."""


def accuracy_panel(
    panel: Axes, shown: Sequence[VariantResult], place: Place, name: str, alarms: bool
) -> None:
    """Draw accuracy against what training had cost by each evaluation.

    Args:
        alarms: mark each run's first alarm of every rule, on the run's own line.
    """
    for one in shown:
        done, look = one.done, look_of(one)
        places, colour = place(done), look["color"]
        _band(panel, places.mean(axis=0), done.curve, colour)
        for row, at in zip(done.rows, places, strict=True):
            means = accuracy(row).mean(axis=-1)
            panel.plot(at, means, linewidth=0.5, alpha=0.45, color=colour)
            if alarms and row.alarms:
                steps = [float(alarm["raised"]) for alarm in row.alarms]
                x = np.interp(steps, row.evaluated_steps, at)
                panel.plot(x, np.interp(x, at, means), **_ALARM, color=colour)
        panel.plot(places.mean(axis=0), _means(done.curve), linewidth=1.6, **look)
    panel.set_xlabel(name)
    percent_axis(panel)
    panel.xaxis.set_major_locator(MaxNLocator(5))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: thousands(value)))


def reference_line(panel: Axes, one: VariantResult, steps: int) -> None:
    """Draw a variant's accuracy in grey up to so many steps, for others to be seen against."""
    done = one.done
    at = done.steps[0]
    within = int((at <= steps).sum())
    panel.plot(at[:within], _means(done.curve)[:within], color=_GREY, linewidth=1.2, alpha=0.7)


def step_panel(
    panel: Axes, shown: Sequence[VariantResult], key: str, name: str, share: bool
) -> None:
    """Draw a number of steps, on an axis that begins at 0.

    Args:
        share: show it in percent.
    """
    drawn = False
    for one in shown:
        rows, look = one.done.rows, look_of(one)
        values = np.array([per_point(row, key)[1] for row in rows])
        steps = per_point(rows[0], key)[0]
        known = ~np.isnan(values).any(axis=0)
        if not known.any():
            continue
        steps, values = steps[known], values[:, known]
        panel.plot(steps, values.mean(axis=0), linewidth=1.4, **look)
        if len(values) > 1:
            panel.fill_between(
                steps, values.min(axis=0), values.max(axis=0),
                color=look["color"], alpha=0.15, linewidth=0,
            )  # fmt: skip
        drawn = True
    if not drawn:
        panel.text(0.5, 0.5, "no such numbers", transform=panel.transAxes, ha="center")
    panel_title(panel, name)
    panel.set_ylim(bottom=0)
    if share:
        percent_axis(panel)
    panel.set_xlabel("training step")
    panel.xaxis.set_major_locator(MaxNLocator(5, integer=True))


def per_point(row: Row, key: str) -> tuple[Floats, Floats]:
    """Return the middle steps of so many equal parts as a line has points, and each part's mean.

    A part without any number is nan; the last may have fewer steps.
    """
    values, width = (row.series[key], 1) if key in row.series else (row.means[key], WINDOW)
    array = np.array([np.nan if value is None else value for value in values])
    joined = -(-len(array) // MOST_POINTS)
    starts = range(0, len(array), joined)
    ends = [min((start + joined) * width, len(row.steps)) for start in starts]
    middles = [(start * width + end) / 2 for start, end in zip(starts, ends, strict=True)]
    parts = [array[start : start + joined] for start in starts]
    means = [np.nan if np.isnan(part).all() else np.nanmean(part) for part in parts]
    return np.array(middles), np.array(means)


def best_panel(panel: Axes, shown: Sequence[VariantResult]) -> None:
    """Draw the best accuracy within each budget of steps, the variants side by side."""
    for j, one in enumerate(shown):
        found = one.done.summary.best_within
        mean, low, high = np.array(list(found.values())).T
        panel.errorbar(
            np.arange(len(found)) + _aside(j, len(shown)), mean, yerr=(mean - low, high - mean),
            linestyle="none", elinewidth=1.0, capsize=1.5, **mark_of(one),
        )  # fmt: skip
    names = ["all" if share == 1 else str(share) for share in BUDGETS]
    panel.set_xticks(range(len(names)), names)
    panel.set_xlim(-0.5, len(names) - 0.5)
    panel.grid(visible=False, axis="x")
    panel.set_xlabel("share of the steps")
    percent_axis(panel)


def _aside(j: int, of: int) -> float:
    """Return how far from a column's middle its j-th mark stands."""
    return (j - (of - 1) / 2) * min(0.16, 0.7 / of)


def pass_panel(panel: Axes, shown: Sequence[VariantResult]) -> None:
    """Draw pass@k against k: before training, and each variant's at its last evaluation."""
    before = shown[0].done.pass_before
    ks = list(before)
    panel.plot(ks, _means(list(before.values())), **_BEFORE)
    for one in shown:
        found, look = [one.done.summary.pass_at[k] for k in ks], look_of(one)
        _band(panel, np.array(ks), found, look["color"])
        panel.plot(ks, _means(found), linewidth=1.2, **look)
    panel.set_xscale("log", base=2)
    panel.set_xticks(ks, [str(k) for k in ks])
    panel.xaxis.set_minor_locator(NullLocator())
    panel.set_xlabel("k")
    percent_axis(panel)


def stage_panel(panel: Axes, shown: Sequence[VariantResult]) -> list[Patch]:
    """Draw a bar for each variant: its seconds per step, by stage; return a legend's parts."""
    seconds = [one.done.stages for one in shown]
    colours = dict(zip(ALL_STAGES, STAGE_COLOURS, strict=True))
    stages = [stage for stage in ALL_STAGES if any(stage in found for found in seconds)]
    left = np.zeros(len(shown))
    for stage in stages:
        width = np.array([found.get(stage, 0.0) for found in seconds])
        panel.barh(range(len(shown)), width, left=left, color=colours[stage], height=0.6)
        left += width
    beside = panel.get_yaxis_transform()
    for j, one in enumerate(shown):
        look = {**mark_of(one), "markersize": 5, "clip_on": False, "linestyle": "none"}
        panel.plot(-0.06, j, transform=beside, **look)
    panel.set_yticks([])
    panel.grid(visible=False, axis="y")
    panel.invert_yaxis()
    panel.set_xlabel("seconds")
    return [Patch(label=stage, color=colours[stage]) for stage in stages]


def _means(intervals: Sequence[Interval]) -> list[float]:
    return [interval.mean for interval in intervals]


def _band(panel: Axes, places: Floats, intervals: Sequence[Interval], colour: str) -> None:
    _, low, high = np.array(intervals).T
    panel.fill_between(places, low, high, color=colour, alpha=0.15, linewidth=0)


def look_of(one: VariantResult) -> dict[str, Any]:
    """Return a variant's colour and dash: a pair that comes again after 24 variants."""
    colour, dash = one.index % 6, (one.index + one.index // 6) % len(DASHES)
    return {"color": f"C{colour}", "linestyle": DASHES[dash]}


def mark_of(one: VariantResult) -> dict[str, Any]:
    """Return a variant's marker and its colour."""
    return {**marker_of(one.index), "color": look_of(one)["color"]}


def percent_axis(panel: Axes) -> None:
    """Put percent on the vertical axis."""
    panel.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def variant_legend(
    canvas: Canvas, shown: Sequence[VariantResult], more: Sequence[Line2D] = (), marks: bool = False
) -> None:
    """Name the variants below the panels, in as many columns as their names leave room for.

    Args:
        marks: show their markers as well as their lines.
    """
    named = [(one, (mark_of(one) if marks else {}) | look_of(one)) for one in shown]
    handles = [Line2D([], [], label=one.title, linewidth=1.6, **look) for one, look in named]
    handles += more
    lengths = [len(str(handle.get_label())) + _HANDLE for handle in handles]
    columns = len(handles) if sum(lengths) <= _LINE else max(1, _LINE // max(lengths))
    canvas.legend(handles=handles, loc="outside lower center", ncols=columns)


def alarm_handle() -> Line2D:
    """Return the legend's entry of alarms."""
    return Line2D([], [], label="first alarm of a rule", color=_GREY, **_ALARM)


def before_handle() -> Line2D:
    """Return the legend's entry of the policy before training."""
    return Line2D([], [], label="before training", **_BEFORE)


def panel_title(panel: Axes, title: str) -> None:
    """Name a panel, on as many lines as it needs."""
    panel.set_title("\n".join(textwrap.wrap(title, 32, break_on_hyphens=False)))
