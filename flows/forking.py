"""Forking a run: what a fork may change, and its record; nothing is recomputed here."""

import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from data.registry import file_digest
from flows.questions import fitting, load_questions, tokenizer_render
from flows.session import STAGES
from pipeline.config import Config
from pipeline.errors import ConfigError, StoreError
from pipeline.lineage import STEP_STAGES, Fork, stages_from, tables_before
from pipeline.loading import apply_override, validate_config
from pipeline.manifest import flat
from pipeline.stage import Stage
from pipeline.store import Run, is_taken

_FIRST_USER = {
    "generate": "generate",
    "data.path": "generate",
    "data.max_prompt_length": "generate",
    "run.seed": "generate",
    "data.task": "verify",
    "verify": "verify",
    "route": "route",
    "weigh": "weigh",
    "update": "update",
}
"""The first stage of a step that depends on a setting, by section or by key."""
_TASK_CODE = "code of the task"


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
    config = _forked_config(parent.config, overrides)
    changed = _changes(parent, config, stage, start)
    _expect_downstream(changed, stage)
    _expect_tables(parent, stage, start, end)
    if is_taken(root):
        raise StoreError(f"{root}: there is something already; choose another --fork")
    if end > config.run.steps:
        raise ConfigError(f"run.steps is {config.run.steps}, fewer than the {end} of the fork")
    relative = os.path.relpath(parent.root.resolve(), root.resolve())
    fork = Fork(relative, parent.identity, stage, start, end, changed, updates)
    facts = {
        **{key: parent.record[key] for key in _INHERITED_FACTS},
        **_questions_facts(parent, config, changed),
        "versions": {name: version(name) for name in parent.record["versions"]},
        "fork": fork.to_record(),
    }
    return Run.create(root, config, facts)


_INHERITED_FACTS = ("hardware", "initial_policy_version")


def code_changes(run: Run, stage: Stage, step: int) -> list[str]:
    """Say which code of a committed stage is no longer the code that made its tables."""
    found = []
    for table in stage.writes:
        if run.has(table, step):
            origin = run.manifest(table, step).origin
            if origin.stage_version != stage.version:
                found.append(f"stage {stage.name}: {origin.stage_version} → {stage.version}")
            recorded = origin.inputs.get("verifier")
            current = file_digest(run.config.data.task)
            if recorded not in (None, current):
                found.append(f"{_TASK_CODE}: {str(recorded)[:12]} → {current[:12]}")
    return sorted(set(found))


def free_name(parent: Path) -> Path:
    """Return the first free folder PARENT-fork-<n> beside a run."""
    taken = 1
    while (name := parent.with_name(f"{parent.name}-fork-{taken}")).exists():
        taken += 1
    return name


def _forked_config(config: Config, overrides: Sequence[str]) -> Config:
    values = config.model_dump()
    keys = [override.partition("=")[0].strip() for override in overrides]
    if "route.method" in keys and "weigh.beta" not in keys:
        values["weigh"]["beta"] = None  # resolved anew: it is the method's own
    for override in overrides:
        apply_override(values, override)
    return validate_config(values, "--set")


def _changes(parent: Run, config: Config, stage: str, start: int) -> dict[str, tuple[Any, Any]]:
    """Return what differs from the parent: settings, code of the task, versions of stages."""
    before, after = flat(parent.config.model_dump()), flat(config.model_dump())
    found = {
        key: (before.get(key), after.get(key))
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    }
    old, new = parent.record["task_digest"], file_digest(config.data.task)
    if old != new:
        found[_TASK_CODE] = (old[:12], new[:12])
    for name in stages_from(stage):
        for table in STAGES[name].writes:
            if parent.has(table, start):
                was, now = parent.manifest(table, start).origin.stage_version, STAGES[name].version
                if was != now:
                    found[f"version of stage {name}"] = (was, now)
    return found


def _expect_downstream(changed: dict[str, tuple[Any, Any]], stage: str) -> None:
    """Refuse settings on which tables depend that the fork would take from its parent."""
    for key in changed:
        section = key.partition(".")[0]
        if section == "model" and key != "model.device":
            raise ConfigError(f"{key} can't change in a fork: the policy is the parent's")
        first = _FIRST_USER.get(key) or _FIRST_USER.get(section)
        if first is not None and STEP_STAGES.index(first) < STEP_STAGES.index(stage):
            raise ConfigError(
                f"{key} is used by stage {first}, but the fork begins at {stage} and takes the "
                f"tables of {first} from its parent: fork from {first}"
            )


def _expect_tables(parent: Run, stage: str, start: int, end: int) -> None:
    for step in range(start, end):
        for table in tables_before(stage):
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
    """Return digests of task and questions; they are loaded only if they may be others."""
    facts = {key: parent.record[key] for key in ("questions_digest", "skipped_questions")}
    if any(key.startswith("data.") or key == _TASK_CODE for key in changed):
        questions = fitting(load_questions(config), config, tokenizer_render(parent))
        facts = {
            "questions_digest": questions.digest(),
            "skipped_questions": questions.skipped,
        }
    return {"task_digest": file_digest(config.data.task), **facts}
