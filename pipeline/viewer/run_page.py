"""The index of runs, and the page of one run."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle
from typing import Any

from pipeline.run.pass_at_k import ks_of
from pipeline.run.run import Run
from pipeline.text import command
from pipeline.viewer.chart_series import (
    MARKS,
    PROFILE,
    ROUTES,
    STYLES,
    chart_data,
    charts_of,
    last_text,
    run_series,
)
from pipeline.viewer.export_selection import in_export
from pipeline.viewer.history import History, Record, history
from pipeline.viewer.page import MANY, Kind, Runs, linked_pairs, run_named, shown_name
from pipeline.viewer.profile_section import profile_context, profiles_of, with_profiles
from pipeline.viewer.run_settings import changed_settings, origins, policies, written
from pipeline.viewer.run_state import state_of

_COLUMNS = (
    "reward_mean",
    "correct_share",
    "teacher_available",
    "teacher_entropy_mean",
    "weight_std",
    "jsd_mean",
    "loss",
    "grad_norm",
    "response_tokens_mean",
    "format_rate",
    "truncated_share",
    "seconds",
    "alarms",
)
"""Keys of the table of steps; a step that is not complete may lack some."""


def index_context(runs: Runs) -> dict[str, Any]:
    """Return what the index of runs shows."""
    return {
        "runs": [{"name": name, **_summary(runs, run, history(run))} for name, run in runs.items()],
        "pairs": linked_pairs(runs),
        "many": len(runs) > MANY,
    }


def context(runs: Runs, name: str) -> dict[str, Any]:
    """Return what the page of a run shows."""
    run = run_named(runs, name)
    names = list(runs) if len(runs) <= MANY else [name]
    histories = {other: history(runs[other]) for other in names}
    records = histories[name].steps
    profiles = profiles_of(run, [record["step"] for record in records])
    profiled = replace(histories[name], steps=with_profiles(records, profiles))
    series = {
        other: run_series(other, known) for other, known in {**histories, name: profiled}.items()
    }
    charts = charts_of([other.steps for other in histories.values()])
    others = [_pair(list(runs), name, other) for other in runs if other != name]
    linked = linked_pairs(runs)
    data = {
        "current": name,
        "charts": [
            {**chart_data(chart), "last": last_text(chart, series[name])}
            for chart in [*charts, PROFILE]
        ],
        "runs": [{**series[other], "style": i % STYLES} for i, other in enumerate(names)],
    }
    return {
        "name": name,
        "summary": _summary(runs, run, histories[name]),
        "alarms": alarms_of(records),
        "in_export": in_export(run),
        "fork": _fork(run),
        "charts": data["charts"][:-1],
        "profile": {**profile_context(profiles), "charts": data["charts"][-1:]},
        "runs": [{"name": other, "style": i % STYLES} for i, other in enumerate(names)],
        "others": others,
        "linked": [other for other in others if other[1:] in linked],
        "alone": len(runs) > MANY,
        "steps": [{**dict.fromkeys(_COLUMNS), **record} for record in reversed(records)],
        "evaluations": histories[name].evaluations,
        "ks": sorted({k for e in histories[name].evaluations.values() for k in ks_of(e)} - {1}),
        "tasks": _tasks(series[name]),
        "routes": [r for r in ROUTES if any(record.get(f"share_{r}") for record in records)],
        "settings": changed_settings(run.config),
        "origins": origins(run),
        "policies": policies(run, [record["step"] for record in records]),
        "data": data,
    }


def alarms_of(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Return each rule's first alarm, how often it was raised and when last; newest first."""
    found: dict[str, dict[str, Any]] = {}
    for record in records:
        for alarm in record.get("alarms") or []:
            first = found.setdefault(str(alarm["rule"]), {**alarm, "last": 0, "times": 0})
            first["last"], first["times"] = record["step"], first["times"] + 1
    return sorted(found.values(), key=lambda alarm: -int(alarm["last"]))


def _summary(runs: Runs, run: Run, known: History) -> dict[str, Any]:
    records, evaluations = known.steps, known.evaluations
    best = max(evaluations, key=lambda n: evaluations[n]["accuracy"], default=None)
    last = records[-1] if records else {}
    return {
        **state_of(run),
        "folder": f"{run.root}",
        "method": run.config.route.method,
        "task": run.config.data.title,
        "model": run.config.model.path,
        "k": run.config.evaluate.rollouts,
        "reward": last.get("reward_mean"),
        "first": evaluations[min(evaluations)] if evaluations else None,
        "newest_evaluation": evaluations[max(evaluations)] if evaluations else None,
        "best": evaluations[best] if best is not None else None,
        "best_after": best,
        "seconds": sum(record.get("seconds") or 0 for record in records),
        "tokens": sum(record.get("tokens") or 0 for record in records),
        "alarms": len(alarms_of(records)),
        "fork_of": shown_name(runs, run.parent) if run.parent else None,
    }


def _tasks(series: dict[str, Any]) -> list[tuple[str, float | None, str]]:
    """Return a mixture's tasks: each one's name, newest accuracy, and sign in the chart."""
    newest = [(task, values[-1]) for task, values in series["evaluations"]["tasks"].items()]
    return [(*pair, sign) for pair, sign in zip(newest, cycle(MARKS), strict=False)]


def _fork(run: Run) -> dict[str, Any] | None:
    if run.fork is None or run.parent is None:
        return None
    changed = run.fork.changed.items()
    return {
        "parent": f"{run.parent.root}",
        "stage": run.fork.stage,
        "start": run.fork.start,
        "changed": [(key, written(old), written(new)) for key, (old, new) in changed],
        "note": run.fork.note,
        "off_policy_from": run.fork.off_policy_from,
        "command": command("view", run.parent.root, run.root),
    }


def _pair(names: Sequence[str], name: str, other: str) -> tuple[str, str, str]:
    """Return the other run, and the pair in the order in which its compare page is exported."""
    a, b = sorted((name, other), key=names.index)
    return other, a, b


INDEX = Kind("/", "index.html", index_context, lambda _: iter([()]))
RUN = Kind("/runs/{}/", "run.html", context, lambda runs: ((name,) for name in runs))
