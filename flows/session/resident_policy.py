"""The policy that stays in memory between stages, and how that of another step gets there.

It is opened from the nearest earlier snapshot, and `update` is replayed from the saved tables up to
the step that is wanted.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from flows.session.new_run import teacher_settings
from pipeline.config.sections import ModelSection
from pipeline.distributed.ranks import together
from pipeline.errors import StoreError
from pipeline.policy.policy import Policy, TeacherSettings
from pipeline.policy.snapshots import initial_model, load_snapshot
from pipeline.run.run import Run
from pipeline.stage.contract import Progress


class ResidentPolicy:
    """The policy of one run that is in memory, if there is one.

    Attributes:
        policy: None before a stage needs one, and after an update that failed half-way.
    """

    def __init__(self, run: Run, policy: Policy | None) -> None:
        self._run, self.policy = run, policy

    def require(self) -> Policy:
        """Return the policy that is in memory.

        Raises:
            StoreError: there is none.
        """
        if self.policy is None:
            raise StoreError("no policy is open; prepare a step first")
        return self.policy

    def prepare(
        self, step: int, replay: Callable[[int], object], progress: Progress | None = None
    ) -> Policy:
        """Return the policy that starts `step`, with the teacher that scores it.

        Args:
            replay: runs the update of a step on the policy that is in memory.
            progress: told of the updates that are replayed.

        Raises:
            StoreError: the run has not come so far, or has no snapshot to start from.
        """
        if self.policy is None or self.policy.steps_done != step or self._lacks_copy(step):
            self.expect_reached(step)
            start, copies = self._start_of_replay(step)
            self.policy = None  # before the next is opened: two may not fit into memory
            self.policy = self.open_snapshot(start)
            for replayed in range(start, step):
                if replayed in copies:
                    together(Policy.keep, self.policy)
                replay(replayed)
                if progress is not None:
                    progress(replayed + 1 - start, step - start)
        self.adopt_teacher(step)
        return self.require()

    def _start_of_replay(self, step: int) -> tuple[int, set[int]]:
        """Return the snapshot to replay from, and which states are to be kept on the way.

        A periodic teacher that a fork adopts is the policy of an earlier step. The nearest snapshot
        may be of a later one.
        """
        start = self._nearest_snapshot(step)
        while (earliest := min(copies := self._copies(start, step), default=start)) < start:
            start = self._nearest_snapshot(earliest)
        return start, copies

    def _copies(self, start: int, step: int) -> set[int]:
        """Return the earlier states that become the teachers that forks adopt on the way."""
        former, found = teacher_settings(self._run.snapshot_owner(start).config), set()
        for adopting in range(start, step + 1):
            teacher = self._teacher(adopting)
            if teacher.copies_anew(former) and teacher.copied_after(adopting) < adopting:
                found.add(teacher.copied_after(adopting))
            former = teacher
        return found

    def _nearest_snapshot(self, step: int) -> int:
        start = max((s for s in self._run.snapshots() if s <= step), default=None)
        if start is None:
            raise StoreError(f"{self._run.root}: no policy snapshot at or before step {step}")
        return start

    def _lacks_copy(self, step: int) -> bool:
        """Tell whether the step's teacher is a copy of an earlier policy than is in memory."""
        wanted = self._teacher(step)
        return wanted.copies_anew(self.require().teacher) and wanted.copied_after(step) < step

    def _teacher(self, step: int) -> TeacherSettings:
        """Return which teacher scores a step: before a fork, the parent's."""
        return teacher_settings(self._run.owner("updates", step).config)

    def adopt_teacher(self, step: int) -> None:
        """Give the policy the teacher that `step` is scored by."""
        policy, wanted = self.require(), self._teacher(step)
        if policy.teacher != wanted:
            folder, settings, teacher = self._snapshot(0)
            initial = partial(initial_model, folder=folder, settings=settings, teacher=teacher)
            together(Policy.adopt_teacher, policy, wanted, initial)

    def expect_reached(self, step: int) -> None:
        """Refuse a step that the run has not come to.

        Raises:
            StoreError: it hasn't.
        """
        if step > (done := self._run.steps_done()):
            raise StoreError(f"{self._run.root} has {done} complete steps: no state after {step}")

    def open_snapshot(self, steps_done: int) -> Policy:
        """Return the policy of a snapshot; what is in memory stays as it is."""
        return load_snapshot(*self._snapshot(steps_done))

    def _snapshot(self, steps_done: int) -> tuple[Path, ModelSection, TeacherSettings]:
        """Return which snapshot is that of a state, and how to open it."""
        owner = self._run.snapshot_owner(steps_done)
        folder = self._run.snapshot_path(steps_done)
        return folder, self._run.config.model, teacher_settings(owner.config)
