"""What a person sees of a training: a live display on a terminal, else a line per step."""

import os
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.text import Text

from flows.training.loop import Reference, TrainingSession, Watcher
from flows.training.step_text import alarm_line, interval, step_line, tasks_text, troubles
from pipeline.run.step_layout import STEP_STAGES
from pipeline.text import NOTHING, count, duration, number, percent

_WIDE_FROM = 80
"""Columns of a terminal from which on names and bars have their full length."""
_WIDE, _NARROW = 24, 10
STOP_NOTE = "stopping after this stage; Ctrl-C again stops at once"


class Pace:
    """Estimates the time left from this session's steps and what came between them."""

    def __init__(self, session: TrainingSession) -> None:
        self._session = session
        self._started: float | None = None
        self._steps = 0

    def step_started(self) -> None:
        """The first call starts the clock."""
        self._started = self._started or time.monotonic()

    def step_ended(self) -> None:
        """Count a step."""
        self._steps += 1

    def seconds_left(self, steps_done: int) -> float | None:
        """Return the time until the run's limits, if there is anything to judge it by."""
        if self._started is None or self._steps == 0:
            return None
        limits = self._session.config.run
        per_step = (time.monotonic() - self._started) / self._steps
        left = per_step * (limits.steps - steps_done)
        if limits.max_hours is None:
            return left
        return max(0.0, min(left, limits.max_hours * 3600 - self._session.training_seconds()))


class UnreportedAlarms:
    """Tells each alarm once: those of an evaluation are in the next step's record too."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def take(self, record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """Return the new alarms of a step's or an evaluation's record."""
        found = [alarm for alarm in record.get("alarms") or [] if alarm["rule"] not in self._told]
        self._told |= {alarm["rule"] for alarm in found}
        return found


class Lines(Watcher):
    """One plain line per step, evaluation and alarm."""

    def __init__(self, session: TrainingSession) -> None:
        self._session = session
        self._pace = Pace(session)
        self._unreported = UnreportedAlarms()

    def stage_started(self, name: str, step: int) -> None:
        """Start the clock with the first stage of the first step."""
        if name == STEP_STAGES[0]:
            self._pace.step_started()

    def step_ended(self, steps_done: int, metrics: dict[str, Any]) -> None:
        """Print the step's line."""
        self._pace.step_ended()
        left = duration(self._pace.seconds_left(steps_done))
        line = step_line(steps_done, self._session.config.run.steps, metrics)
        print(f"{line}  left {left}", flush=True)
        self._print_alarms(metrics)

    def evaluated(self, steps_done: int, summary: dict[str, Any]) -> None:
        """Print the evaluation's line."""
        print(evaluation_line(steps_done, summary), flush=True)
        self._print_alarms(summary)

    def stopping(self) -> None:
        """Say so; from a signal handler, where only a bare write is safe."""
        os.write(2, f"{STOP_NOTE}\n".encode())

    def _print_alarms(self, record: Mapping[str, Any]) -> None:
        for alarm in self._unreported.take(record):
            print(alarm_line(alarm), flush=True)


