"""A run in one line: method, state, last accuracy, alarms, size on disk."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.remote.mirror_paths import run_path
from pipeline.remote.mirror_sync import discover
from pipeline.run.metrics import evaluation_metrics, tasks_of
from pipeline.run.run import Run
from pipeline.run.step_records import Records

_DEPTH = 5


def find_runs(folder: Path) -> list[Path]:
    """Return the run folders in a folder, itself included, some levels deep; sorted."""
    discover(folder, _DEPTH)
    return sorted(run_path(root) for root in _search(folder, _DEPTH))


def _search(folder: Path, depth: int) -> Iterator[Path]:
    if (folder / "run.json").exists():
        yield folder
    elif depth and folder.is_dir():
        for inner in folder.iterdir():
            if inner.is_dir() and not inner.name.startswith("."):
                yield from _search(inner, depth - 1)


def overview(root: Path) -> dict[str, Any]:
    """Return what one line says about a run. Tables of steps are not read.

    Raises:
        StoreError: its record, or that of its parent, can't be read.
    """
    run = Run.open(root)
    done = run.steps_done()
    evaluated = run.steps_of("evaluations")
    accuracy, of_tasks = None, {}
    if evaluated:
        table = run.read("evaluations", evaluated[-1])
        record = evaluation_metrics(table)
        accuracy = record["accuracy"]
        of_tasks = {task: record[f"accuracy/{task}"] for task in tasks_of(record)}
    files = [path.stat() for path in root.rglob("*") if path.is_file()]
    newest = max(status.st_mtime for status in files)
    return {
        "run": f"{root}",
        "method": run.config.route.method,
        "state": _state(run, done),
        "steps_done": done,
        "steps": run.config.run.steps,
        "task": run.config.data.title,
        "accuracy": accuracy,
        "accuracy_of_tasks": of_tasks,
        "accuracy_after": evaluated[-1] if evaluated else None,
        "alarms": _alarms(run, done),
        "bytes": sum(status.st_size for status in files),
        "written": datetime.fromtimestamp(newest, UTC).strftime("%Y-%m-%d %H:%M"),
        "parent": f"{run.parent.root}" if run.parent else None,
        "fork of": _origin(run),
    }


def _alarms(run: Run, done: int) -> int:
    recorded = sum(len(run.metrics(step).get("alarms") or []) for step in range(done))
    return recorded + len(Records(run).unrecorded())


def _state(run: Run, done: int) -> str:
    steps = run.config.run.steps
    return "complete" if done >= steps else f"{done} of {steps}"


def _origin(run: Run) -> str | None:
    if run.fork is None or run.parent is None:
        return None
    return f"{run.parent.root.name}@{run.fork.start} {run.fork.stage}"
