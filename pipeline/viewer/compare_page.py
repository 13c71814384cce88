"""The page that compares two runs: where they part, what was decided otherwise, how they fared."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.compare.run_diff import DecisionChange, RunDiff, diff_runs
from pipeline.run.metrics import tasks_of
from pipeline.run.pass_at_k import ks_of
from pipeline.run.run import Run
from pipeline.text import command, count, number, printable
from pipeline.viewer.chart_series import (
    CHARTS,
    STYLES,
    Chart,
    chart_data,
    charts_of,
    last_text,
    run_series,
)
from pipeline.viewer.export_selection import in_export
from pipeline.viewer.history import History, history
from pipeline.viewer.page import Kind, Runs, linked_pairs, run_named, shown_name
from pipeline.viewer.run_settings import written
from pipeline.viewer.run_state import state_of

SHOWN = 200
"""Changed decisions of each kind in a page; `srpo diff --format json` has them all."""
_TEXT = 120
"""Characters of a value in a page."""

_DIFFS: dict[str, RunDiff] = {}


def context(runs: Runs, a: str, b: str) -> dict[str, Any]:
    """Return what the page that compares runs a and b shows."""
    first, second = run_named(runs, a), run_named(runs, b)
    found = _diff(first, second)
    histories = {a: history(first), b: history(second)}
    series = {name: run_series(name, known) for name, known in histories.items()}
    charts = [
        {**chart_data(chart), "last": _both(chart, series)}
        for chart in charts_of([known.steps for known in histories.values()])
        if not chart.parts
    ]
    order = list(runs)
    styles = {name: order.index(name) % STYLES for name in series}
    return {
        "a": a,
        "b": b,
        "found": found,
        "command": command("diff", first.root, second.root),
        "settings": [(key, _text(old), _text(new)) for key, (old, new) in found.settings.items()],
        "in_export": {a: in_export(first), b: in_export(second)},
        "forks": [
            (name, shown_name(runs, run.parent), run.fork.note)
            for name, run in ((a, first), (b, second))
            if run.fork is not None and run.parent is not None
        ],
        "verdicts": _decisions(found.verdicts),
        "routes": _decisions(found.routes),
        "weights": found.weights,
        "tables": found.tables[:SHOWN],
        "charts": charts,
        "runs": [{"name": name, "style": style} for name, style in styles.items()],
        "measures": _measures(histories[a], histories[b]),
        "data": {
            "current": a,
            "charts": charts,
            "runs": [{**series[name], "style": style} for name, style in styles.items()],
        },
    }


def _both(chart: Chart, series: dict[str, dict[str, Any]]) -> str:
    texts = ((name, last_text(chart, own)) for name, own in series.items())
    return "; ".join(f"{name} {text}" for name, text in texts if text)


def _diff(a: Run, b: Run) -> RunDiff:
    """Compare two runs, once for each state they are in."""
    key = f"{a.root} {state_of(a)} {b.root} {state_of(b)}"
    if key not in _DIFFS:
        _DIFFS[key] = diff_runs(a, b)
    return _DIFFS[key]


def _decisions(changes: Sequence[DecisionChange]) -> dict[str, Any]:
    """Return how many decisions of one kind changed, what into what, and the first of them."""
    ways = Counter(
        f"{_text(change.changes[key][0])} → {_text(change.changes[key][1])}"
        for change in changes
        for key in ("route", "correct")
        if key in change.changes
    )
    return {
        "total": len(changes),
        "ways": ways.most_common(),
        "shown": [
            {
                "step": change.step,
                "rollout_id": change.rollout_id,
                "changes": [
                    (k, _text(old), _text(new)) for k, (old, new) in change.changes.items()
                ],
            }
            for change in changes[:SHOWN]
        ],
    }


def _measures(a: History, b: History) -> dict[str, Any]:
    """Return the metrics of the last step that both runs have, side by side."""
    left, right = ({record["step"]: record for record in known.steps} for known in (a, b))
    common = max(left.keys() & right.keys(), default=None)
    rows = [] if common is None else [*_rows(left[common], right[common])]
    evaluated = max(a.evaluations.keys() & b.evaluations.keys(), default=None)
    if evaluated is not None:
        chart = Chart("accuracy", f"avg@k after {count(evaluated)} steps", "percent")
        one, other = a.evaluations[evaluated], b.evaluations[evaluated]
        rows.append(_row(chart, one, other))
        for k in sorted({*ks_of(one)} & {*ks_of(other)} - {1}):
            rows.append(_row(Chart(f"pass_at_{k}", f"pass@{k}", "percent"), one, other))
        rows.append(_row(Chart("distinct_answers", "Distinct answers", "number"), one, other))
        for task in dict.fromkeys([*tasks_of(one), *tasks_of(other)]):
            own = Chart(f"accuracy/{task}", f"{chart.title}, {task}", "percent")
            rows.append(_row(own, one, other))
    return {"step": common, "rows": [row for row in rows if row is not None]}


def _rows(left: dict[str, Any], right: dict[str, Any]) -> Iterator[dict[str, Any] | None]:
    for chart in CHARTS:
        if not chart.parts and chart.key != "accuracy":
            yield _row(chart, left, right)


def _row(chart: Chart, left: dict[str, Any], right: dict[str, Any]) -> dict[str, Any] | None:
    one, other = left.get(chart.key), right.get(chart.key)
    if one is None and other is None:
        return None
    change = None if one is None or other is None else other - one
    shown = chart.text(change) if chart.format == "percent" else number(change)
    return {
        "title": chart.title,
        "unit": chart.unit,
        "a": chart.text(one),
        "b": chart.text(other),
        "change": f"+{shown}" if change is not None and change > 0 else shown,
    }


def _text(value: Any) -> str:
    if isinstance(value, float):
        return number(value, 4)
    return printable("none" if value is None else written(value), _TEXT)


COMPARE = Kind("/compare/{}/{}/", "compare.html", context, lambda runs: iter(linked_pairs(runs)))
