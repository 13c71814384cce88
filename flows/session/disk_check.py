"""Disk space before a run starts: a run that likely doesn't fit is refused."""

from math import floor
from pathlib import Path
from typing import Any

from flows.session.questions import Questions
from pipeline.config.sections import Config
from pipeline.errors import StoreError
from pipeline.housekeeping.space_forecast import Facts, Need, needed
from pipeline.machine.disk import free_bytes
from pipeline.policy.policy import Policy
from pipeline.run.run import Run
from pipeline.text import command, size


def facts_of(policy: Policy, config: Config, questions: Questions) -> Facts:
    """Return what the forecast needs to know of a run that has not begun."""
    parameters = sum(p.numel() for p in policy.trainable().values())
    return Facts(parameters, len(policy.tokenizer), evaluation_answers(config, questions))


def evaluation_answers(config: Config, questions: Questions) -> int:
    """Return how many answers an evaluation samples."""
    return len(questions.of_evaluation(config).questions) * config.evaluate.rollouts


def expect_disk_space(config: Config, facts: Facts, root: Path, run: Run | None = None) -> Need:
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
    found.append("another --run, on another disk" if run is None else command("prune", root))
    return "; ".join(found)
