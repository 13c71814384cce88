"""Driving `srpo check --deep`: rebuild the policies of a step, then hand them to the twin."""

import os
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from flows.session.privileged import offered, wants
from flows.session.session import Session
from flows.session.stage_runner import STAGES
from pipeline.check.deep import DeepReport, StartingState, State, deep_check
from pipeline.errors import ConfigError, StoreError
from pipeline.policy.adapters import trainable
from pipeline.policy.policy import Policy
from pipeline.policy.snapshots import save_snapshot
from pipeline.run.run import Run
from pipeline.stage.contract import Progress, silent


def check_step(
    run_dir: Path, step: int, progress: Progress = silent, replayed: Progress = silent
) -> DeepReport:
    """Recompute one step of a run in float64 and compare its tables.

    Args:
        progress: told of rollouts scored and learned from.
        replayed: told of updates replayed to rebuild the policy.

    Raises:
        ConfigError: the run's precision is not float32.
        StoreError: a table of the step is missing or damaged, or the step is too large.
    """
    run = Run.open(run_dir)
    if run.config.model.precision != "float32":
        raise ConfigError(
            f"{run_dir}: computed in {run.config.model.precision}; --deep knows what float32 may "
            "do, and compares no other precision"
        )
    routes = run.read("routes", step)
    scorer = run.owner("teacher" if run.has("teacher", step) else "rollouts", step)
    with tempfile.TemporaryDirectory(prefix="srpo-deep-") as folder:
        with Session.resume(scorer.root, writes=False) as session:
            policy = session.prepare(step, replayed)
            _expect_small(run, step, policy)
            start = _starting_state(policy, Path(folder) / "policy", step)
            renewed = _renewed_teacher(session, policy, step)
        notes = []
        if renewed is None:
            notes = ["the teacher is the copy that was kept: the policy that it is of was not"]
        else:
            start = replace(start, teacher=renewed or start.teacher)
        before = {}
        if run.has("updates", step):
            updater = run.owner("updates", step)
            batches = len(set(routes["mini_batch"].to_pylist()))
            before = _before_updates(updater.root, step, batches, replayed)
        total, done = 2 * routes.num_rows, 0

        def advance(passes: int) -> None:
            nonlocal done
            done += passes
            progress(done, total)

        report = deep_check(run, step, start, before, advance, _offered(run, step))
        return replace(report, notes=[*notes, *report.notes])


def _offered(run: Run, step: int) -> dict[tuple[str, str, str], str]:
    """Return the solutions and gold answers that teachers of a step may have been shown."""
    owner = run.owner("routes", step)
    if not wants(owner.config, "solution", "gold"):
        return {}
    with Session.resume(owner.root, writes=False) as session:
        return offered(owner.config, session.questions.of_step(owner.config, step))


def _starting_state(policy: Policy, folder: Path, step: int) -> StartingState:
    teacher = [(_parameters(part.model), part.coefficient) for part in policy.teacher_components()]
    if policy.base is not None:
        start = _parameters(policy.model)
        return StartingState(Path(policy.base.path), policy.version, teacher, start)
    save_snapshot(policy, folder, step)
    return StartingState(folder, policy.version, teacher)


def _renewed_teacher(
    session: Session, policy: Policy, step: int
) -> list[tuple[State, float]] | None:
    """Return what a periodic teacher must be: the policy of a snapshot, and not the copy of it.

    Empty: the teacher is another one. None: there is no such snapshot.
    """
    if policy.teacher.kind != "periodic":
        return []
    copied = policy.teacher.copied_after(step)
    if copied == step:
        return [(_parameters(policy.model), 1.0)]
    if copied not in session.run.snapshots():
        return None
    return [(_parameters(session.resident.open_snapshot(copied).model), 1.0)]


def _before_updates(root: Path, step: int, batches: int, replayed: Progress) -> dict[int, State]:
    """Return the parameters before each optimizer update; all but the first need a replay.

    Updates of another version of the stage are not replayed: there is only the first.
    """
    found: dict[int, State] = {}
    with Session.resume(root, writes=False) as session:
        policy = session.prepare(step, replayed)
        made = session.run.manifest("updates", step).origin.stage_version
        if batches == 1 or made != STAGES["update"].version:
            return {0: _parameters(policy.model)}
        hook = policy.optimizer.register_step_pre_hook(
            lambda *_: found.update({len(found): _parameters(policy.model)})
        )
        session.run_stage("update", step)
        hook.remove()
    return found


def _parameters(model: torch.nn.Module) -> State:
    """Return a copy of what is trained of a model."""
    return {name: p.detach().cpu().clone() for name, p in trainable(model).items()}


def _expect_small(run: Run, step: int, policy: Policy) -> None:
    """Refuse a step whose distributions over the vocabulary don't fit into memory."""
    tokens = run.manifest("teacher", step).rows if run.has("teacher", step) else 0
    needed = 16 * tokens * policy.vocabulary
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > memory:
        raise StoreError(
            f"{run.root}: step {step} has {tokens} taught tokens; their distributions in float64 "
            f"take {needed / 1e9:.0f} GB, this machine has {memory / 1e9:.0f}"
        )
