"""Evaluating a state of a run on demand, by its own settings or by others."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from flows.session.question_loading import load_questions
from flows.session.questions import expect_evaluation_context, fitting, left_out, positions_of
from flows.session.session import Session
from flows.session.verifiers import code_digest
from pipeline.config.load import apply_override, validate_config
from pipeline.config.sections import Config
from pipeline.errors import ConfigError
from pipeline.files.durable import digest_of
from pipeline.remote.mirror_sync import is_run
from pipeline.run.lock import RunLock
from pipeline.run.run import Run
from pipeline.stage.contract import Progress
from pipeline.text import print_warnings

if TYPE_CHECKING:
    from flows.workers.worker_pool import WorkerPool

_SECTIONS = ("data", "verify", "evaluate")


def evaluate_now(
    session: Session,
    steps_done: int,
    overrides: Sequence[str] = (),
    progress: Progress | None = None,
    replayed: Progress | None = None,
    worker_pool: "WorkerPool | None" = None,
) -> dict[str, Any]:
    """Evaluate a state, whether or not the schedule does; return its summary.

    With overrides of `data`, `verify` or `evaluate`, the table goes to a run folder of its own
    under RUN/evaluations/, named by the digest of these settings.

    Args:
        worker_pool: workers that judge the answers; None: this process's children.
    """
    session.stages.spread_over(worker_pool)
    if not overrides:
        session.run_stage("evaluate", steps_done, progress, replayed)
        return session.evaluation_summary(steps_done)
    wanted = with_overrides(session.config, overrides, _SECTIONS)
    policy = session.prepare(steps_done, replayed)
    expect_evaluation_context(wanted, positions_of(policy))
    questions = fitting(load_questions(wanted), wanted, policy.render)
    print_warnings(left_out(wanted, questions))
    name = digest_of([wanted.recorded()[s] for s in _SECTIONS])[:12]
    root = session.run.root / "evaluations" / name
    facts = {
        "parent": session.run.record["digest"],
        "task_digest": code_digest(wanted),
    }
    with RunLock(root):
        run = Run.open(root) if is_run(root) else Run.create(root, wanted, facts)
        opened = Session(run, questions, policy)
    with opened as other:
        other.stages.spread_over(worker_pool)
        other.run_stage("evaluate", steps_done, progress)
        return other.evaluation_summary(steps_done)


def with_overrides(config: Config, overrides: Sequence[str], sections: Sequence[str]) -> Config:
    """Return a run's settings with some of these sections changed.

    Raises:
        ConfigError: one is of another section, or can't be used.
    """
    values = config.model_dump()
    for override in overrides:
        apply_override(values, override)
        section = override.partition(".")[0].strip()
        if section not in sections:
            raise ConfigError(
                f"--set {override}: an evaluation of a run can change {', '.join(sections)} only"
            )
    return validate_config(values, "--set")
