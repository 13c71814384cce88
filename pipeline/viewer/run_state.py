"""How far a run is, in a few numbers: the pages of a running training poll it."""

from typing import Any

from pipeline.run.run import Run

_TABLES = ("rollouts", "verdicts", "routes", "weights", "updates")


def state_of(run: Run) -> dict[str, Any]:
    """Return the steps done, the steps planned, and the newest table as "step/table"."""
    done = run.steps_done()
    begun = [table for table in _TABLES if run.has(table, done)]
    if begun:
        newest = f"{done}/{begun[-1]}"
    elif run.has("evaluations", done):
        newest = f"{done}/evaluations"
    else:
        newest = f"{done - 1}/metrics" if done else ""
    return {"steps_done": done, "steps": run.config.run.steps, "newest": newest}
