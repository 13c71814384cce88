"""Flows of one stage, evaluation or replay, for deployments: scheduled, or on another machine."""

from typing import Any

from prefect import flow

from flows.reruns.evaluate import evaluate_now
from flows.reruns.replay import Plan, replay
from flows.session.fork_run import fork_run
from flows.session.session import Session
from flows.training.loop import Call, Reference, Watcher
from flows.training.train_flow import StageTasks
from flows.workers.runner_spec import RunnerSpec
from flows.workers.worker_pool import optional_pool
from pipeline.errors import ConfigError
from pipeline.remote.mirror_paths import run_path
from pipeline.run.lock import RunLock
from pipeline.run.run import Run


@flow(name="stage", flow_run_name="{name}-{step:06d}", persist_result=False)
def stage_flow(
    name: str,
    run: str,
    step: int,
    overrides: list[str] | None = None,
    fork: str | None = None,
    runner: str | None = None,
) -> Reference:
    """Run one stage of one step, as `srpo stage NAME` does: in place, or in a fork.

    Args:
        name: generate, verify, bank, route, weigh, update or evaluate.
        run: the run's folder, on the worker.
        step: training step; for evaluate the number of steps done.
        overrides: settings, `section.key=value`; they need a fork.
        fork: folder of the new run that refers to the tables of `run` upstream.
        runner: as `--runner` takes it, such as `ray:8@ray://HOST:10001`; its workers judge.
    """
    spec = RunnerSpec.parse(runner) if runner else None
    root = run_path(run)
    if fork is None and overrides:
        raise ConfigError("other settings need a fork: a run's own tables are never overwritten")
    if fork is None:
        opened = Session.resume(root)
    else:
        parent, root = Run.open(root), run_path(fork)
        with RunLock(root):
            opened = Session(fork_run(parent, root, name, step, step + 1, overrides or []))
    with opened as session:
        with optional_pool(spec, session.config.run.stall_seconds) as worker_pool:
            session.stages.spread_over(worker_pool)
            reference = StageTasks(session, [Watcher()])(name, step)
        session.finish_if_complete(step)
        return reference


@flow(name="replay", persist_result=False)
def replay_flow(
    run: str,
    stage: str,
    fork: str,
    steps: str | None = None,
    overrides: list[str] | None = None,
    runner: str | None = None,
) -> str:
    """Recompute a stage and what follows it over saved rollouts, as `srpo replay` does.

    Args:
        run: the run whose rollouts are used again, on the worker.
        stage: verify, bank, route, weigh or update.
        fork: folder of the new run.
        steps: A:B, half-open; default all.
        overrides: settings, `section.key=value`.
        runner: as `--runner` takes it; its workers run the stages that need no policy, several
            steps at a time.
    """
    parent = Run.open(run_path(run))
    plan = Plan.of(parent, stage, "update", steps)
    spec = RunnerSpec.parse(runner) if runner else None
    with optional_pool(spec, parent.config.run.stall_seconds) as worker_pool:
        session = replay(
            parent, run_path(fork), plan, overrides or [], runner=_tasks_of, worker_pool=worker_pool
        )
    session.close()
    return str(session.run.root)


def _tasks_of(session: Session) -> Call:
    return StageTasks(session, [Watcher()])


@flow(name="evaluate", flow_run_name="evaluate-{steps_done:06d}", persist_result=False)
def evaluate_flow(
    run: str, steps_done: int, overrides: list[str] | None = None, runner: str | None = None
) -> dict[str, Any]:
    """Evaluate a state of a run, as `srpo evaluate RUN@STEP` does.

    Args:
        run: the run's folder, on the worker.
        steps_done: which state.
        overrides: settings, `evaluate.…=value` or `data.…=value`.
        runner: as `--runner` takes it; its workers judge the answers.
    """
    spec = RunnerSpec.parse(runner) if runner else None
    with (
        Session.resume(run_path(run)) as session,
        optional_pool(spec, session.config.run.stall_seconds) as worker_pool,
    ):
        return evaluate_now(session, steps_done, overrides or [], worker_pool=worker_pool)
