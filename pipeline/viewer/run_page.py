"""The index of runs, and the page of one run."""

from typing import Any

from pipeline.viewer.shell import Kind, Runs, run_named
from pipeline.viewer.state import state_of


def index_context(runs: Runs) -> dict[str, Any]:
    """Return what the index of runs shows."""
    return {"runs": [{"name": name, **state_of(run)} for name, run in runs.items()]}


def context(runs: Runs, name: str) -> dict[str, Any]:
    """Return what the page of a run shows."""
    run = run_named(runs, name)
    return {"name": name, "state": state_of(run)}


INDEX = Kind("/", "index.html", index_context, lambda _: iter([()]))
RUN = Kind("/runs/{}/", "run.html", context, lambda runs: ((name,) for name in runs))
