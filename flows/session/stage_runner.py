"""Running one stage of a step with what it asks for: questions, engine, verifiers, policy."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import stages.bank
import stages.evaluate
import stages.generate
import stages.route
import stages.update
import stages.verify
import stages.weigh
from flows.session.engines import Engines
from flows.session.privileged import golds, solutions, wants
from flows.session.question_loading import recorded_questions
from flows.session.questions import Questions, SelectedQuestions, tokenizer_render
from flows.session.resident_policy import ResidentPolicy
from flows.session.verifiers import TaskVerifiers
from pipeline.config.sections import Config
from pipeline.errors import ConfigError, StoreError
from pipeline.files.durable import remove_folder
from pipeline.run.run import Run
from pipeline.run.step_layout import ALL_STAGES
from pipeline.stage.contract import Handles, Progress, Render, Stage, StageResult, silent
from pipeline.stage.earlier_steps import CommittedStep
from pipeline.stage.runner import run_stage
from pipeline.tables.arrow_writing import Writer
from pipeline.text import command, shell_word

if TYPE_CHECKING:
    from flows.workers.worker_pool import WorkerPool

STAGES: dict[str, Stage] = {
    module.STAGE.name: module.STAGE
    for module in (
        stages.generate,
        stages.verify,
        stages.bank,
        stages.route,
        stages.weigh,
        stages.update,
        stages.evaluate,
    )
}


class StageRunner:
    """Runs stages of one run. Questions, engines and verifiers are opened when one asks for them.

    Args:
        resident: the policy in memory, which stages share.
        questions: the run's questions, if they are open already.
    """

    def __init__(self, run: Run, resident: ResidentPolicy, questions: Questions | None) -> None:
        self._run, self._resident, self._questions = run, resident, questions
        self._engines = Engines(run.config)
        self._judges = TaskVerifiers(run.config)
        self._renderer: Render | None = None
        self._writer: Writer | None = None
        self._earlier: list[CommittedStep] = []

    @property
    def questions(self) -> Questions:
        """Return the run's questions.

        Raises:
            StoreError: they, or the code of their task, changed since the run began.
        """
        if self._questions is None:
            self._expect_same_task()
            self._questions = recorded_questions(self._run, self._render())
        return self._questions

    def run(
        self, name: str, step: int, progress: Progress, decisions_only: bool = False
    ) -> StageResult:
        """Run a stage; an update that an ancestor made is replayed there, by its own settings.

        The bank belongs to the step's routes: where it is not there yet, it is made with them.
        """
        stage = STAGES[name]
        if name == "bank":
            self._expect_bank(step)
        if name == "route" and self._lacks_bank(step):
            self.run("bank", step, silent)
        owner = self._run.owner(stage.writes[0], step) if stage.advances_policy else self._run
        if owner is not self._run and not owner.has(stage.writes[0], step):
            raise StoreError(
                f"{owner.root}: no table {stage.writes[0]} of step {step}, which its fork "
                f"{self._run.root} needs; make it there: "
                f"{command('stage', name, '--run', owner.root, '--step', step)}"
            )
        try:
            if stage.advances_policy:
                self._resident.adopt_teacher(step)
            handles = self._handles(stage, step, progress, owner.config)
            handles = replace(handles, policy=None) if decisions_only else handles
            writer = self._writer if name in ALL_STAGES else None  # evaluations are read at once
            result = run_stage(owner, stage, handles, writer)
            if "verifier" in stage.uses and not self.inherited(stage, step):
                self._remove_parts(stage, step)
            return result
        except BaseException:
            if stage.advances_policy:
                self._resident.policy = None
            raise

    def inherited(self, stage: Stage, step: int) -> bool:
        """Tell whether the stage's tables are an ancestor's, who made them once and for all."""
        return all(self._run.owner(table, step) is not self._run for table in stage.writes)

    @contextmanager
    def writing_beside(self) -> Iterator[None]:
        """Write tables beside the next stages' work; `update` ends with all on the disk."""
        with Writer() as self._writer:
            try:
                yield
            finally:
                self._writer = None

    @contextmanager
    def asking(
        self, config: Config, asked: SelectedQuestions, step: int, record: Path
    ) -> Iterator[Handles]:
        """Yield what it takes to ask questions outside of a stage, to judge and to route answers.

        Args:
            config: the settings of `route` to do it by.
            record: what comes of it; other workers leave verdicts beside it until the block ends.
        """
        self._expect_same_task()
        policy, parts = self._resident.require(), record.with_name(f".{record.stem}.parts")
        yield Handles(
            seed=self._run.config.run.seed,
            step=step,
            questions=asked.questions,
            tasks=asked.tasks,
            solutions=solutions(asked) if wants(config, "solution") else {},
            golds=golds(config),
            earlier=self._earlier_steps(step) if wants(config, "bank") else (),
            policy=policy,
            engine=self._engines.of("generate", policy),
            verifiers=self._judges.verifiers(parts),
        )
        if parts.exists():
            remove_folder(parts)

    def spread_over(self, worker_pool: "WorkerPool | None") -> None:
        """Judge responses on a pool's workers from now on; None: by this process's children."""
        self._judges.worker_pool = worker_pool

    def close(self) -> None:
        """End the verifiers' child processes and the engines."""
        self._judges.close()
        self._engines.close()

    def _handles(self, stage: Stage, step: int, progress: Progress, config: Config) -> Handles:
        inherited = self.inherited(stage, step)
        policy = self._resident.policy if "policy" in stage.uses else None
        asked = SelectedQuestions([], [])
        if "questions" in stage.uses and not inherited:
            asked = (
                self.questions.of_evaluation(config)
                if stage.name == "evaluate"
                else self.questions.of_step(config, step)
            )
        teaches = stage.name == "route" and not inherited
        shown = teaches and wants(config, "solution")
        judges = "verifier" in stage.uses and not inherited
        words = golds(config) if teaches else {}
        if judges or words:
            self._expect_same_task()
        return Handles(
            seed=config.run.seed,
            step=step,
            verifier_digest=self._judges.digest if judges else "",
            questions=asked.questions,
            tasks=asked.tasks,
            render=self._render() if stage.without_policy else None,
            solutions=solutions(self.questions.of_step(config, step)) if shown else {},
            golds=words,
            policy=policy,
            engine=self._engines.of(stage.name, policy)
            if policy and "engine" in stage.uses
            else None,
            max_logprob_gap=config.generate.max_logprob_gap,
            verifiers=self._judges.verifiers(self._parts(stage, step), progress) if judges else {},
            earlier=self._earlier_steps(step) if "earlier" in stage.uses and not inherited else (),
            progress=progress,
        )

    def _earlier_steps(self, step: int) -> list[CommittedStep]:
        """Return the steps before one; what was read of them stays in memory."""
        for earlier in range(len(self._earlier), step):
            self._earlier.append(CommittedStep(self._run, earlier))
        return self._earlier[:step]

    def _expect_bank(self, step: int) -> None:
        """Refuse to make a bank that nobody would read."""
        if "bank" not in self._run.tables_of(step):
            sources = ", ".join(self._run.owner("routes", step).config.route.sources)
            again = command("stage", "route", "--run", self._run.root, "--step", step)
            setting = shell_word('route.sources=["sibling", "bank"]')
            raise ConfigError(
                f"{self._run.root}: step {step} has no bank, route.sources is "
                f"{sources or 'empty'}; in a fork it may have one: {again} --set {setting}"
            )

    def _lacks_bank(self, step: int) -> bool:
        """Tell whether a bank of this run's own is to be made before its routes are."""
        run, path = self._run, self._run.table_path("bank", step)
        pending = self._writer is not None and self._writer.pending(path) is not None
        own = run.owner("bank", step) is run and "bank" in run.tables_of(step)
        return own and not pending and not run.has("bank", step)

    def _parts(self, stage: Stage, step: int) -> Path:
        """Return the folder of what workers have judged of a table that is not committed yet."""
        table = self._run.table_path(stage.writes[0], step)
        return table.with_name(f".{table.stem}.parts")

    def _remove_parts(self, stage: Stage, step: int) -> None:
        """Remove what workers left, now or in a command that was killed; the table holds it."""
        parts = self._parts(stage, step)
        if not parts.exists():
            return
        if self._writer is not None:
            self._writer.wait()
        remove_folder(parts)

    def _expect_same_task(self) -> None:
        # Records of evaluations by other settings once had no digest.
        if self._judges.digest != self._run.record.get("task_digest", self._judges.digest):
            raise StoreError(
                f"{self._run.root}: the code of task {self._run.config.data.title} changed since "
                "the run began; restore it, start another run, or fork this one: srpo stage verify "
                "--fork"
            )

    def _render(self) -> Render:
        """Return the function that renders prompts, by the run's tokenizer."""
        if self._renderer is None:
            self._renderer = tokenizer_render(self._run)
        return self._renderer
