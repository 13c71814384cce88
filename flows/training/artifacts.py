"""What a training flow shows in Prefect's pages: progress, metrics, routing plot, run folder."""

import base64
import time
from collections.abc import Callable
from typing import Any, cast
from uuid import UUID

from prefect.artifacts import (
    create_image_artifact,
    create_link_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from flows.prefect_api.calls import ApiError, calling, warn
from flows.session.open_run import past_metrics
from flows.training.loop import Watcher
from flows.training.step_text import step_line
from pipeline.run.run import Run
from pipeline.run.step_records import Records
from pipeline.text import percent

SECONDS_BETWEEN_UPDATES = 2.0
WIDTH, HEIGHT, LEFT, TOP = 640, 240, 44, 28
SHARES = [
    ("share_sdpo", "#7c4dff", "to SDPO"),
    ("share_grpo", "#26a69a", "to GRPO"),
    ("share_mix", "#42a5f5", "mixed"),
    ("share_none", "#bdbdbd", "left out"),
]
LINES = [("reward_mean", "#e65100", "mean reward")]


class Artifacts(Watcher):
    """Keeps the artifacts of one flow run up to date; lives inside a flow run.

    After a call that failed there is no other until the end, when it is tried once more.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._records = past_metrics(run)
        self._evaluations: list[dict[str, Any]] = []
        self._progress: UUID | None = None
        self._failed = False
        self._next_update = time.monotonic()
        self._try(self._begin)

    def step_ended(self, steps_done: int, metrics: dict[str, Any]) -> None:
        """Move the progress artifact on; its description is the step's line."""
        self._records.append(metrics)
        if self._failed or time.monotonic() < self._next_update:
            return
        self._next_update = time.monotonic() + SECONDS_BETWEEN_UPDATES
        line = step_line(steps_done, self._run.config.run.steps, metrics)
        self._try(lambda: self._show_progress(line))

    def evaluated(self, steps_done: int, summary: dict[str, Any]) -> None:
        """Remember an evaluation for the table at the end."""
        shown = {key: value for key, value in summary.items() if key != "alarms"}
        self._evaluations.append({"steps_done": steps_done, **shown})

    def finish(self) -> None:
        """Leave the tables and the plot."""
        self._try(self._finish)

    def _try(self, call: Callable[[], None]) -> None:
        try:
            with calling():
                call()
        except ApiError as error:
            if not self._failed:
                warn(error)
            self._failed = True

    def _begin(self) -> None:
        folder = self._run.root.resolve()
        create_link_artifact(folder.as_uri(), str(folder), key="run-folder")
        self._show_progress(f"run {folder.name}")

    def _show_progress(self, text: str | None = None) -> None:
        if self._progress is None:
            made = create_progress_artifact(self._share_done(), key="progress", description=text)
            self._progress = cast(UUID, made)
        else:
            update_progress_artifact(self._progress, self._share_done(), description=text)

    def _finish(self) -> None:
        self._show_progress()
        if self._records:
            rows = [{k: v for k, v in r.items() if k != "alarms"} for r in self._records]
            create_table_artifact(rows, key="metrics", description="one row per step")
            image = base64.b64encode(routing_plot(self._records).encode()).decode()
            shares = percent(self._records[-1].get("share_sdpo"))
            create_image_artifact(
                f"data:image/svg+xml;base64,{image}",
                key="routing",
                description=f"share of rollouts by route; last step: {shares} to SDPO",
            )
        if alarms := self._alarms():
            create_table_artifact(alarms, key="alarms", description="what looks wrong, since when")
        if self._evaluations:
            create_table_artifact(
                self._evaluations, key="evaluations", description="this session's evaluations"
            )

    def _alarms(self) -> list[dict[str, Any]]:
        found = [alarm for record in self._records for alarm in record.get("alarms") or []]
        return [*found, *Records(self._run).unrecorded()]

    def _share_done(self) -> float:
        return 100.0 * len(self._records) / self._run.config.run.steps


def routing_plot(records: list[dict[str, Any]]) -> str:
    """Draw stacked shares of the routes and the mean reward over the steps, as SVG."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT + 60}" '
        f'width="{WIDTH}" height="{HEIGHT + 60}" font-family="sans-serif" font-size="11">',
        f'<rect width="{WIDTH}" height="{HEIGHT + 60}" fill="white"/>',
    ]
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = _y(tick)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - 12}" y1="{y}" y2="{y}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{tick:.0%}</text>')
    floor = [0.0] * len(records)
    shown = [share for share in SHARES if any(record.get(share[0]) for record in records)]
    for name, color, _ in shown:
        top = [low + _value(r, name) for low, r in zip(floor, records, strict=True)]
        outline = _points(top) + _points(floor)[::-1]
        parts.append(f'<polygon points="{" ".join(outline)}" fill="{color}" opacity="0.6"/>')
        floor = top
    for name, color, _ in LINES:
        line = " ".join(_points([_value(r, name) for r in records]))
        parts.append(f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="2"/>')
    for index, (_, color, label) in enumerate([*shown, *LINES]):
        x = LEFT + 115 * index
        parts.append(f'<rect x="{x}" y="{HEIGHT + 38}" width="12" height="12" fill="{color}"/>')
        parts.append(f'<text x="{x + 18}" y="{HEIGHT + 48}">{label}</text>')
    parts.append(f'<text x="{LEFT}" y="{HEIGHT + 20}">step 0</text>')
    parts.append(
        f'<text x="{WIDTH - 12}" y="{HEIGHT + 20}" text-anchor="end">{len(records) - 1}</text>'
    )
    return "".join([*parts, "</svg>"])


def _value(record: dict[str, Any], name: str) -> float:
    return float(record.get(name) or 0.0)


def _y(share: float) -> float:
    return round(TOP + (1 - share) * (HEIGHT - TOP), 1)


def _points(values: list[float]) -> list[str]:
    """Place values on the plot; a single one becomes a level line."""
    values = values * 2 if len(values) == 1 else values
    width = (WIDTH - 12 - LEFT) / (len(values) - 1)
    return [f"{LEFT + i * width:.1f},{_y(v)}" for i, v in enumerate(values)]
