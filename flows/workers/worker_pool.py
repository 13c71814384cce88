"""Work fanned out: a function over many small arguments, each a Prefect task on workers elsewhere.

    worker_pool.map("verify", "flows.workers.verdict_shards:judge_part", [{…}, {…}, …])

returns the results in order.

A pool opens its cluster when it is first needed and keeps it. Each `map` is one flow run on the
task runner that `--runner` names, under the flow run that is there. What travels is small JSON,
both ways: workers find their inputs, and leave what they made, in files.

A worker that is lost costs its piece of work, which is done again: Ray and Dask see to that by
themselves; a pool of processes breaks whole, and what it had not done goes to a new one.

Workers import this module, so it imports nothing heavy.
"""

import contextlib
import importlib
import os
import queue
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from multiprocessing import parent_process
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any, Self

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.context import TaskRunContext
from prefect.futures import PrefectFuture
from prefect.task_runners import TaskRunner

from flows.prefect_api.calls import ApiError, calling, warn
from flows.prefect_api.killed_runs import this_process
from flows.workers.runner_spec import RunnerSpec, cluster_of
from pipeline.errors import SrpoError
from pipeline.text import printable

if TYPE_CHECKING:
    from pipeline.stage.contract import Progress

Item = dict[str, Any]
"""Arguments of one piece of work: small JSON."""

LIMIT_SECONDS = 3600.0
"""After so long without a piece of work done, a command that has no other limit ends."""
_SHOWN = 200
_GO_ON = "what is done is kept: run the same command again, a training with --resume"
_LOST_IN_A_ROW = 3
"""So many pools of processes may break, one after the other, without a piece of work done."""


class WorkerPool:
    """The workers that `--runner` names, for as long as a command needs them.

    Args:
        limit_seconds: how long `map` waits for the next piece of work to be done; None: for ever.
    """

    def __init__(self, spec: RunnerSpec, limit_seconds: float | None = LIMIT_SECONDS) -> None:
        self.spec = spec
        self._limit_seconds = limit_seconds
        self._stack = contextlib.ExitStack()
        self._opened = False
        self._cluster: str | None = None

    def __enter__(self) -> Self:
        """Use the pool for a block."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the workers that were started here."""
        self._stack.close()

    def map(
        self, name: str, function: str, items: Sequence[Item], progress: "Progress | None" = None
    ) -> list[Any]:
        """Call a function with each item's arguments on the workers; return results in order.

        Args:
            name: of the flow run, and of the work in errors.
            function: `module:name`; its result is JSON.
            progress: told of pieces done.

        Raises:
            SrpoError: the function's own, with piece, host and process; or workers are lost again
                and again, or nothing is done for `limit_seconds`.
        """
        if not items:
            return []
        if not self._opened:
            self._cluster = self._stack.enter_context(cluster_of(self.spec))
            self._opened = True
        found: dict[int, Any] = {}
        losses = 0
        while len(found) < len(items):
            known = len(found)
            try:
                self._run_missing(_Batch(name, function, items, found, progress))
            except ApiError as error:
                if len(found) < len(items):
                    raise self._unplaced(name, len(items) - len(found), error) from error
                warn(error)  # it failed to record the end of what is done
            except Exception as error:
                if not self.spec.lost(error):
                    raise
                losses = losses + 1 if len(found) == known else 1
                if self.spec.kind != "processes" or losses == _LOST_IN_A_ROW:
                    raise self._lost(name, len(items) - len(found), error) from error
        return [found[i] for i in range(len(items))]

    def _run_missing(self, batch: "_Batch") -> None:
        """Run the items that have no result yet, in one flow run."""
        batch.limit_seconds = self._limit_seconds
        with calling(), self.spec.task_runner(self._cluster) as batch.runner, _standing_in():
            token = _batch.set(batch)
            try:
                pieces = len(batch.items) - len(batch.found)
                fan_out(batch.name, batch.function, pieces, this_process())
            finally:
                _batch.reset(token)

    def _unplaced(self, name: str, left: int, error: ApiError) -> SrpoError:
        return SrpoError(
            f"{name} can't be placed on {self.spec}: {error}; {left} pieces of work are left, and "
            f"{_GO_ON}"
        )

    def _lost(self, name: str, left: int, error: Exception) -> SrpoError:
        reason = printable(" ".join(f"{error}".split())[-_SHOWN:])  # of a traceback, its end
        return SrpoError(
            f"{name} on {self.spec}: workers were lost again and again, or can't do it, with "
            f"{left} pieces of work left ({type(error).__name__}: {reason}); {_GO_ON}, once the "
            "workers are there, with memory enough and the same installation as here"
        )


