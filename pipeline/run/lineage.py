"""Which run a table, a record or a snapshot belongs to: a fork refers to what is its parent's."""

from pathlib import Path
from typing import Any, Self

from pipeline.run.folder import RunFolder, manifest_path
from pipeline.run.fork import Fork


class Lineage(RunFolder):
    """A run's folder and those of its ancestors, seen as one.

    Attributes:
        record: what run.json holds.
        fork: where this run left its parent; None for a run of its own.
        parent: the run whose tables it refers to.
    """

    parent: Self | None

    def __init__(self, root: Path, record: dict[str, Any], parent: Self | None) -> None:
        super().__init__(root)
        self.record = record
        self.fork = Fork.from_record(record["fork"]) if "fork" in record else None
        self.parent = parent

    def owner(self, table: str, step: int) -> Self:
        """Return the run in whose folder a table is, or will be: this one or an ancestor."""
        if self.fork and self.parent and self.fork.inherits(table, step):
            owner = self.parent.owner(table, step)
            if table != "evaluations" or owner.has(table, step):
                return owner
        return self

    def record_owner(self, step: int) -> Self:
        """Return the run in whose folder the record of a step is, or will be."""
        if self.fork and self.parent and step < self.fork.start:
            return self.parent.record_owner(step)
        return self

    def snapshot_owner(self, steps_done: int) -> Self:
        """Return the run in whose folder a snapshot is, or will be."""
        if self.fork and self.parent and steps_done <= self.fork.start:
            owner = self.parent.snapshot_owner(steps_done)
            if steps_done in owner.own_snapshots():
                return owner
        return self

    def table_path(self, table: str, step: int) -> Path:
        """Return where a table of a step is."""
        return self.owner(table, step).own_table_path(table, step)

    def metrics_path(self, step: int) -> Path:
        """Return where the flat record of a step is."""
        return self.record_owner(step).own_metrics_path(step)

    def snapshot_path(self, steps_done: int) -> Path:
        """Return where the policy after so many steps is."""
        return self.snapshot_owner(steps_done).own_snapshot_path(steps_done)

    def has(self, table: str, step: int) -> bool:
        """Tell whether a table is committed."""
        path = self.table_path(table, step)
        return path.exists() and manifest_path(path).exists()

    def steps_done(self) -> int:
        """Return the number of steps that are complete, up to the first gap."""
        step = 0
        while self.metrics_path(step).exists():
            step += 1
        return step

    def steps_of(self, table: str) -> list[int]:
        """Return all steps that have a table, the parent's where it is inherited; ascending."""
        found = self.own_steps_of(table)
        if self.fork and self.parent:
            inherited = self.parent.steps_of(table)
            found |= {step for step in inherited if self.fork.inherits(table, step)}
        return sorted(step for step in found if self.has(table, step))

    def snapshots(self) -> list[int]:
        """Return the steps of all complete snapshots, the parent's up to the fork; ascending."""
        found = set(self.own_snapshots())
        if self.fork and self.parent:
            found |= {steps for steps in self.parent.snapshots() if steps <= self.fork.start}
        return sorted(found)
