"""The training loop, free of Prefect: the order of stages, what follows a step, and how it ends.

    evaluate 0
    step 0:  generate → verify → (bank) → route → weigh → update → metrics → (evaluate 1)
             → (snapshot 1)
    step 1:  …
    the state at the end is always evaluated and kept, unless somebody asked to stop: then it is
    kept at once, and whatever is missing is made up for on resume.

A state is named by its number of steps done: evaluation N and snapshot N follow step N - 1.
"""

import signal
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Literal, Protocol, Self

from pipeline.config.sections import Config
from pipeline.run.step_layout import stages_of

Reference = dict[str, Any]
"""What a stage returns to the flow: places and sizes of its tables; small JSON."""

Call = Callable[[str, int], Reference]
Ending = Literal["steps", "hours", "stopped", "alarm"]
Signalled = Callable[[int, FrameType | None], Any] | int | None


class TrainingSession(Protocol):
    """What the loop needs of `flows.session.session.Session`."""

    @property
    def config(self) -> Config:
        """The run's configuration."""

    def next_step(self) -> int:
        """Return the first step whose work is not complete."""

    def prepare(self, step: int, progress: Callable[[int, int], None] | None = None) -> object:
        """Open the policy as it is before `step`."""

    def finish_step(self, step: int) -> dict[str, Any]:
        """Write and return the flat record of a step."""

    def evaluation_due(self, steps_done: int) -> bool:
        """Tell whether the schedule evaluates this state."""

    def snapshot_due(self, steps_done: int) -> bool:
        """Tell whether the schedule keeps this state."""

    def snapshot(self, steps_done: int) -> Path:
        """Keep this state, if it isn't kept yet."""

    def evaluation_summary(self, steps_done: int) -> dict[str, Any]:
        """Return accuracy and so on of an evaluated state."""

    def training_seconds(self) -> float:
        """Return the time spent on training so far, without evaluations."""

    def writing_beside(self) -> AbstractContextManager[None]:
        """Let tables of a step be written beside its next stages, until the block ends."""


class Watcher:
    """Is told what happens; does nothing by itself."""

    def stage_started(self, name: str, step: int) -> None:
        """A stage, `prepare` or `snapshot` begins."""

    def progress(self, done: int, total: int) -> None:
        """The running stage has handled `done` of its `total` units."""

    def stage_ended(self, name: str, reference: Reference) -> None:
        """A stage ended with these tables."""

    def step_ended(self, steps_done: int, metrics: dict[str, Any]) -> None:
        """A training step is complete."""

    def evaluated(self, steps_done: int, summary: dict[str, Any]) -> None:
        """A state has been evaluated."""

    def stopping(self) -> None:
        """Somebody asked to stop; called from a signal handler, so it must not take locks."""


@dataclass(frozen=True)
class Outcome:
    """How a session of training ended."""

    steps_done: int
    ended: Ending


class StopSwitch:
    """Turns the first SIGINT or SIGTERM into a question that the loop asks between stages.

    The second one raises KeyboardInterrupt there and then: what is committed stays, and nothing
    else has a name that a reader would look at.
    """

    def __init__(self, watchers: Sequence[Watcher] = ()) -> None:
        self._watchers = watchers
        self._asked = False
        self._previous: dict[int, Signalled] = {}

    def __call__(self) -> bool:
        """Tell whether a stop was asked for."""
        return self._asked

    def __enter__(self) -> Self:
        """Install the handlers; other threads than the main one can't have any."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        """Put the former handlers back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        for watcher in self._watchers:
            watcher.stopping()


@dataclass
class _Loop:
    session: TrainingSession
    call: Call
    watchers: Sequence[Watcher]
    stop: Callable[[], bool]
    evaluated: set[int] = field(default_factory=set)
    alarmed: bool = False

    def run_stage(self, name: str, step: int) -> None:
        for watcher in self.watchers:
            watcher.stage_started(name, step)
        reference = self.call(name, step)
        for watcher in self.watchers:
            watcher.stage_ended(name, reference)

    def prepare(self, step: int) -> None:
        for watcher in self.watchers:
            watcher.stage_started("prepare", step)

        def progress(done: int, total: int) -> None:
            for watcher in self.watchers:
                watcher.progress(done, total)

        self.session.prepare(step, progress)

    def run_step(self, step: int) -> bool:
        """Run the stages of a step; False: stopped between two of them."""
        for name in stages_of(self.session.config):
            if self.stop():
                return False
            self.run_stage(name, step)
        metrics = self.session.finish_step(step)
        self.alarmed = any(alarm["severe"] for alarm in metrics.get("alarms") or [])
        for watcher in self.watchers:
            watcher.step_ended(step + 1, metrics)
        return True

    def evaluate(self, steps_done: int) -> None:
        if steps_done in self.evaluated:
            return
        self.run_stage("evaluate", steps_done)
        self.evaluated.add(steps_done)
        summary = self.session.evaluation_summary(steps_done)
        for watcher in self.watchers:
            watcher.evaluated(steps_done, summary)

    def keep(self, steps_done: int) -> None:
        for watcher in self.watchers:
            watcher.stage_started("snapshot", steps_done)
        self.session.snapshot(steps_done)

    def follow_up(self, steps_done: int) -> None:
        """Do what the schedule wants of a state."""
        if not self.stop() and (steps_done == 0 or self.session.evaluation_due(steps_done)):
            self.evaluate(steps_done)
        if not self.stop() and self.session.snapshot_due(steps_done):
            self.keep(steps_done)

    def ending(self, steps_done: int) -> Ending | None:
        """Tell why there shall be no further step, if so."""
        limits = self.session.config.run
        if self.stop():
            return "stopped"
        if self.alarmed and limits.on_alarm != "continue":
            return "alarm"
        if steps_done >= limits.steps:
            return "steps"
        if limits.max_hours and self.session.training_seconds() >= limits.max_hours * 3600:
            return "hours"
        return None


def train(
    session: TrainingSession, call: Call, watchers: Sequence[Watcher], stop: Callable[[], bool]
) -> Outcome:
    """Train from the first incomplete step until the run's limits, or until `stop()`.

    Args:
        call: runs a stage of a step; the flow makes it a Prefect task.
        stop: asked between any two stages.
    """
    loop = _Loop(session, call, watchers, stop)
    with session.writing_beside():
        done = session.next_step()
        loop.prepare(done)
        loop.follow_up(done)
        while (ended := loop.ending(done)) is None:
            if loop.run_step(done):
                done += 1
                loop.follow_up(done)
        if ended != "stopped":
            loop.evaluate(done)
        loop.keep(done)
        return Outcome(done, ended)
