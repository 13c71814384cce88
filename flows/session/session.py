"""A session of work on one run, without Prefect: its steps, its schedule and its records."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from flows.session.disk_check import evaluation_answers
from flows.session.engines import policy_notes
from flows.session.failed_start import remove_failed_start
from flows.session.new_run import prepare_run, write_run
from flows.session.questions import Questions, special_texts, warnings_of
from flows.session.resident_policy import ResidentPolicy
from flows.session.stage_runner import STAGES, StageRunner
from pipeline.config.sections import Config
from pipeline.distributed.process_setup import configure_process
from pipeline.errors import ConfigError
from pipeline.housekeeping.keep_state import keep_state
from pipeline.housekeeping.space_forecast import Facts
from pipeline.policy.policy import Policy
from pipeline.run.lock import RunLock
from pipeline.run.run import Run
from pipeline.run.step_records import Records
from pipeline.stage.contract import Progress, silent


class Session:
    """One process's work on one run; a block that fails removes a run that has only just begun.

    Args:
        run: if it is new, its lock is to be held until the session has its own.
        questions, policy: what is open already; the rest is opened when a stage needs it.
        writes: be the run's one writer; False: nothing is made but policies, by replay.

    Attributes:
        resident: the policy in memory, which stages share.
        stages: runs a stage of a step.
    """

    def __init__(
        self,
        run: Run,
        questions: Questions | None = None,
        policy: Policy | None = None,
        writes: bool = True,
    ) -> None:
        configure_process(run.config.run.threads)
        self.run = run
        self.resident = ResidentPolicy(run, policy)
        self.stages = StageRunner(run, self.resident, questions)
        self._records = Records(run)
        self._lock = RunLock(run.root) if writes else None

    @classmethod
    def create(cls, root: Path, config: Config, keep_start: bool = True) -> Self:
        """Start a run. Everything that can be wrong is found before its folder is made.

        Args:
            keep_start: take snapshot 0, from which a run can be resumed.
        """
        # A folder that is there may be another command's: it is said at once who writes to it.
        with RunLock(root) if root.exists() else nullcontext():
            new = prepare_run(root, config, keep_start)
        with RunLock(root):
            return cls(write_run(new), new.questions, new.policy)

    @classmethod
    def resume(cls, root: Path, writes: bool = True) -> Self:
        """Open a run where it stands."""
        with RunLock(root) if writes else nullcontext():
            return cls(Run.open(root), writes=writes)

    def __enter__(self) -> Self:
        """Work in a block."""
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        """Close it; a run that it began, and has made nothing of, goes if the block failed."""
        self.stages.close()
        if self.run.is_new and error is not None:
            remove_failed_start(self.run.root, error)
        if self._lock is not None:
            self._lock.release()

    @property
    def questions(self) -> Questions:
        """Return the run's questions.

        Raises:
            StoreError: they, or the code of their task, changed since the run began.
        """
        return self.stages.questions

    @property
    def config(self) -> Config:
        """Return the run's configuration."""
        return self.run.config

    def next_step(self) -> int:
        """Return the first step whose work is not complete."""
        return self.run.steps_done()

    def prepare(self, step: int, progress: Progress | None = None) -> Policy:
        """Have the policy that starts `step` resident, and return it."""
        return self.resident.prepare(step, lambda s: self.stages.run("update", s, silent), progress)

    def run_stage(
        self,
        name: str,
        step: int,
        progress: Progress | None = None,
        replayed: Progress | None = None,
        decisions_only: bool = False,
    ) -> dict[str, Any]:
        """Run one stage of one step, or find it done; return a small reference to its tables.

        Args:
            progress: told of the stage's own work.
            replayed: told of the updates that are replayed to rebuild the step's policy.
            decisions_only: make the tables that need no policy, with none opened.
        """
        stage = STAGES[name]
        if decisions_only and not stage.without_policy:
            raise ConfigError(f"stage {name} has no part that needs no policy; route has")
        if not decisions_only and "policy" in stage.uses and not self.stages.inherited(stage, step):
            self.prepare(step, replayed)
        elif not any(self.run.has(table, step) for table in stage.reads):
            self.resident.expect_reached(step)
        result = self.stages.run(name, step, progress or silent, decisions_only)
        return {
            "stage": name,
            "step": step,
            "tables": {
                table: {"path": f"{self.run.table_path(table, step)}", "rows": rows}
                for table, rows in result.rows.items()
            },
            "seconds": result.cost.seconds,
            "tokens": result.cost.tokens,
            "skipped": result.skipped,
        }

    def writing_beside(self) -> AbstractContextManager[None]:
        """Write tables beside the next stages' work; `update` ends with all on the disk."""
        return self.stages.writing_beside()

    def finish_step(self, step: int) -> dict[str, Any]:
        """Write the flat record of a complete step, with its alarms, and return it."""
        return self._records.finish(step)

    def finish_if_complete(self, step: int) -> None:
        """Write the record of a step whose last table came from a stage that ran alone."""
        complete = all(self.run.has(table, step) for table in self.run.tables_of(step))
        if complete and step == self.next_step():
            self.finish_step(step)

    def evaluation_due(self, steps_done: int) -> bool:
        """Tell whether the state after so many steps shall be evaluated."""
        return steps_done % self.config.evaluate.every == 0 or steps_done == self.config.run.steps

    def snapshot_due(self, steps_done: int) -> bool:
        """Tell whether the state after so many steps shall be kept: on schedule, or the best."""
        last = steps_done == self.config.run.steps
        scheduled = steps_done % self.config.run.snapshot_every == 0
        return last or scheduled or steps_done == self._records.best()

    def snapshot(self, steps_done: int) -> Path:
        """Keep the state after so many steps, and drop snapshots that are over the number kept."""
        return keep_state(self.run, self._records, self.prepare(steps_done), steps_done)

    def evaluation_summary(self, steps_done: int) -> dict[str, Any]:
        """Return accuracy and more of an evaluated state."""
        return self._records.evaluation(steps_done)

    def warnings(self) -> list[str]:
        """Return what is allowed but should be known before a training starts."""
        found, policy = warnings_of(self.config, self.questions), self.resident.policy
        if policy is not None:
            found += special_texts(self.questions, policy.tokenizer)
        return found + policy_notes(policy)

    def space_facts(self) -> Facts:
        """Return what a projection of the room that the run needs has to know of it."""
        return Facts.of(self.run, evaluation_answers(self.config, self.questions))

    def training_seconds(self) -> float:
        """Return the seconds of all complete steps; evaluations are not counted."""
        return float(sum(r["seconds"] for r in self._records.before(self.next_step())))

    def close(self) -> None:
        """End the verifiers' child processes and the engines; others may write then."""
        self.__exit__(None, None, None)
