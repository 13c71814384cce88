"""Forking a run: what a fork may change, and its record; nothing is recomputed here."""

import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from flows.session.privileged import expect_gold
from flows.session.question_loading import load_questions
from flows.session.questions import (
    expect_training_context,
    fitting,
    model_positions,
    tokenizer_render,
)
from flows.session.stage_runner import STAGES
from flows.session.verifiers import code_digest
from pipeline.config.load import apply_override, validate_config
from pipeline.config.sections import Config
from pipeline.errors import ConfigError, StoreError
from pipeline.remote.mirror_paths import address_of
from pipeline.remote.mirror_sync import is_run
from pipeline.run.fork import TASK_CODE, Fork
from pipeline.run.lock import RunLock
from pipeline.run.removal import removal
from pipeline.run.run import Run, is_taken
from pipeline.run.step_layout import stage_index, stages_from, tables_before
from pipeline.stage.contract import Stage
from pipeline.tables.manifest import flat

_FIRST_USER = {
    "generate": "generate",
    "data.path": "generate",
    "data.max_prompt_length": "generate",
    "data.on_bad_row": "generate",
    "run.seed": "generate",
    "data.task": "verify",
    "data.mixture": "generate",
    "verify": "verify",
    "route": "route",
    "weigh": "weigh",
    "update": "update",
}
"""The first stage of a step that depends on a setting, by section or by key."""


def fork_run(
    parent: Run,
    root: Path,
    stage: str,
    start: int,
    end: int,
    overrides: Sequence[str] = (),
    updates: bool = True,
) -> Run:
    """Make a run that takes from `parent` all before `stage` of step `start`.

    Args:
        start, end: steps [start, end) whose tables upstream of `stage` are the parent's.
        overrides: settings of `stage`, or of stages after it.
        updates: whether the fork will recompute `update`, so that policies become its own.

    Raises:
        ConfigError: a setting can't be changed here; the line says from which stage it could.
        StoreError: the folder is taken, or a table that the fork would refer to is missing.
    """
    with RunLock(root):
        config, fork = planned_fork(parent, root, stage, start, end, overrides, updates)
        if is_run(root):
            return Run.open(root)
        facts = {
            **{key: parent.record[key] for key in _INHERITED_FACTS if key in parent.record},
            **_questions_facts(parent, config, fork.changed),
            "task_digest": _task_digest(parent, config, stage),
            "versions": {name: version(name) for name in parent.record["versions"]},
            "fork": fork.to_record(),
        }
        return Run.create(root, config, facts)


def planned_fork(
    parent: Run,
    root: Path,
    stage: str,
    start: int,
    end: int,
    overrides: Sequence[str],
    updates: bool,
) -> tuple[Config, Fork]:
    """Return what `fork_run` would write, with all its checks and errors; writes nothing.

    The same fork that is there already, finished or not, is no obstacle.
    """
    config = _forked_config(parent.config, overrides)
    changed = _changes(parent, config, stage, start)
    _expect_downstream(changed, stage)
    _expect_tables(parent, stage, start, end)
    expect_training_context(config, model_positions(parent.snapshot_path(0)))
    expect_gold(config)
    if end > config.run.steps:
        raise ConfigError(f"run.steps is {config.run.steps}, fewer than the {end} of the fork")
    if (parent.address is None) != (address_of(root) is None):
        raise ConfigError(
            f"{root}: a fork of {parent.root} names it by a relative folder, so both must be on "
            "this machine, or both on one store"
        )
    relative = os.path.relpath(parent.root.resolve(), root.resolve())
    off_policy = _is_off_policy(parent, start)
    fork = Fork(relative, parent.identity, stage, start, end, changed, updates, off_policy)
    if is_taken(root) and not (is_run(root) and Run.open(root).fork == fork):
        raise StoreError(f"{root}: there is something already; choose another --fork")
    return config, fork


def _is_off_policy(parent: Run, step: int) -> bool:
    """Tell whether another policy sampled a step's rollouts than its update starts from."""
    if parent.has("rollouts", step) and parent.has("updates", step):
        sampled, updated = (parent.manifest(t, step).origin for t in ("rollouts", "updates"))
        return sampled.policy_version != updated.policy_version
    since = parent.fork.off_policy_from if parent.fork else None
    return parent.fork is not None and since is not None and since <= step < parent.fork.end


_INHERITED_FACTS = ("hardware", "initial_policy_version", "stop_tokens", "trained", "gguf")


def code_changes(run: Run, stage: Stage, step: int) -> list[str]:
    """Say which code of a committed stage is no longer the code that made its tables."""
    found = []
    for table in stage.writes:
        if run.has(table, step):
            origin = run.manifest(table, step).origin
            if origin.stage_version != stage.version:
                found.append(f"stage {stage.name}: {origin.stage_version} → {stage.version}")
            recorded = origin.inputs.get("verifier")
            current = code_digest(run.config)
            if recorded not in (None, current):
                found.append(f"{TASK_CODE}: {str(recorded)[:12]} → {current[:12]}")
    return sorted(set(found))


