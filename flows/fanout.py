"""Work fanned out: a function over many small arguments, each a Prefect task on workers elsewhere.

    crew.map("verify", "flows.shards:judge_part", [{…}, {…}, …])    results, in order

A crew opens its place's cluster when it is first needed and keeps it. Each `map` is one flow run
on that place's task runner, under the flow run that is there. What travels is small JSON, both
ways: workers find their inputs, and leave what they made, in files.

A worker that is lost costs its piece of work, which is done again: Ray and Dask see to that by
themselves; a pool of processes breaks whole, and what it had not done goes to a new one.
"""

import contextlib
import importlib
import os
import queue
import socket
import threading
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from multiprocessing import parent_process
from multiprocessing.connection import wait
from types import TracebackType
from typing import Any, Self

from prefect import Task, flow, task
from prefect.cache_policies import NO_CACHE
from prefect.context import TaskRunContext
from prefect.futures import PrefectFuture
from prefect.task_runners import TaskRunner

from flows.api import ApiError, calling
from flows.placing import Place, cluster_of
from pipeline.errors import SrpoError
from pipeline.stage import Progress, silent

Item = dict[str, Any]
"""Arguments of one piece of work: small JSON."""

LIMIT_SECONDS = 3600.0
"""Without any piece of work done, after which a command ends that has no other limit."""
_LOST_IN_A_ROW = 3
"""Pools of processes that may break without a piece of work done by them."""


class Crew:
    """The workers of a place, for as long as a command needs them.

    Args:
        limit_seconds: how long `map` waits for the next piece of work to be done; None: for ever.
    """

    def __init__(self, place: Place, limit_seconds: float | None = LIMIT_SECONDS) -> None:
        self.place = place
        self._limit_seconds = limit_seconds
        self._stack = contextlib.ExitStack()
        self._opened = False
        self._cluster: str | None = None

    def __enter__(self) -> Self:
        """Have the crew for a block."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the workers that were started here."""
        self._stack.close()

    def map(
        self, name: str, function: str, items: Sequence[Item], progress: Progress = silent
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
            self._cluster = self._stack.enter_context(cluster_of(self.place))
            self._opened = True
        found: dict[int, Any] = {}
        losses = 0
        while len(found) < len(items):
            known = len(found)
            try:
                self._spread(name, function, items, _Collection(found, len(items), progress))
            except self.place.losses() as error:
                losses = losses + 1 if len(found) == known else 1
                if self.place.kind != "processes" or losses == _LOST_IN_A_ROW:
                    raise self._lost(name, len(items) - len(found), error) from error
            except ApiError as error:
                raise SrpoError(f"{name} can't be placed on {self.place}: {error}") from error
        return [found[i] for i in range(len(items))]

    def _spread(
        self, name: str, function: str, items: Sequence[Item], collection: "_Collection"
    ) -> None:
        """Have done what is not found yet, in one flow run."""
        waiting = [(i, items[i]) for i in range(len(items)) if i not in collection.found]
        collection.limit_seconds = self._limit_seconds
        with calling(), self.place.task_runner(self._cluster) as collection.runner, _light():
            token = _collection.set(collection)
            try:
                fan_out(name, function, waiting, len(items))
            finally:
                _collection.reset(token)

    def _lost(self, name: str, left: int, error: Exception) -> SrpoError:
        return SrpoError(
            f"{name} on {self.place}: workers were lost again and again, with {left} pieces of "
            f"work to do ({type(error).__name__}): too little memory there? What is done is kept"
        )


@contextlib.contextmanager
def crew_at(place: Place | None, limit_seconds: float | None) -> Iterator[Crew | None]:
    """Have the crew of a place for a block; no place: no crew."""
    if place is None:
        yield None
        return
    with Crew(place, limit_seconds) as crew:
        yield crew


@contextlib.contextmanager
def _light() -> Iterator[None]:
    """Have a stage's task stand in for itself: it would travel with each piece, session and all."""
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
def fan_out(name: str, function: str, items: list[tuple[int, Item]], total: int) -> None:
    """Have pieces of work done by tasks, and collect their results.

    A flow travels with each of its tasks, and its own task runner is started beside each of them.
    So it refers to nothing but modules, and its runner is not the one that places the work.

    Args:
        items: number of the piece, from 0, and its arguments.
        total: pieces in all, those done before included.
    """
    for number, item in items:
        label = f"{name}, piece {number + 1} of {total}"
        piece = work.with_options(task_run_name=f"{name}-{number + 1:04d}")
        submit(number, piece, {"function": function, "label": label, "item": item})
    collect()


def machine_failed(task_: Any, run: Any, state: Any) -> bool:
    """Tell whether a piece deserves a second try: the operating system failed it."""
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
    """Call a function, by name, on a worker; an error says where it was raised."""
    return called(function, label, item)


def called(function: str, label: str, item: Item) -> Any:
    """Call a function, by name, on a worker; an error says where it was raised."""
    _end_with_parent()
    module, _, name = function.partition(":")
    try:
        return getattr(importlib.import_module(module), name)(**item)
    except SrpoError as error:
        place = f"{label}, on {socket.gethostname()}, process {os.getpid()}"
        raise type(error)(f"{place}: {error}") from None


def _end_with_parent() -> None:
    """End this process with the one that started it: a pool's would wait for ever."""
    parent = parent_process()
    if parent is None or any(t.name == "end-with-parent" for t in threading.enumerate()):
        return

    def watch(sentinel: int) -> None:
        wait([sentinel])
        os._exit(1)

    arguments = (parent.sentinel,)
    threading.Thread(target=watch, args=arguments, name="end-with-parent", daemon=True).start()


@dataclass
class _Collection:
    """What stays in the process that asked: the runner, and results as they come in."""

    found: dict[int, Any]
    total: int
    progress: Progress
    limit_seconds: float | None = None
    runner: TaskRunner[Any] | None = None
    submitted: dict[int, PrefectFuture[Any]] = field(default_factory=dict)
    ended: queue.Queue[int] = field(default_factory=queue.Queue)


_collection: ContextVar[_Collection] = ContextVar("collection")


def submit(number: int, piece: Task[..., Any], parameters: Item) -> None:
    """Place a piece of work of the flow run."""
    here = _collection.get()
    assert here.runner is not None
    here.submitted[number] = here.runner.submit(piece, parameters)
    here.submitted[number].add_done_callback(lambda _: here.ended.put(number))


def collect() -> None:
    """Take in the results of the flow run's pieces, whatever the order in which they end."""
    here = _collection.get()
    for _ in here.submitted:
        try:
            number = here.ended.get(timeout=here.limit_seconds)
        except queue.Empty:
            raise SrpoError(
                f"no piece of work was done for {here.limit_seconds:g} s: "
                f"{len(here.found)} of {here.total} are; are there workers?"
            ) from None
        here.found[number] = here.submitted[number].result()
        here.progress(len(here.found), here.total)
