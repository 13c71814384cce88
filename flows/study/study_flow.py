"""The study's flow: a Prefect task for each run, so many at a time."""

import queue
from collections.abc import Callable, Sequence
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.settings import temporary_settings
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from flows.prefect_api.calls import ApiError, calling, client_settings
from flows.prefect_api.server import LIMIT_SECONDS
from flows.study.children import Ended, Job, Stop, run_child
from pipeline.errors import SrpoError

OnBegin = Callable[[Job], None]
OnEnd = Callable[[Job, Ended], None]


def make_all(
    jobs: Sequence[Job], at_once: int, stop: Stop, on_begin: OnBegin, on_end: OnEnd
) -> None:
    """Run jobs in order, `at_once` at a time, as the tasks of one flow run.

    Args:
        on_begin: told of each job, in a thread of the task, before its child starts.
        on_end: told of each job, in this thread.

    Raises:
        SrpoError: Prefect's API failed; or from `on_end`.
    """
    ends: queue.Queue[tuple[Job, Ended]] = queue.Queue()

    @task(name="run", persist_result=False, cache_policy=NO_CACHE)
    def run(number: int) -> None:
        job, ended = jobs[number], Ended(0.0, "the task never ran")
        try:
            on_begin(job)
            ended = run_child(job, stop)
        except OSError as error:
            ended = Ended(0.0, f"{error}")
        finally:
            ends.put((job, ended))
        if ended.trouble:
            raise SrpoError(f"{job.name}: {ended.trouble}")

    runner: TaskRunner[Any] = ThreadPoolTaskRunner(max_workers=at_once)

    @flow(
        name="study",
        persist_result=False,
        validate_parameters=False,
        task_runner=runner,
    )
    def study(names: list[str]) -> None:
        with stop:
            futures = [
                run.with_options(task_run_name=name).submit(number)
                for number, name in enumerate(names)
            ]
            for _ in futures:
                on_end(*ends.get())
            for future in futures:
                future.wait()

    try:
        with temporary_settings(client_settings(LIMIT_SECONDS)), calling():
            study([job.name for job in jobs])
    except ApiError as error:
        raise SrpoError(f"{error}; finished runs are kept: run the same command again") from None
