"""`srpo train --profile`: profiles every step, and prints where the time went."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from rich.console import Console
from rich.table import Table

from flows.training.loop import Reference, Watcher
from pipeline.machine.flops import matmul_rate
from pipeline.machine.phases import Profiler
from pipeline.policy.policy import resolve_device
from pipeline.run.run import Run
from pipeline.run.step_layout import ALL_STAGES, STEP_STAGES, stages_of
from pipeline.run.step_profiles import (
    BETWEEN,
    Line,
    Machine,
    Profile,
    lines_of,
    write_profile,
)
from pipeline.text import NOTHING, count, number, percent

SHOWN = 0.005
"""Share of a step from which on the printed table has a phase."""


@contextmanager
def profiled(session: "Profiled", console: Console) -> Iterator[list[Watcher]]:
    """Profile the steps of a block whose training tells these watchers; then print the table."""
    with Profiler() as profiler:
        watcher = ProfileWatcher(session, profiler)
        yield [watcher]
    print_profile(console, watcher.machine, watcher.profiles)


class Profiled(Protocol):
    """A session, and the run that it writes."""

    run: Run


class ProfileWatcher(Watcher):
    """Marks the borders of stages, and writes the profile of each step that it saw whole.

    Counted are the stages of training steps and what is between them. Evaluations, snapshots and
    replayed updates are not; neither is a step of which a stage was done before.
    """

    def __init__(self, session: Profiled, profiler: Profiler) -> None:
        self.profiles: list[Profile] = []
        self.machine = machine_of(session.run)
        self._run, self._profiler = session.run, profiler
        self._seen: list[str] = []

    def stage_started(self, name: str, step: int) -> None:
        """Begin a stage."""
        if name == STEP_STAGES[0]:
            self._profiler.take()
            self._seen = []
        if name in ALL_STAGES:
            self._profiler.start(name)
        else:
            self._profiler.stop()

    def stage_ended(self, name: str, reference: Reference) -> None:
        """End a stage; what follows is between stages."""
        if name in ALL_STAGES:
            self._profiler.start(BETWEEN)
            self._seen += [] if reference["skipped"] else [name]

    def step_ended(self, steps_done: int, metrics: dict[str, Any]) -> None:
        """Write the profile of the step."""
        self._profiler.stop()
        rows = self._profiler.take()
        if tuple(self._seen) == stages_of(self._run.config):
            self.profiles.append(write_profile(self._run, steps_done - 1, self.machine, rows))


def machine_of(run: Run) -> Machine:
    """Measure the machine with the run's device, precision and threads."""
    model = run.config.model
    device = resolve_device(model.device)
    dtype = torch.bfloat16 if model.precision == "bfloat16" else torch.float32
    return Machine(
        device=device.type,
        dtype=model.precision,
        threads=torch.get_num_threads(),
        matmul_flops=matmul_rate(device, dtype),
    )


def print_profile(console: Console, machine: Machine, profiles: list[Profile]) -> None:
    """Print where the time of these steps went."""
    if not profiles:
        console.print("no step was profiled from its beginning to its end", highlight=False)
        return
    rate = f"{machine.matmul_flops / 1e9:,.0f} GFLOP/s, {machine.dtype}"
    table = Table(
        title=f"where the time of {_steps(len(profiles))} went; matrix products: {rate}",
        box=None,
        title_justify="left",
    )
    table.add_column("stage")
    names = ("s/step", "share", "tokens/s", "GFLOP/s", "of rate", "peak MB", "written")
    for name in names:
        table.add_column(name, justify="right")
    lines = lines_of(profiles)
    shown = [n for n in lines if not n.phase or n.seconds >= SHOWN * lines[-1].seconds]
    for line in shown:
        table.add_row(_name(line), *_cells(line), style=None if line.phase else "bold")
    console.print(table, highlight=False)
    if len(shown) < len(lines):
        hidden = f"{len(lines) - len(shown)} phases under {SHOWN:.1%} of a step"
        console.print(f" {hidden} are left out; the run's page has them (srpo view)")


def _steps(number_of: int) -> str:
    return "1 step" if number_of == 1 else f"{number_of} steps"


def _name(line: Line) -> str:
    aside = ", beside" if line.beside else ""
    return f"  {line.phase}{aside}" if line.phase else line.stage or "whole step"


def _cells(line: Line) -> list[str]:
    flops = line.flops_per_second
    return [
        f"{line.seconds:,.3f}",
        percent(line.share),
        count(line.tokens_per_second),
        number(None if flops is None else flops / 1e9),
        percent(line.of_rate),
        count(line.peak_mb),
        NOTHING if line.written_mb is None else f"{line.written_mb:.2f} MB",
    ]