@contextlib.contextmanager
def optional_pool(
    spec: RunnerSpec | None, limit_seconds: float | None
) -> Iterator[WorkerPool | None]:
    """Open the pool of a runner for a block; yield None where there is no runner."""
    if spec is None:
        yield None
        return
    with WorkerPool(spec, limit_seconds) as worker_pool:
        yield worker_pool


@contextlib.contextmanager
def _standing_in() -> Iterator[None]:
    """Put a small task in the stage's place: that would travel with each piece, session and all."""
    around = TaskRunContext.get()
    if around is None:
        yield
        return
    with TaskRunContext(
        task=work,
        task_run=around.task_run,
        parameters={},
        result_store=around.result_store,
        persist_result=False,
        client=around.client,
    ):
        yield


@flow(name="fan-out", flow_run_name="{name}", persist_result=False, validate_parameters=False)
def fan_out(name: str, function: str, pieces: int, process: str) -> None:
    """Run pieces of work as tasks, and collect their results.

    A flow and its parameters travel with each of its tasks, and its own task runner is started
    beside each of them. So this one refers to nothing, and the runner that places the work is not
    its own: that stays, with all else, in the process that asked, which `process` names.
    """
    place_and_collect()


def machine_failed(task_: Any, run: Any, state: Any) -> bool:
    """Tell whether a piece deserves a second try: the operating system made it fail."""
    return isinstance(getattr(state.data, "exception", state.data), OSError)


@task(
    name="piece",
    persist_result=False,
    cache_policy=NO_CACHE,
    retries=1,
    retry_delay_seconds=1,
    retry_condition_fn=machine_failed,
)
def work(function: str, label: str, item: Item) -> Any:
    """Call a function on a worker; the task refers to nothing that would have to travel."""
    return call_by_name(function, label, item)


def call_by_name(function: str, label: str, item: Item) -> Any:
    """Import a function by name and call it, on a worker; an error says where it was raised."""
    _end_with_parent()
    module, _, name = function.partition(":")
    try:
        return getattr(importlib.import_module(module), name)(**item)
    except SrpoError as error:
        where = f"{label}, on {socket.gethostname()}, process {os.getpid()}"
        raise type(error)(f"{where}: {error}") from None


def _end_with_parent() -> None:
    """End this process with the one that started it; a pool's processes would wait for ever."""
    parent = parent_process()
    if parent is None or any(t.name == "end-with-parent" for t in threading.enumerate()):
        return

    def watch(sentinel: int) -> None:
        wait([sentinel])
        os._exit(1)

    arguments = (parent.sentinel,)
    threading.Thread(target=watch, args=arguments, name="end-with-parent", daemon=True).start()


@dataclass
class _Batch:
    """Items that a pool works on, and their results as they come in."""

    name: str
    function: str
    items: Sequence[Item]
    found: dict[int, Any]
    progress: "Progress | None"
    limit_seconds: float | None = None
    runner: TaskRunner[Any] | None = None


_batch: ContextVar[_Batch] = ContextVar("batch")


def place_and_collect() -> None:
    """Submit the pieces of a flow run; take results in, whatever the order in which they end."""
    batch, ended = _batch.get(), queue.Queue[int]()
    waiting = {i: item for i, item in enumerate(batch.items) if i not in batch.found}
    submitted = {i: _submit(batch, i, item) for i, item in waiting.items()}
    for number, future in submitted.items():
        future.add_done_callback(_reporting(ended, number))
    for _ in submitted:
        try:
            number = ended.get(timeout=batch.limit_seconds)
        except queue.Empty:
            raise SrpoError(
                f"{batch.name}: no piece of work was done for {batch.limit_seconds:g} s: "
                f"{len(batch.found)} of {len(batch.items)} are; are there workers?"
            ) from None
        batch.found[number] = submitted[number].result()
        if batch.progress is not None:
            batch.progress(len(batch.found), len(batch.items))


def _reporting(ended: "queue.Queue[int]", number: int) -> Callable[[object], None]:
    return lambda _: ended.put(number)


def _submit(batch: _Batch, number: int, item: Item) -> PrefectFuture[Any]:
    assert batch.runner is not None
    label = f"{batch.name}, piece {number + 1} of {len(batch.items)}"
    piece = work.with_options(task_run_name=f"{batch.name}-{number + 1:04d}")
    arguments = {"function": batch.function, "label": label, "item": item}
    submitted: PrefectFuture[Any] = batch.runner.submit(piece, arguments)
    return submitted
