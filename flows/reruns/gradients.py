"""Driving `srpo compare --gradients`: every method's gradient at the policy that starts a step.

The runs are read and nothing is written: their tables say what each method made of the same
rollouts, and the policy is rebuilt as for any stage.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from torch import Tensor

from flows.session.session import Session
from pipeline.audit.token_texts import TokenTexts
from pipeline.compare.comparability import runs_by_folder
from pipeline.compare.side_by_side import (
    CORRECT,
    FAILED,
    NOT_JUDGED,
    Effect,
    MethodGradient,
    Sample,
    SideBySide,
    cosine,
    labels,
)
from pipeline.config.sections import UpdateSection
from pipeline.distributed.sharding import local
from pipeline.errors import ConfigError, StoreError
from pipeline.policy.policy import Policy
from pipeline.run.removal import removal
from pipeline.run.run import Run
from pipeline.stage.contract import Progress, silent
from pipeline.stage.runner import next_version
from pipeline.text import command
from stages.update.batch import Rollout, rollouts_of
from stages.update.clipping import gradient_dot, gradient_norm
from stages.update.stage import STAGE, accumulate_gradient
from stages.update.token_gradients import TokenGradients, token_gradients

_SHARED = ("rollouts", "verdicts")
_NEAR = 1e-4
"""Relative: norms beyond it are no longer those of one computation on two machines."""


@dataclass(frozen=True)
class _Learning:
    """What a run learns from in the first optimizer update of a step."""

    run: Run
    name: str
    method: str
    settings: UpdateSection
    kept: int
    rollouts: list[Rollout]


def side_by_side(
    runs: Sequence[Run],
    step: int | None = None,
    progress: Progress = silent,
    replayed: Progress = silent,
) -> SideBySide:
    """Return what each run's method does with the rollouts of a step, and its gradient.

    It is the first optimizer update of the step: the one that all begin from the same policy.

    Args:
        runs: a run and replayed forks of it, or such forks.
        step: None: the last that all of them start from the same policy.
        progress: told of runs done.
        replayed: told of updates replayed to rebuild the policy.

    Raises:
        ConfigError: the runs have no such step in common.
        StoreError: a table is missing or damaged, or the gradients don't fit into memory.
    """
    named = runs_by_folder(runs)
    step = _last_common_step(named) if step is None else step
    _expect_same_start(named, step)
    with Session.resume(runs[0].root, writes=False) as session:
        policy = session.prepare(step, replayed)
        _expect_memory(policy, len(runs))
        learning = [_learning(run, name, step, policy.version) for name, run in named.items()]
        _expect_same_rollouts(learning)
        return _at(policy, learning, step, progress)


def _at(policy: Policy, learning: Sequence[_Learning], step: int, progress: Progress) -> SideBySide:
    """Take the methods' gradients at a policy."""
    version = policy.version
    samples = _samples(learning[0], step)
    methods, gradients, warnings = [], [], []
    policy.begin_update()  # so that activations are recomputed where an update does
    for done, (own, label) in enumerate(zip(learning, _labels(learning), strict=True), start=1):
        tokens = accumulate_gradient(policy, own.rollouts, own.kept, own.settings).tokens
        trained = policy.trainable().values()
        norm = gradient_norm([p.grad for p in trained if p.grad is not None])
        gradients.append([local(p.grad).cpu() for p in trained if p.grad is not None])
        policy.optimizer.zero_grad(set_to_none=True)
        found = token_gradients(policy, own.rollouts, own.kept, own.settings)
        method = MethodGradient(
            label=label,
            run=f"{own.run.root}",
            tokens=tokens,
            norm=norm,
            recorded_norm=_recorded_norm(own.run, step),
            effects=[_effect(rollout, found.get(rollout.rollout_id)) for rollout in own.rollouts],
        )
        methods.append(method)
        warnings += _doubts(method)
        progress(done, len(learning))
    policy.finish_update(version)
    return SideBySide(step, version, samples, methods, _cosines(methods, gradients), warnings)


def _cosines(
    methods: Sequence[MethodGradient], gradients: Sequence[Sequence[Tensor]]
) -> list[list[float | None]]:
    """Return the cosine of each pair of gradients; each product is summed once."""
    count = len(methods)
    found: list[list[float | None]] = [[None] * count for _ in range(count)]
    for i in range(count):
        for j in range(i, count):
            dot = methods[i].norm ** 2 if i == j else gradient_dot(gradients[i], gradients[j])
            found[i][j] = found[j][i] = cosine(dot, methods[i].norm, methods[j].norm)
    return found


def _learning(run: Run, name: str, step: int, policy_version: str) -> _Learning:
    tables: dict[str, pa.Table] = {table: run.read(table, step) for table in STAGE.reads}
    sampled_by = set(tables["rollouts"].column("policy_version").to_pylist())
    rollouts = rollouts_of(tables, on_policy=sampled_by == {policy_version})
    first = min((rollout.mini_batch for rollout in rollouts), default=0)
    return _Learning(
        run=run,
        name=name,
        method=run.manifest("routes", step).origin.settings_of("route")["method"],
        settings=run.owner("updates", step).config.update,
        kept=tables["teacher"].schema.field("topk_ids").type.list_size,
        rollouts=[rollout for rollout in rollouts if rollout.mini_batch == first],
    )


