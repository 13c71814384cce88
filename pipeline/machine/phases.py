"""Where the time of a training step goes: stages, and within them phases.

    with phase("forward", tokens=n, flops=forward_flops(model, n)):
        …
    with phase("decode") as work:
        …
        work.add(tokens=n, flops=f)

Without an active profiler a phase does nothing. With one it reads the clock twice. Seconds are
exclusive: what an inner phase takes is not the outer one's, so the phases of a stage and its rest
(row `REST`: in no phase) add up to the stage. Tokens and FLOPs are counted where they are declared.
Work beside the stages, in a thread of its own, is named by `beside` and adds to no stage's time.
On CUDA, borders of phases and stages wait for the device: work counts where it was asked for.
"""

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol, Self

import torch

REST = "rest"
"""The row of a stage's time that is in no phase."""


@dataclass
class Row:
    """What one phase of one stage took, all its calls together.

    Attributes:
        beside: whether another thread did it, while the stages went on.
        seconds: without those of phases inside this one.
        tokens, flops: as declared; 0 where nothing was.
    """

    stage: str
    phase: str
    beside: bool
    calls: int = 0
    seconds: float = 0.0
    tokens: int = 0
    flops: float = 0.0


class Work(Protocol):
    """What a phase is told when it is over."""

    def add(self, tokens: int = 0, flops: float = 0.0) -> None:
        """Add to what the phase has handled."""


def phase(name: str, tokens: int = 0, flops: float = 0.0) -> AbstractContextManager[Work]:
    """Count a block under this name, if somebody profiles.

    Args:
        tokens: tokens that the block handles.
        flops: 2 x multiply-adds of its matrix products, see `pipeline.machine.flops`.
    """
    profiler = Profiler.active
    return _IDLE if profiler is None else _Phase(profiler, name, tokens, flops)


def beside(stage: str) -> AbstractContextManager[None]:
    """Say that what this thread does in the block is work of a stage that has ended."""
    profiler = Profiler.active
    return _NOBODY if profiler is None else profiler.beside(stage)


class Profiler:
    """Collects rows of stages and phases from all threads while it is active."""

    active: "Profiler | None" = None

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rows: dict[tuple[str, str, bool], Row] = {}
        self._thread = _Nesting()
        self._stage: str | None = None
        self._started = self._inside = 0.0

    def __enter__(self) -> Self:
        """Become the active profiler of this process."""
        if Profiler.active is not None:
            raise RuntimeError("a profiler is active already")
        Profiler.active = self
        return self

    def __exit__(self, *_: object) -> None:
        """Be active no longer."""
        Profiler.active = None

    def start(self, stage: str) -> None:
        """Begin a stage; phases that no `beside` claims are its phases. Ends the one before."""
        self.stop()
        now = clock()
        with self._lock:
            self._stage, self._started, self._inside = stage, now, 0.0

    def stop(self) -> None:
        """End the stage; phases outside of any stage are not counted."""
        if self._stage is None:
            return
        elapsed = clock() - self._started
        with self._lock:
            self._add(self._stage, REST, False, 0, elapsed - self._inside, 0, 0.0)
            self._stage = None

    def take(self) -> list[Row]:
        """Return the rows since the last call, in the order in which they began to count."""
        with self._lock:
            rows, self._rows = list(self._rows.values()), {}
        return rows

    @contextmanager
    def beside(self, stage: str) -> Iterator[None]:
        """Count phases of this thread as work beside the stages."""
        former, self._thread.beside = self._thread.beside, stage
        try:
            yield
        finally:
            self._thread.beside = former

    def enter(self) -> float:
        """Begin a phase on this thread; return the time."""
        self._thread.inner.append(0.0)
        return clock()

    def leave(self, name: str, started: float, tokens: int, flops: float) -> None:
        """End the innermost phase of this thread."""
        elapsed = clock() - started
        inner, aside = self._thread.inner, self._thread.beside
        own = elapsed - inner.pop()
        if inner:
            inner[-1] += elapsed
        with self._lock:
            stage = aside or self._stage
            if stage is None:
                return
            if not inner and aside is None:
                self._inside += elapsed
            self._add(stage, name, aside is not None, 1, own, tokens, flops)

    def _add(
        self, stage: str, name: str, aside: bool, calls: int, took: float, tokens: int, flops: float
    ) -> None:
        key = stage, name, aside
        row = self._rows.setdefault(key, Row(*key))
        row.calls += calls
        row.seconds += took
        row.tokens += tokens
        row.flops += flops


def clock() -> float:
    """Return the time in seconds, when all work that was given to the device is done."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
    return perf_counter()


class _Nesting(threading.local):
    """Of each thread: seconds inside each open phase's inner phases, and whose work it does."""

    def __init__(self) -> None:
        self.inner: list[float] = []
        self.beside: str | None = None


class _Phase:
    """One call of one phase."""

    __slots__ = ("_flops", "_name", "_profiler", "_started", "_tokens")

    def __init__(self, profiler: Profiler, name: str, tokens: int, flops: float) -> None:
        self._profiler, self._name = profiler, name
        self._tokens, self._flops = tokens, flops

    def add(self, tokens: int = 0, flops: float = 0.0) -> None:
        self._tokens += tokens
        self._flops += flops

    def __enter__(self) -> Self:
        self._started = self._profiler.enter()
        return self

    def __exit__(self, *_: object) -> None:
        self._profiler.leave(self._name, self._started, self._tokens, self._flops)


class _Idle:
    """Listens to no one."""

    def add(self, tokens: int = 0, flops: float = 0.0) -> None:
        """Count nothing."""


_IDLE: AbstractContextManager[Work] = nullcontext(_Idle())
_NOBODY: AbstractContextManager[None] = nullcontext()
