"""Disk space of a run: what it will need, and a warning when what is left is not enough."""

from typing import Any, Protocol

from flows.session.disk_check import expect_disk_space
from flows.training.loop import TrainingSession, Watcher
from pipeline.housekeeping.space_forecast import Facts, needed
from pipeline.machine.disk import free_bytes
from pipeline.run.run import Run
from pipeline.text import print_warnings, size


class SpaceAwareSession(TrainingSession, Protocol):
    """A session that knows what its run will need."""

    run: Run

    def space_facts(self) -> Facts:
        """Return what a projection needs besides the configuration."""


def disk_space_line(session: SpaceAwareSession) -> str:
    """Return what a run needs from where it stands, against what its disk has."""
    need = needed(session.config, session.space_facts(), session.run).total
    free = free_bytes(session.run.root)
    return f"needs at most {size(need.most)} more, likely {size(need.likely)}; {size(free)} free"


def disk_space_warnings(session: SpaceAwareSession) -> list[str]:
    """Return a warning where a run may fill its disk.

    Raises:
        StoreError: it likely will; the line says what to lower.
    """
    config, facts, run = session.config, session.space_facts(), session.run
    need = expect_disk_space(config, facts, run.root, run)
    if need.total.most <= free_bytes(run.root):
        return []
    return [
        f"{run.root} may fill its disk: {disk_space_line(session)}; with run.keep_teacher_tables "
        "fewer tables stay"
    ]


class DiskSpaceWatcher(Watcher):
    """Warns once when the free space is not enough for the steps to come."""

    def __init__(self, session: SpaceAwareSession) -> None:
        self._session, self._warned = session, False

    def step_ended(self, steps_done: int, metrics: dict[str, Any]) -> None:
        """Forecast again, from the sizes of the newest steps."""
        session = self._session
        need = needed(session.config, session.space_facts(), session.run).total.likely
        free = free_bytes(session.run.root)
        if need > free and not self._warned:
            self._warned = True
            print_warnings(
                [
                    f"the disk of {session.run.root} will be full before the end: {size(need)} "
                    f"more needed, {size(free)} free; make room (srpo prune --dry-run says what "
                    "may go), or stop and go on with --set run.keep_teacher_tables=…"
                ]
            )