class Screen(Watcher):
    """One live display: steps, the running stage, and the last numbers."""

    def __init__(self, session: TrainingSession, name: str, console: Console) -> None:
        self._session = session
        self._pace = Pace(session)
        self._unreported = UnreportedAlarms()
        self._alarms: list[str] = []
        self._stopping = False
        self._numbers: dict[str, Any] = {}
        self._rate: float | None = None
        self._accuracy: str | None = None
        self._left: float | None = None
        wide = console.width >= _WIDE_FROM
        self._bars = Progress(
            TextColumn(f"{{task.description:<{_WIDE if wide else _NARROW}}}", markup=False),
            BarColumn(bar_width=32 if wide else 8),
            TaskProgressColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=console,
        )
        steps = session.config.run.steps
        self._steps = self._bars.add_task(name, total=steps, note=f"step 0/{steps}")
        self._stage = self._bars.add_task("starting", total=None, note="")
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=4)

    def __enter__(self) -> "Screen":
        """Start drawing."""
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the last picture and stop drawing."""
        self._bars.remove_task(self._stage)
        self._live.stop()

    def stage_started(self, name: str, step: int) -> None:
        """Show the stage."""
        if name == STEP_STAGES[0]:
            self._pace.step_started()
        self._bars.reset(self._stage, total=None, description=f"  {name}", note="")
        self._show_step(step)

    def progress(self, done: int, total: int) -> None:
        """Move the stage's bar."""
        note = f"{count(done)}/{count(total)}"
        self._bars.update(self._stage, completed=done, total=total, note=note)

    def stage_ended(self, name: str, reference: Reference) -> None:
        """Take the speed from sampling, and fill the stage's bar."""
        seconds = reference.get("seconds") or 0.0
        if name in ("generate", "evaluate") and seconds > 0 and not reference.get("skipped"):
            self._rate = reference.get("tokens", 0) / seconds
        self._bars.update(self._stage, total=1, completed=1)

    def step_ended(self, steps_done: int, metrics: dict[str, Any]) -> None:
        """Show the step's numbers."""
        self._pace.step_ended()
        self._left = self._pace.seconds_left(steps_done)
        self._numbers = metrics
        self._show_step(steps_done)
        self._show_alarms(metrics)

    def evaluated(self, steps_done: int, summary: dict[str, Any]) -> None:
        """Keep the evaluation as a line above the display."""
        self._accuracy = interval(summary)
        self._live.console.print(evaluation_line(steps_done, summary), highlight=False)
        self._show_alarms(summary)

    def stopping(self) -> None:
        """Change the picture at its next refresh; from a signal handler, so nothing more."""
        self._stopping = True

    def _show_alarms(self, record: Mapping[str, Any]) -> None:
        """Leave a line above the display that can be copied, and count it below."""
        for alarm in self._unreported.take(record):
            self._alarms.append(str(alarm["rule"]))
            line = Text(alarm_line(alarm), style="bold red")
            self._live.console.print(line, soft_wrap=True)

    def _show_step(self, done: int) -> None:
        steps = self._session.config.run.steps
        left = duration(self._left)
        self._bars.update(self._steps, completed=done, note=f"step {done}/{steps}  {left} left")

    def _render(self) -> RenderableType:
        shown = [
            f"reward {number(self._numbers.get('reward_mean'))}",
            f"correct {percent(self._numbers.get('correct_share'))}",
            f"to SDPO {percent(self._numbers.get('share_sdpo'))}",
            f"{count(self._rate)} tokens/s",
            f"accuracy {self._accuracy or NOTHING}",
        ]
        lines: list[RenderableType] = [self._bars, Text("  " + " · ".join(shown))]
        if trouble := troubles(self._numbers):
            lines.append(Text(trouble, style="bold red"))
        if self._alarms:
            lines.append(Text(f"  alarms: {', '.join(self._alarms)}", style="bold red"))
        if self._stopping:
            lines.append(Text(f"  {STOP_NOTE}", style="bold yellow"))
        return Group(*lines)


def _unjudged_text(summary: dict[str, Any]) -> str:
    """Return the share of answers that could not be judged, if there are any."""
    share = summary.get("unjudged_share")
    return f", NOT JUDGED {percent(share)}, counted as wrong" if share else ""


def evaluation_line(steps_done: int, summary: dict[str, Any]) -> str:
    """Return what one line can say about an evaluation."""
    k = summary.get("rollouts", "k")
    return (
        f"after {steps_done} steps: avg@{k} {interval(summary)}, "
        f"pass@{k} {percent(summary.get('pass_at_k'))}, "
        f"maj@{k} {percent(summary.get('maj_at_k'))}, "
        f"format {percent(summary.get('format_rate'))}, "
        f"truncated {percent(summary.get('truncated_share'))}"
        f"{_unjudged_text(summary)}"
        f"{tasks_text(summary)}"
    )
