"""The flat records of a run's steps and evaluations, kept in memory: files never change."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.run.metrics import evaluation_metrics, weight_metrics
from pipeline.run.run import Run

Record = dict[str, Any]

_UPSTREAM = {
    "rollouts": ("rollouts", "truncated_share", "response_tokens_mean", "response_tokens_max"),
    "verdicts": ("reward_mean", "correct_share", "format_rate", "verifier_errors", "judged"),
    "teacher": ("taught_tokens", "teacher_entropy_mean", "jsd_mean"),
}
"""Keys of metrics.json that a fork takes from its parent's record, by the table they describe."""

_METRICS: dict[tuple[Path, int], Record] = {}
_EVALUATIONS: dict[str, Record] = {}


@dataclass(frozen=True)
class History:
    """A run so far: the records of its steps, ascending, and of its evaluations."""

    steps: list[Record]
    evaluations: dict[int, Record]


def history(run: Run) -> History:
    """Return the records of a run as they are now."""
    return History(step_records(run), evaluation_records(run))


def step_records(run: Run) -> list[Record]:
    """Return one record for each step that has rollouts, ascending; see docs/tables.md.

    A step without metrics.json (in progress, or of a fork that makes no update) has those keys
    that its tables or its parent's record give.
    """
    return [step_record(run, step) for step in run.steps_of("rollouts")]


def step_record(run: Run, step: int) -> Record:
    """Return the record of one step; `complete` tells whether it has a metrics.json."""
    path = run.metrics_path(step)
    if path.exists():
        key = path, path.stat().st_mtime_ns
        if key not in _METRICS:
            _METRICS[key] = run.metrics(step)
        return {**_METRICS[key], "complete": True}
    record: Record = {"step": step, "complete": False}
    if run.fork and run.parent and run.parent.metrics_path(step).exists():
        parents = step_record(run.parent, step)
        for table, keys in _UPSTREAM.items():
            if run.fork.inherits(table, step):
                of_task = (key for key in parents if key.partition("/")[0] in keys)
                record |= {key: parents.get(key) for key in (*keys, *of_task)}
    return record | _of_tables(run, step)


def evaluation_records(run: Run) -> dict[int, Record]:
    """Return avg@k and more of each evaluation, by steps done."""
    return {step: _evaluation(run, step) for step in run.steps_of("evaluations")}


def _evaluation(run: Run, step: int) -> Record:
    digest = run.manifest("evaluations", step).sha256
    if digest not in _EVALUATIONS:
        _EVALUATIONS[digest] = evaluation_metrics(run.read("evaluations", step))
    return _EVALUATIONS[digest]


def _of_tables(run: Run, step: int) -> Record:
    """Return the routes' shares and what weights tell, where these tables are there."""
    record: Record = {}
    if run.has("routes", step):
        routes = run.read("routes", step)
        names = routes["route"].to_pylist()
        for route in ("grpo", "sdpo", "mix", "none"):
            record[f"share_{route}"] = names.count(route) / len(names)
        record["teacher_available"] = float(np.mean(routes["teacher_available"].to_numpy()))
    if run.has("weights", step):
        record |= weight_metrics(run.read("weights", step))
    return record
