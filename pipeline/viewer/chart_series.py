"""The numbers in a page's charts: what is plotted, against what, and how it is smoothed."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np

from pipeline.config.sections import TeacherSource
from pipeline.run.metrics import tasks_of
from pipeline.run.step_layout import ALL_STAGES
from pipeline.run.step_profiles import STAGES
from pipeline.text import count, duration, number, percent
from pipeline.viewer.history import History, Record

WINDOW = 5
"""Steps of the rolling mean and deviation."""

STYLES = 8
"""Runs that get a line style of their own; then they repeat."""

MARKS = "■◆▲▼✕✚★⬢"
"""Signs of a mixture's tasks in the chart of evaluations; then they repeat."""

ROUTES = ("grpo", "sdpo", "mix", "none")
SOURCES = (*get_args(TeacherSource), "feedback")
Format = Literal["percent", "number", "count", "seconds"]
Values = list[float | None]

_TEXTS = {"percent": percent, "number": number, "count": count, "seconds": duration}


@dataclass(frozen=True)
class Chart:
    """One chart: lines of all runs, or the parts of one run stacked.

    Attributes:
        key: key of metrics.json; "accuracy" is avg@k of evaluations, with its interval.
        parts: for stacks, their keys, from the bottom up.
        line: for stacks, a key drawn over them.
    """

    key: str
    title: str
    format: Format
    unit: str = ""
    parts: tuple[str, ...] = ()
    line: str = ""

    def text(self, value: float | None) -> str:
        """Return a value as people read it; the title says the unit."""
        return _TEXTS[self.format](value)


CHARTS = (
    Chart("reward_mean", "Mean reward", "number"),
    Chart("accuracy", "Evaluations, avg@k", "percent"),
    Chart("correct_share", "Correct rollouts", "percent"),
    Chart(
        "routes",
        "Routes",
        "percent",
        parts=tuple(f"share_{route}" for route in ROUTES),
        line="teacher_available",
    ),
    Chart("share_sdpo", "Routed to SDPO", "percent"),
    Chart("teacher_entropy_mean", "Teacher entropy", "number", "nats"),
    Chart("weight_std", "Token weights, deviation", "number"),
    Chart("jsd_mean", "Divergence", "number", "nats"),
    Chart("loss", "Loss", "number"),
    Chart("grad_norm", "Gradient norm, unclipped", "number"),
    Chart("logprob_gap_max", "Engine-trainer gap, max", "number", "nats"),
    Chart("engine_kl", "Engine-trainer KL, mean", "number", "nats"),
    Chart("tis_cut_share", "Engine correction cut", "percent"),
    Chart("format_rate", "Format kept", "percent"),
    Chart("truncated_share", "Cut at the length limit", "percent"),
    Chart("response_tokens_mean", "Response length, mean", "count", "tokens"),
    Chart("seconds", "Time per step", "seconds"),
    Chart(
        "stages",
        "Time per stage",
        "seconds",
        parts=tuple(f"seconds_{stage}" for stage in ALL_STAGES),
    ),
)
OPTIONAL = (
    Chart("off_path_share", "Divergence off path", "percent"),
    Chart("weight_max", "Token weights, max", "number"),
    Chart("effective_tokens", "Tokens really heard", "count"),
    Chart("duplicate_share", "Duplicate responses", "percent"),
    Chart("demonstration_tokens_mean", "Demonstration length, mean", "count", "tokens"),
    Chart("credit_lambda", "Credit by the teacher, λ", "number"),
    Chart("credit_change_mean", "Advantage moved, mean |Â/A - 1|", "percent"),
    Chart("credit_clipped_share", "Credit clipped", "percent"),
    Chart("work_share", "Computed tokens, share of naive", "percent"),
    Chart("silent_questions", "Questions without any signal", "percent"),
    Chart(
        "sources",
        "What teachers are shown",
        "percent",
        parts=tuple(f"source_{source}" for source in SOURCES),
        line="teacher_available",
    ),
)
"""Charts of keys that not all runs have."""

PROFILE = Chart(
    "profile",
    "Profiled time per stage",
    "seconds",
    parts=tuple(f"profile_{stage}" for stage in STAGES),
)
"""The chart of profiled steps; its keys come from their profiles, not from metrics.json."""


def charts_of(all_records: Sequence[Sequence[Record]]) -> list[Chart]:
    """Return the charts to draw for runs with these records."""
    known = {key for records in all_records for record in records for key in record}
    return [*CHARTS, *(c for c in OPTIONAL if not known.isdisjoint((c.key, *c.parts)))]


