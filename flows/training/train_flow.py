"""The training flow: one Prefect task per stage around the loop of `flows.training.loop`.

Tasks take and return small JSON references to tables. Prefect keeps no results and no
cache; our manifests decide what is done. A stage is tried once more when the machine failed it
(a full disk, a lost file system); errors about data, settings or numbers are final.
"""

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from prefect import State, Task, flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import TaskRun
from prefect.exceptions import CancelledRun
from prefect.runtime import flow_run
from prefect.settings import temporary_settings
from prefect.states import Cancelled

from flows.prefect_api.calls import ApiError, calling, client_settings, unrecorded
from flows.session.open_run import checked_start, open_session
from flows.session.questions import stop_line
from flows.training.artifacts import Artifacts
from flows.training.disk_watch import DiskSpaceWatcher, disk_space_warnings
from flows.training.loop import Outcome, Reference, StopSwitch, Watcher, train
from flows.training.progress import Lines
from flows.training.watchdog import Watchdog
from flows.workers.runner_spec import RunnerSpec
from flows.workers.worker_pool import optional_pool
from pipeline.distributed.ranks import broken_off
from pipeline.errors import SrpoError
from pipeline.remote.mirror_paths import run_path
from pipeline.text import go_on, print_warnings

if TYPE_CHECKING:
    from flows.session.session import Session


