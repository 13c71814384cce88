"""Where the time of a training step goes: stages, and within them phases.

    with phase("forward", tokens=n, flops=forward_flops(model, n)):
        …
    with phase("decode") as work:
        …
        work.add(tokens=n, flops=f)

Without an active profiler a phase does nothing. With one it reads the clock twice. Seconds are
exclusive: what an inner phase takes is not the outer one's, so the phases of a stage and its rest
(row `REST`: in no phase) add up to the stage. Tokens and FLOPs are counted where they are declared.
Work that another thread does while the stages go on is marked by `beside` and adds to no stage's
time. On CUDA, the clock waits for the device at the start and end of each phase and stage, so work
counts in the phase that launched it.
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
class PhaseTotal:
    """Time and work of one phase of one stage, summed over its calls.

    Attributes:
        beside: whether another thread did the work while the stages went on.
        seconds: without those of inner phases.
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
    """Where a phase declares work whose size it learns only inside the block."""

    def add(self, tokens: int = 0, flops: float = 0.0) -> None:
        """Add to what the phase has handled."""


def phase(name: str, tokens: int = 0, flops: float = 0.0) -> AbstractContextManager[Work]:
    """Count a block as a phase of this name, if a profiler is active.

    Args:
        tokens: tokens that the block handles.
        flops: 2 x multiply-adds of its matrix products, see `pipeline.machine.flops`.
    """
    profiler = Profiler.active
    return _IDLE if profiler is None else _Phase(profiler, name, tokens, flops)


def beside(stage: str) -> AbstractContextManager[None]:
    """Count this thread's phases in the block as work of a stage that has ended."""
    profiler = Profiler.active
    return _NO_PROFILER if profiler is None else profiler.beside(stage)


class Profiler:
    """Collects rows of stages and phases from all threads while it is active."""

    active: "Profiler | None" = None

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rows: dict[tuple[str, str, bool], PhaseTotal] = {}
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
        """Stop being the active profiler."""
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

    def take(self) -> list[PhaseTotal]:
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
        row = self._rows.setdefault(key, PhaseTotal(*key))
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
    """Per thread: seconds in the inner phases of each open phase, and the stage it works for."""

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
    """Drops what is declared while no profiler is active."""

    def add(self, tokens: int = 0, flops: float = 0.0) -> None:
        """Count nothing."""


_IDLE: AbstractContextManager[Work] = nullcontext(_Idle())
_NO_PROFILER: AbstractContextManager[None] = nullcontext()