def run_series(name: str, run: History) -> dict[str, Any]:
    """Return everything the charts need of one run.

    Step s stands at s, at the tokens sampled and at the training seconds spent when it ended; the
    evaluation after n steps stands at n, and at the tokens and seconds of these n steps.
    """
    records, evaluations = run.steps, run.evaluations
    tokens, seconds = _totals(records, "tokens"), _totals(records, "seconds")
    steps = [record["step"] for record in records]
    ends = dict(zip(steps, zip(tokens, seconds, strict=True), strict=True))
    charts = [*CHARTS, *OPTIONAL, PROFILE]
    keys = {key for chart in charts for key in (chart.key, chart.line, *chart.parts)}
    before = [ends.get(n - 1, (0, 0.0)) for n in evaluations]
    return {
        "name": name,
        "x": {"steps": steps, "tokens": tokens, "seconds": seconds},
        "values": {
            key: smoothed([record.get(key) for record in records])
            for key in sorted(keys)
            if any(record.get(key) is not None for record in records)
        },
        "evaluations": {
            "x": {
                "steps": list(evaluations),
                "tokens": [end[0] for end in before],
                "seconds": [end[1] for end in before],
            },
            **{
                key: [short(record[name]) for record in evaluations.values()]
                for key, name in (("raw", "accuracy"), ("low", "low"), ("high", "high"))
            },
            "k": [record["rollouts"] for record in evaluations.values()],
            "tasks": {
                task: [short(record.get(f"accuracy/{task}")) for record in evaluations.values()]
                for task in dict.fromkeys(t for e in evaluations.values() for t in tasks_of(e))
            },
        },
    }


def smoothed(values: Sequence[float | None], window: int = WINDOW) -> dict[str, Values]:
    """Return values with the mean and deviation over the last `window` steps, up to each one.

    The deviation is that of the values themselves (divided by their number); missing values are
    left out of both, and where all of a window are missing so are they.
    """
    array = np.array([np.nan if v is None else v for v in values], dtype=np.float64)
    if not array.size:
        return {"raw": [], "mean": [], "deviation": []}
    parts = np.lib.stride_tricks.sliding_window_view(
        np.concatenate([np.full(window - 1, np.nan), array]), window
    )
    known = np.isfinite(parts)
    number_known = np.where(known.any(axis=1), known.sum(axis=1), np.nan)
    means = np.where(known, parts, 0.0).sum(axis=1) / number_known
    squares = np.where(known, parts - means[:, None], 0.0) ** 2
    deviations = np.sqrt(squares.sum(axis=1) / number_known)
    return {
        "raw": [short(value) for value in array.tolist()],
        "mean": [short(value) for value in means.tolist()],
        "deviation": [short(value) for value in deviations.tolist()],
    }


def last_text(chart: Chart, series: dict[str, Any]) -> str:
    """Return the last value of a chart in words, for those who don't see the chart."""
    if chart.key == "accuracy":
        found = series["evaluations"]
        if not found["raw"]:
            return ""
        low, high = percent(found["low"][-1]), percent(found["high"][-1])
        return f"{percent(found['raw'][-1])} ({low} to {high})"
    if chart.parts:
        texts = [(part, _last(series, part)) for part in (*chart.parts, chart.line) if part]
        return ", ".join(f"{part_name(p)} {chart.text(v)}" for p, v in texts if v)
    value = _last(series, chart.key)
    return "" if value is None else chart.text(value)


def part_name(key: str) -> str:
    """Return how a part of a stack is called."""
    return "teacher available" if key == "teacher_available" else key.split("_", 1)[1]


def chart_data(chart: Chart) -> dict[str, Any]:
    """Return a chart's description as the page's script reads it."""
    parts = [{"key": key, "name": part_name(key)} for key in chart.parts]
    line = {"key": chart.line, "name": part_name(chart.line)} if chart.line else None
    return {**asdict(chart), "parts": parts, "line": line}


def short(value: float | None) -> float | None:
    """Return a number with six significant digits: charts show no more."""
    return None if value is None or not np.isfinite(value) else float(f"{value:.6g}")


def _totals(records: Iterable[Record], key: str) -> list[float]:
    return [short(v) or 0.0 for v in np.cumsum([record.get(key) or 0 for record in records])]


def _last(series: dict[str, Any], key: str) -> float | None:
    values: Values = series["values"].get(key, {}).get("raw", [])
    return next((value for value in reversed(values) if value is not None), None)