def machine_failed(task_: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Tell whether a failed stage deserves a second try: operating system errors only.

    Other ranks that are still in the first one can't begin a second.
    """
    errors = (state.data, getattr(state.data, "exception", None))
    return any(isinstance(error, OSError) for error in errors) and not broken_off()


class StageTasks:
    """Runs stages as tasks, and counts them.

    Each task takes the reference that the stage before it returned, so that Prefect's pages show
    the chain; what a stage reads it finds by itself, in the run folder.
    """

    def __init__(self, session: "Session", watchers: Sequence[Watcher]) -> None:
        self.calls = 0
        self._session = session
        self._watchers = watchers
        self._tasks: dict[str, Callable[..., Reference]] = {}
        self._last: Reference | None = None

    def __call__(self, name: str, step: int) -> Reference:
        """Run one stage of one step."""
        if name not in self._tasks:
            self._tasks[name] = _stage_task(self._session, name, self._progress)
        self.calls += 1
        self._last = self._tasks[name](step, after=self._last)
        return self._last

    def _progress(self, done: int, total: int) -> None:
        for watcher in self._watchers:
            watcher.progress(done, total)


def _stage_task(
    session: "Session", name: str, progress: Callable[[int, int], None]
) -> Callable[..., Reference]:
    @task(
        name=name,
        task_run_name=f"{name}-{{step:06d}}",
        persist_result=False,
        cache_policy=NO_CACHE,
        retries=1,
        retry_delay_seconds=1,
        retry_condition_fn=machine_failed,
    )
    def stage(step: int, after: Reference | None) -> Reference:
        return session.run_stage(name, step, progress)

    return cast(Callable[..., Reference], stage)


def train_in_flow(session: "Session", tasks: StageTasks, watchers: Sequence[Watcher]) -> Outcome:
    """Train inside a flow run, with its artifacts."""
    artifacts = Artifacts(session.run)
    everyone = [*watchers, artifacts]
    with StopSwitch(everyone) as stop:
        try:
            outcome = train(session, tasks, everyone, stop)
        except SrpoError:
            artifacts.finish()
            raise
        artifacts.finish()
        return outcome


def run_training(session: "Session", watchers: Sequence[Watcher]) -> Outcome:
    """Train an open session as a flow run called like the run folder.

    Raises:
        SrpoError: from a stage, as it was raised; or the flow run's records did not arrive.
    """
    settings = session.config.run
    with Watchdog(session.run.root, settings.stall_seconds) as watchdog:
        return _run_training(session, [*watchers, watchdog], settings.prefect_seconds)


def _run_training(session: "Session", watchers: Sequence[Watcher], limit_seconds: float) -> Outcome:
    outcomes: list[Outcome] = []
    failures: list[SrpoError] = []
    runs: list[str] = []
    tasks = StageTasks(session, watchers)

    @flow(
        name="train",
        flow_run_name=session.run.root.resolve().name,
        persist_result=False,
        validate_parameters=False,
    )
    def train_open_session(run: str, config: dict[str, Any]) -> State[Any] | None:
        runs.append(str(flow_run.get_id()))
        try:
            outcomes.append(train_in_flow(session, tasks, watchers))
        except SrpoError as error:
            failures.append(error)
            raise
        return _final_state(outcomes[0], Path(run))

    folder = session.run.root.resolve()
    try:
        with temporary_settings(client_settings(limit_seconds)), calling():
            with contextlib.suppress(CancelledRun):  # how a training that was stopped is recorded
                train_open_session(str(folder), session.config.model_dump(mode="json"))
            _wait_for_records(runs[0], tasks.calls, limit_seconds)
    except ApiError as error:
        raise (failures or [unrecorded(error, session.run.root)])[0] from None
    return outcomes[0]


@flow(name="train", persist_result=False)
def train_flow(
    run: str,
    source: str | None = None,
    overrides: list[str] | None = None,
    resume: bool = False,
    runner: str | None = None,
) -> State[Any] | None:
    """Train as a deployment does: what `srpo train SOURCE --run RUN --set …` does.

    Args:
        run: the run's folder, on the worker.
        source: a preset or a TOML file; not needed to resume.
        overrides: settings, `section.key=value`.
        resume: go on with the run that is there.
        runner: as `--runner` takes it; its workers judge the responses.
    """
    spec = RunnerSpec.parse(runner) if runner else None
    folder = run_path(run)
    start = checked_start(source, folder, overrides or [], resume)
    from flows.training.alarm_fork import train_with_recovery

    trained = folder

    def train_session(session: "Session") -> Outcome:
        nonlocal trained
        trained = session.run.root
        print_warnings([*session.warnings(), *disk_space_warnings(session)])
        print(f"{trained}: {stop_line(session.run)}")
        limit_seconds = session.config.run.stall_seconds
        with (
            Watchdog(session.run.root, limit_seconds) as watchdog,
            optional_pool(spec, limit_seconds) as worker_pool,
        ):
            session.stages.spread_over(worker_pool)
            watchers = [DiskSpaceWatcher(session), Lines(session), watchdog]
            return train_in_flow(session, StageTasks(session, watchers), watchers)

    outcome = train_with_recovery(open_session(start), train_session)
    return _final_state(outcome, trained)


def _final_state(outcome: Outcome, run: Path) -> State[Any] | None:
    """Return None, which means completed, or the state of a training that was stopped."""
    if outcome.ended not in ("stopped", "alarm"):
        return None
    why = "by an alarm " if outcome.ended == "alarm" else ""
    return Cancelled(message=f"stopped {why}after {outcome.steps_done} steps; go on: {go_on(run)}")


def _wait_for_records(run: str, expected: int, limit_seconds: float) -> None:
    """Wait until the server has recorded the end of all task runs of a flow run.

    Task runs are reported as events and recorded by and by; a server of ours ends with the run.
    """
    ended = {"state": {"type": {"any_": ["COMPLETED", "FAILED", "CRASHED"]}}}
    wanted = {"flow_runs": {"id": {"any_": [run]}}, "task_runs": ended}
    deadline = time.monotonic() + limit_seconds
    with get_client(sync_client=True) as client:
        while True:
            recorded = int(client.request("POST", "/task_runs/count", json=wanted).json())
            if recorded >= expected:
                return
            if time.monotonic() > deadline:
                break
            time.sleep(0.1)
    raise SrpoError(
        f"waited {limit_seconds:g} s (run.prefect_seconds) for Prefect to record flow run {run}: "
        f"{recorded} of {expected} task runs are there; the run itself is complete on disk"
    )
