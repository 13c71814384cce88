"""Is there room for a run? Said before it starts, and again when what is left will not do."""

from math import floor
from pathlib import Path
from typing import Any, Protocol

from flows.loop import Trainable, Watcher
from flows.progress import print_warnings
from flows.questions import Questions
from pipeline.config import Config
from pipeline.disk import free_bytes
from pipeline.errors import StoreError
from pipeline.policy import Policy
from pipeline.space import Facts, Need, needed
from pipeline.store import Run
from pipeline.text import size


class Roomy(Trainable, Protocol):
    """A session that knows what its run will need."""

    run: Run

    def space_facts(self) -> Facts:
        """Return what a projection needs besides the configuration."""


def facts_of(policy: Policy, config: Config, questions: Questions) -> Facts:
    """Return what a projection needs to know of a run that has not begun."""
    parameters = sum(p.numel() for _, p in policy.named_parameters())
    return Facts(parameters, len(policy.tokenizer), answers(config, questions))


def answers(config: Config, questions: Questions) -> int:
    """Return how many answers an evaluation samples."""
    return len(questions.of_evaluation(config).questions) * config.evaluate.rollouts


def room_line(session: Roomy) -> str:
    """Return what a run needs from where it stands, against what its disk has."""
    need = needed(session.config, session.space_facts(), session.run).total
    free = free_bytes(session.run.root)
    return f"needs at most {size(need.most)} more, likely {size(need.likely)}; {size(free)} free"


def room_warnings(session: Roomy) -> list[str]:
    """Return a warning where a run may fill its disk.

    Raises:
        StoreError: it likely will; the line says what to lower.
    """
    config, facts, run = session.config, session.space_facts(), session.run
    need = expect_room(config, facts, run.root, run)
    if need.total.most <= free_bytes(run.root):
        return []
    return [
        f"{run.root} may fill its disk: {room_line(session)}; with run.keep_teacher_tables fewer "
        "tables stay"
    ]


def expect_room(config: Config, facts: Facts, root: Path, run: Run | None = None) -> Need:
    """Return what a run in `root` needs; refuse one that will likely fill its disk.

    Args:
        run: what is there of it; None: it has not begun.
    """
    need, free = needed(config, facts, run), free_bytes(root)
    if need.total.likely <= free:
        return need
    raise StoreError(
        f"{root}: likely needs {size(need.total.likely)} more ({_parts(need)}), and its disk "
        f"has {size(free)} free; {_remedies(config, facts, root, run, need, free)}"
    )


def _parts(need: Need) -> str:
    parts = {
        "teacher tables": need.teacher,
        "other tables": need.tables,
        "snapshots": need.snapshots,
        "evaluations": need.evaluations,
    }
    ordered = sorted(parts.items(), key=lambda part: -part[1].likely)
    return ", ".join(f"{name} {size(part.likely)}" for name, part in ordered if part.likely)


def _remedies(
    config: Config, facts: Facts, root: Path, run: Run | None, need: Need, free: int
) -> str:
    """Say which settings would save how much, and with which the run would fit."""
    run_, route = config.run, config.route
    without = need.total.likely - need.teacher.likely
    keep = floor((free - without) / need.teacher_step.likely) - run_.snapshot_every
    changes: list[tuple[str, str, Any]] = [("run", "keep_teacher_tables", max(1, keep))]
    if run is None:
        changes += [
            ("route", "top_k", max(1, min(route.top_k, facts.vocabulary) // 2)),
            ("route", "kept_dtype", "float16"),
            ("route", "keep_student_logprobs", False),
            ("run", "keep_snapshots", 1),
            ("run", "steps", max(1, floor(run_.steps * free / need.total.likely))),
        ]
    found = []
    for section, key, value in changes:
        part = getattr(config, section).model_copy(update={key: value})
        other = needed(config.model_copy(update={section: part}), facts, run).total.likely
        saved = need.total.likely - other
        if saved > 0:
            fits = ", which fits" if other <= free else ""
            found.append(f"{section}.{key}={str(value).lower()} saves {size(saved)}{fits}")
    found.append("another --run, on another disk" if run is None else f"srpo prune {root}")
    return "; ".join(found)


class RoomWatcher(Watcher):
    """Warns once when what is free will not do for the steps to come."""

    def __init__(self, session: Roomy) -> None:
        self._session, self._warned = session, False

    def step_ended(self, steps_done: int, metrics: dict[str, Any]) -> None:
        """Look at the disk again, by the sizes of the newest steps."""
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