def free_name(parent: Path) -> Path:
    """Return the first free folder PARENT-fork-<n> beside a run."""
    taken = 1
    while is_taken(name := parent.with_name(f"{parent.name}-fork-{taken}")) or name.exists():
        taken += 1
    return name


def _forked_config(config: Config, overrides: Sequence[str]) -> Config:
    values = config.model_dump()
    keys = [override.partition("=")[0].strip() for override in overrides]
    own = 1.0 if config.route.method == "srpo" else 0.0
    for override in overrides:
        apply_override(values, override)
    if "route.method" in keys:
        weighs = values["route"]["method"] == "srpo"
        if "weigh.beta" not in keys and (config.weigh.beta == own or not weighs):
            values["weigh"]["beta"] = None  # resolved anew: it was the other method's
        if "weigh.survival" not in keys and not weighs:
            values["weigh"]["survival"] = "off"  # only srpo has it
    return validate_config(values, "--set")


def _changes(parent: Run, config: Config, stage: str, start: int) -> dict[str, tuple[Any, Any]]:
    """Return what differs from the parent: settings, code of the task, versions of stages."""
    before, after = flat(parent.config.model_dump()), flat(config.model_dump())
    found = {
        key: (before.get(key), after.get(key))
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    }
    judges = stage_index(stage) <= stage_index("verify")
    old, new = parent.record["task_digest"], _task_digest(parent, config, stage)
    if old != new and judges:
        found[TASK_CODE] = (old[:12], new[:12])
    for name in stages_from(stage):
        for table in STAGES[name].writes:
            if parent.has(table, start):
                was, now = parent.manifest(table, start).origin.stage_version, STAGES[name].version
                if was != now:
                    found[f"version of stage {name}"] = (was, now)
    for evaluated in [n for n in parent.steps_of("evaluations") if n <= start][-1:]:
        was = parent.manifest("evaluations", evaluated).origin.stage_version
        if was != STAGES["evaluate"].version:
            found["version of evaluate"] = (was, STAGES["evaluate"].version)
    return found


def _task_digest(parent: Run, config: Config, stage: str) -> str:
    """Return the digest of the task's source: the parent's where its verdicts are taken over."""
    if stage_index(stage) > stage_index("verify"):
        return str(parent.record["task_digest"])
    return code_digest(config)


def _expect_downstream(changed: dict[str, tuple[Any, Any]], stage: str) -> None:
    """Refuse settings on which tables depend that the fork would take from its parent."""
    for key in changed:
        section = key.partition(".")[0]
        if section == "model" and key != "model.device":
            raise ConfigError(f"{key} can't change in a fork: the policy is the parent's")
        first = _first_user(key)
        if first is not None and stage_index(first) < stage_index(stage):
            raise ConfigError(
                f"{key} is used by stage {first}, but the fork begins at {stage} and takes the "
                f"tables of {first} from its parent: fork from {first}"
            )


def _first_user(key: str) -> str | None:
    """Return the first stage of a step that depends on a setting; none: no stage does."""
    if key.startswith("data.mixture."):
        key = "data.task" if key.endswith(".task") else "data.mixture"
    return _FIRST_USER.get(key) or _FIRST_USER.get(key.partition(".")[0])


def _expect_tables(parent: Run, stage: str, start: int, end: int) -> None:
    for step in range(start, end):
        for table in (t for t in tables_before(stage) if t in parent.tables_of(step)):
            if (gone := removal(parent.table_path(table, step))) is not None:
                owner = parent.owner(table, step).root
                raise StoreError(
                    f"{parent.root}: table {table} of step {step}, which a fork from {stage} would "
                    f"refer to, was {gone.described(owner)}"
                )
            if not parent.has(table, step):
                raise StoreError(
                    f"{parent.root}: no table {table} of step {step}, which a fork from {stage} "
                    "would refer to; choose other steps, or an earlier stage"
                )
    if start > parent.steps_done():
        raise StoreError(
            f"{parent.root} has {parent.steps_done()} complete steps: no fork at step {start}"
        )


def _questions_facts(
    parent: Run, config: Config, changed: dict[str, tuple[Any, Any]]
) -> dict[str, Any]:
    """Return what is recorded of the questions; they are loaded only if they may be others."""
    if any(key.startswith("data.") or key == TASK_CODE for key in changed):
        questions = fitting(load_questions(config), config, tokenizer_render(parent))
        return questions.facts()
    keys = ("questions_digest", "skipped_questions", "bad_rows", "test_duplicates")
    return {key: parent.record[key] for key in keys if key in parent.record}