def _labels(learning: Sequence[_Learning]) -> list[str]:
    return labels([own.method for own in learning], [own.name for own in learning])


def _samples(own: _Learning, step: int) -> list[Sample]:
    columns = ["rollout_id", "group", "messages", "response_ids"]
    rows = own.run.read("rollouts", step).select(columns).to_pylist()
    verdicts = own.run.read("verdicts", step).to_pylist()
    texts = TokenTexts(own.run.tokenizer_path())
    learned = {rollout.rollout_id for rollout in own.rollouts}
    return [
        Sample(
            rollout_id=row["rollout_id"],
            group=row["group"],
            outcome=_outcome(verdict),
            reward=verdict["reward"],
            question=row["messages"][-1]["content"],
            token_ids=row["response_ids"],
            texts=[texts(token) for token in row["response_ids"]],
        )
        for row, verdict in zip(rows, verdicts, strict=True)
        if row["rollout_id"] in learned
    ]


def _outcome(verdict: dict[str, Any]) -> str:
    if verdict["error"] is not None:
        return NOT_JUDGED
    return CORRECT if verdict["correct"] else FAILED


def _effect(rollout: Rollout, found: TokenGradients | None) -> Effect:
    if found is None:
        return Effect(rollout.route, *(np.zeros(rollout.tokens) for _ in range(3)))
    return Effect(rollout.route, *(column.numpy() for column in found))


def _recorded_norm(run: Run, step: int) -> float | None:
    """Return the norm before clipping that the step's first update recorded."""
    if not run.has("updates", step):
        return None
    norms = run.manifest("updates", step).facts["grad_norm"]
    return float(norms[0]) if norms else None


def _doubts(method: MethodGradient) -> list[str]:
    recorded = method.recorded_norm
    if recorded is None or math.isclose(recorded, method.norm, rel_tol=_NEAR, abs_tol=1e-12):
        return []
    return [
        f"{method.label}: the norm is {method.norm:.6g}, its update recorded {recorded:.6g}: "
        "another machine or other code made it"
    ]


def _start_version(run: Run, step: int) -> str | None:
    """Return the version of the policy that starts a step of a run; None: it isn't that far."""
    if step == 0:
        return str(run.record["initial_policy_version"])
    if not run.has("updates", step - 1):
        return None
    return next_version(run.manifest("updates", step - 1).origin)


def _last_common_step(named: dict[str, Run]) -> int:
    runs = list(named.values())
    common = set.intersection(*(set(run.steps_of("weights")) for run in runs))
    for step in sorted(common, reverse=True):
        starts = {_start_version(run, step) for run in runs}
        if len(starts) == 1 and None not in starts:
            return step
    raise ConfigError(
        f"{', '.join(named)}: no step that all of them have, with weights, and start from the same "
        "policy; make forks of one run: "
        f"{command('replay', runs[0].root, '--from', 'route', '--set')} route.method=… --fork NEW"
    )


def _expect_same_start(named: dict[str, Run], step: int) -> None:
    """Refuse runs that begin a step from different policies, or with different rollouts."""
    (first_name, first), *others = named.items()
    for name, run in named.items():
        for table in STAGE.reads:
            if (gone := removal(run.table_path(table, step))) is not None:
                owner = run.owner(table, step).root
                raise StoreError(f"{name}: {table} of step {step} was {gone.described(owner)}")
            if not run.has(table, step):
                raise StoreError(f"{run.root}: step {step} has no table {table}; choose another")
        start = _start_version(run, step)
        if start is None:
            raise StoreError(f"{run.root}: no update of step {step - 1}, so none starts {step}")
    for name, run in others:
        ours, theirs = _start_version(first, step), _start_version(run, step)
        if ours != theirs:
            raise ConfigError(
                f"step {step} starts from policy {ours} in {first_name} and from {theirs} in "
                f"{name}: their gradients there have no common sample; compare the first step "
                "that was replayed, or replay this one alone"
            )
        for table in _SHARED:
            if first.manifest(table, step).sha256 != run.manifest(table, step).sha256:
                raise ConfigError(
                    f"{table} of step {step} differ between {first_name} and {name}: methods are "
                    "compared over the same ones, as replayed forks have them"
                )


def _expect_same_rollouts(learning: Sequence[_Learning]) -> None:
    ids = [[rollout.rollout_id for rollout in own.rollouts] for own in learning]
    for own, theirs in zip(learning, ids, strict=True):
        if theirs != ids[0]:
            raise ConfigError(
                f"the first optimizer update has {len(ids[0])} rollouts in {learning[0].name} and "
                f"{len(theirs)} in {own.name}, or others: give them one route.mini_batch"
            )


def _expect_memory(policy: Policy, runs: int) -> None:
    """Refuse gradients that don't fit into memory together."""
    needed = 4 * runs * sum(p.numel() for p in policy.trainable().values())
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > memory:
        raise StoreError(
            f"{runs} gradients take {needed / 1e9:.0f} GB, this machine has {memory / 1e9:.0f}; "
            "compare fewer runs at a time"
        )
