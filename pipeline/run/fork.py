"""Forks: what a run takes from its parent, and what that means for being on-policy.

A fork recomputes stage X and what follows it from step `start` on. Before `start` everything is
the parent's; in the steps from `start` up to `end` the tables upstream of X are. Nothing is copied.
"""

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import StoreError
from pipeline.run.step_layout import STAGE_OF, stage_index

MOST_ANCESTORS = 100

TASK_CODE = "code of the task"
"""Key under which a fork records that the task's source changed."""
_OF_EVALUATIONS = ("data.", "verify.", "evaluate.", "run.seed", TASK_CODE, "version of evaluate")


@dataclass(frozen=True)
class Fork:
    """Where a run left its parent.

    Attributes:
        parent: folder of the parent, relative to the folder of the fork.
        identity: the parent's identity (`pipeline.run.run.Run.identity`).
        stage: first stage that is the fork's own, from step `start` on.
        start, end: steps [start, end) whose upstream tables are the parent's.
        changed: settings and code that differ, by dotted key: (the parent's, the fork's).
        updates: whether the fork was made to recompute `update` as well.
        off_policy: whether the rollouts of `start` were off-policy in the parent already.
    """

    parent: str
    identity: str
    stage: str
    start: int
    end: int
    changed: dict[str, tuple[Any, Any]]
    updates: bool
    off_policy: bool = False

    def inherits(self, table: str, step: int) -> bool:
        """Tell whether a table of a step is the parent's."""
        if table == "evaluations":
            same = not any(key.startswith(_OF_EVALUATIONS) for key in self.changed)
            return same and step <= self.start
        if step < self.start:
            return True
        return step < self.end and stage_index(STAGE_OF[table]) < stage_index(self.stage)

    @property
    def off_policy_from(self) -> int | None:
        """Return the first step whose rollouts another policy sampled than the fork updates."""
        if self.stage == "generate":
            return None
        if self.off_policy:
            return self.start
        return self.start + 1 if self.end > self.start + 1 else None

    @property
    def note(self) -> str:
        """Say in plain words what is the parent's, and what is no longer on-policy."""
        if self.stage == "generate":
            return f"Everything before step {self.start} is the parent's; from there on, its own."
        span = _steps(self.start, self.end)
        taken = "tables of earlier stages are the parent's"
        made = f"Stage {self.stage} and later of {span}; {taken}."
        if self.off_policy_from is None:
            return f"{made} On-policy: one update."
        rest = _steps(self.off_policy_from, self.end)
        scored = (
            "" if stage_index(self.stage) <= stage_index("route") else ", and so are teacher scores"
        )
        since = "an earlier fork" if self.off_policy else f"the update of step {self.start}"
        off_policy = (
            f"Off-policy: rollouts of {rest} were sampled by the parent's policies{scored}; the "
            f"fork's policy has differed from them since {since}. Ratios are taken against the "
            "stored log-probabilities."
        )
        if self.updates:
            return f"{made} {off_policy}"
        return f"{made} Made without updates; once it is trained on: {off_policy}"

    def to_record(self) -> dict[str, Any]:
        """Return what run.json holds; the note stands there for whoever reads the file."""
        changed = {key: list(pair) for key, pair in self.changed.items()}
        derived = {"off_policy_from": self.off_policy_from, "note": self.note}
        return {**asdict(self), "changed": changed, **derived}

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "Fork":
        """Read what `to_record` wrote."""
        known = {k: v for k, v in record.items() if k not in ("off_policy_from", "note")}
        changed = {key: (old, new) for key, (old, new) in record["changed"].items()}
        return cls(**{**known, "changed": changed})


def _steps(start: int, end: int) -> str:
    return f"step {start}" if end == start + 1 else f"steps {start} to {end - 1}"


def line_of(root: Path, parent: Path, descendants: tuple[Path, ...]) -> tuple[Path, ...]:
    """Return the folders of the forks that lead to a fork, its own last.

    Raises:
        StoreError: its parent is one of them, or there are too many.
    """
    line = (*descendants, Path(os.path.realpath(root)))
    if Path(os.path.realpath(parent)) in line or len(line) > MOST_ANCESTORS:
        raise StoreError(
            f"{root}: its parents come back to it, or are more than {MOST_ANCESTORS}; srpo makes "
            "no such fork"
        )
    return line
