"""Flows of one stage or one evaluation, for deployments: scheduled, or on a remote worker."""

from pathlib import Path
from typing import Any

from prefect import flow

from flows.evaluating import evaluate_now
from flows.loop import Reference, Watcher
from flows.session import Session
from flows.train import StageTasks


@flow(name="stage", flow_run_name="{name}-{step:06d}", persist_result=False)
def stage_flow(name: str, run: str, step: int) -> Reference:
    """Run one stage of one step whose tables are missing, as `srpo stage NAME` does.

    Args:
        name: generate, verify, route, weigh, update or evaluate.
        run: the run's folder, on the worker.
        step: training step; for evaluate the number of steps done.
    """
    session = Session.resume(Path(run))
    try:
        return StageTasks(session, [Watcher()])(name, step)
    finally:
        session.close()


@flow(name="evaluate", flow_run_name="evaluate-{steps_done:06d}", persist_result=False)
def evaluate_flow(run: str, steps_done: int, overrides: list[str] | None = None) -> dict[str, Any]:
    """Evaluate a state of a run, as `srpo evaluate RUN@STEP` does.

    Args:
        run: the run's folder, on the worker.
        steps_done: which state.
        overrides: settings, `evaluate.…=value` or `data.…=value`.
    """
    session = Session.resume(Path(run))
    try:
        return evaluate_now(session, steps_done, overrides or [])
    finally:
        session.close()
