"""A session of work on one run: it opens what stages need and runs them, without Prefect."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import stages.evaluate
import stages.generate
import stages.route
import stages.update
import stages.verify
import stages.weigh
from flows.session.disk_check import answers
from flows.session.engines import Engines, slow_paths
from flows.session.new_run import create_run
from flows.session.questions import (
    Questions,
    SelectedQuestions,
    recorded_questions,
    tokenizer_render,
)
from flows.session.resident_policy import ResidentPolicy
from flows.session.verifiers import TaskVerifiers
from pipeline.config.sections import Config
from pipeline.distributed.process_setup import configure_process
from pipeline.errors import ConfigError, StoreError
from pipeline.files.durable import remove_folder
from pipeline.housekeeping.keep_state import keep_state
from pipeline.housekeeping.space_forecast import Facts
from pipeline.policy.policy import Policy
from pipeline.run.lock import RunLock
from pipeline.run.run import Run
from pipeline.run.step_layout import STEP_STAGES, STEP_TABLES
from pipeline.run.step_records import Records
from pipeline.stage.contract import Handles, Progress, Render, Stage, StageResult, silent
from pipeline.stage.runner import run_stage
from pipeline.tables.arrow_writing import Writer

if TYPE_CHECKING:
    from flows.workers.worker_pool import WorkerPool

STAGES: dict[str, Stage] = {
    module.STAGE.name: module.STAGE
    for module in (
        stages.generate,
        stages.verify,
        stages.route,
        stages.weigh,
        stages.update,
        stages.evaluate,
    )
}


class Session:
    """One process's work on one run.

    Attributes:
        resident: the policy in memory, which stages share.
    """

    def __init__(
        self, run: Run, questions: Questions | None, policy: Policy | None, writes: bool = True
    ) -> None:
        self.run = run
        self._questions = questions
        self.resident = ResidentPolicy(run, policy)
        self._records = Records(run)
        self._engines = Engines(run.config)
        self._renderer: Render | None = None
        self._writer: Writer | None = None
        self._judges = TaskVerifiers(run.config)
        self._lock = RunLock(run.root) if writes else None

    @classmethod
    def create(cls, run_dir: Path, config: Config, keep_start: bool = True) -> "Session":
        """Start a run. Everything that can be wrong is found before anything is written.

        Args:
            keep_start: take snapshot 0, from which a run can be resumed.
        """
        with RunLock(run_dir):
            return cls(*create_run(run_dir, config, keep_start))

    @classmethod
    def resume(cls, run_dir: Path, writes: bool = True) -> "Session":
        """Open a run where it stands. Questions and policy are opened when a stage needs them.

        Args:
            writes: be its one writer; False: nothing is made but policies, by replay.
        """
        with RunLock(run_dir) if writes else nullcontext():
            run = Run.open(run_dir)
            configure_process(run.config.run.threads)
            return cls(run, None, None, writes)

    @property
    def questions(self) -> Questions:
        """Return the run's questions.

        Raises:
            StoreError: they, or the code of their task, changed since the run began.
        """
        if self._questions is None:
            self._expect_same_task()
            self._questions = recorded_questions(self.run, self._render())
        return self._questions

    @property
    def config(self) -> Config:
        """Return the run's configuration."""
        return self.run.config

    def next_step(self) -> int:
        """Return the first step whose work is not complete."""
        return self.run.steps_done()

    def prepare(self, step: int, progress: Progress | None = None) -> Policy:
        """Have the policy that starts `step` resident, and return it."""
        return self.resident.prepare(step, lambda s: self._run("update", s, silent), progress)

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
        if not decisions_only and "policy" in stage.uses and not self._inherited(stage, step):
            self.prepare(step, replayed)
        elif not any(self.run.has(table, step) for table in stage.reads):
            self.resident.expect_reached(step)
        result = self._run(name, step, progress or silent, decisions_only)
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

    @contextmanager
    def writing_beside(self) -> Iterator[None]:
        """Write tables beside the next stages' work; `update` ends with all on the disk."""
        with Writer() as self._writer:
            try:
                yield
            finally:
                self._writer = None

    def finish_step(self, step: int) -> dict[str, Any]:
        """Write the flat record of a complete step, with its alarms, and return it."""
        return self._records.finish(step)

    def finish_if_complete(self, step: int) -> None:
        """Write the record of a step whose last table came from a stage that ran alone."""
        complete = all(self.run.has(table, step) for table in STEP_TABLES)
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

    def slow_paths(self) -> list[str]:
        """Say what the resident policy can't do the quick way."""
        return slow_paths(self.resident.policy)

    def space_facts(self) -> Facts:
        """Return what a projection of the room that the run needs has to know of it."""
        return Facts.of(self.run, answers(self.config, self.questions))

    def training_seconds(self) -> float:
        """Return the seconds of all complete steps; evaluations are not counted."""
        return float(sum(r["seconds"] for r in self._records.before(self.next_step())))

    def spread_over(self, worker_pool: "WorkerPool | None") -> None:
        """Judge responses on a pool's workers from now on; None: by this process's children."""
        self._judges.worker_pool = worker_pool

    def close(self) -> None:
        """End the verifiers' child processes and the engines; others may write then."""
        self._judges.close()
        self._engines.close()
        if self._lock is not None:
            self._lock.release()

    def _run(
        self, name: str, step: int, progress: Progress, decisions_only: bool = False
    ) -> StageResult:
        """Run a stage; an update that an ancestor made is replayed there, by its own settings."""
        stage = STAGES[name]
        owner = self.run.owner(stage.writes[0], step) if stage.advances_policy else self.run
        if owner is not self.run and not owner.has(stage.writes[0], step):
            raise StoreError(
                f"{owner.root}: no table {stage.writes[0]} of step {step}, which its fork "
                f"{self.run.root} needs; make it there: srpo stage {name} --run {owner.root} "
                f"--step {step}"
            )
        try:
            if stage.advances_policy:
                self.resident.adopt_teacher(step)
            handles = self._handles(stage, step, progress, owner.config)
            handles = replace(handles, policy=None) if decisions_only else handles
            writer = self._writer if name in STEP_STAGES else None  # evaluations are read at once
            result = run_stage(owner, stage, handles, writer)
            if "verifier" in stage.uses and not self._inherited(stage, step):
                self._remove_parts(stage, step)
            return result
        except BaseException:
            if stage.advances_policy:
                self.resident.policy = None
            raise

    def _handles(self, stage: Stage, step: int, progress: Progress, config: Config) -> Handles:
        inherited = self._inherited(stage, step)
        policy = self.resident.policy if "policy" in stage.uses else None
        asked = SelectedQuestions([], [])
        if "questions" in stage.uses and not inherited:
            asked = (
                self.questions.of_evaluation(config)
                if stage.name == "evaluate"
                else self.questions.of_step(config, step)
            )
        judges = "verifier" in stage.uses and not inherited
        if judges:
            self._expect_same_task()
        return Handles(
            seed=config.run.seed,
            step=step,
            verifier_digest=self._judges.digest if judges else "",
            questions=asked.questions,
            tasks=asked.tasks,
            render=self._render() if stage.without_policy else None,
            policy=policy,
            engine=self._engines.of(stage.name, policy)
            if policy and "engine" in stage.uses
            else None,
            max_logprob_gap=config.generate.max_logprob_gap,
            verifiers=self._judges.verifiers(self._parts(stage, step), progress) if judges else {},
            progress=progress,
        )

    def _parts(self, stage: Stage, step: int) -> Path:
        """Return the folder of what workers have judged of a table that is not committed yet."""
        table = self.run.table_path(stage.writes[0], step)
        return table.with_name(f".{table.stem}.parts")

    def _remove_parts(self, stage: Stage, step: int) -> None:
        """Remove what workers left, now or in a command that was killed; the table holds it."""
        parts = self._parts(stage, step)
        if not parts.exists():
            return
        if self._writer is not None:
            self._writer.wait()
        remove_folder(parts)

    def _inherited(self, stage: Stage, step: int) -> bool:
        """Tell whether the stage's tables are an ancestor's, who made them once and for all."""
        return all(self.run.owner(table, step) is not self.run for table in stage.writes)

    def _expect_same_task(self) -> None:
        # Records of evaluations by other settings once had no digest.
        if self._judges.digest != self.run.record.get("task_digest", self._judges.digest):
            raise StoreError(
                f"{self.run.root}: the code of task {self.config.data.title} changed since the run "
                "began; restore it, start another run, or fork this one: srpo stage verify --fork"
            )

    def _render(self) -> Render:
        """Return the function that renders prompts, by the run's tokenizer."""
        if self._renderer is None:
            self._renderer = tokenizer_render(self.run)
        return self._renderer
