"""Measuring the teacher's lead: the same questions, with a teacher prompt and without.

Training learns from a teacher that is shown something. If the policy can't use what it is shown,
the teacher says nothing that the policy doesn't say by itself, and nothing is learned from it.

    policy    samples groups of the next training questions, as the step would
    route     finds what each wrong answer's teacher is shown (the same code)
    teacher   answers the teacher prompts, and as often the questions alone
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

import stages.bank
import stages.route
from flows.reruns.evaluate import with_overrides
from flows.session.new_run import teacher_settings
from flows.session.open_run import expect_teacher
from flows.session.privileged import expect_offered
from flows.session.questions import expect_training_context, positions_of
from flows.session.session import Session
from pipeline.config.sections import Config
from pipeline.errors import ConfigError
from pipeline.files.durable import digest_of
from pipeline.files.sealed_json import read_sealed
from pipeline.run.lead_record import ALONE, SAMPLED, TAUGHT, lead_path, lead_schema, write_lead
from pipeline.sampling.engine import sampling_settings
from pipeline.sampling.transformers_engine import TransformersEngine
from pipeline.stage.answer_columns import Rendered, sample_columns, verdict_columns
from pipeline.stage.contract import Handles, Progress, silent
from pipeline.tables.schemas import UNCLOSED_THINKING, Row

QUESTIONS = 32
"""Training questions that are asked unless somebody says otherwise."""
WORK = ("questions, by the policy", "questions, by the teacher", "teacher prompts")
"""What the progress functions of `measure_lead` are told of."""

_SECTIONS = ("generate", "route")


class Lead(NamedTuple):
    """A measurement.

    Attributes:
        path: its record; the table of all answers is beside it.
        found: whether it had been made before.
    """

    path: Path
    record: dict[str, Any]
    found: bool


def measure_lead(
    session: Session,
    steps_done: int,
    questions: int = QUESTIONS,
    overrides: Sequence[str] = (),
    progress: Sequence[Progress] = (silent, silent, silent),
    replayed: Progress | None = None,
) -> Lead:
    """Measure the lead of the teacher that scores step `steps_done`; one that was measured is read.

    The run's tables stay as they are. All randomness is derived from the run's seed, so the same
    measurement has the same bytes. The teacher's answers come from the engine `transformers`,
    whatever `generate.engine`: vLLM holds the policy's weights, and room for its prompts alone.

    Args:
        questions: how many, from those of step `steps_done` on, in the order of training.
        overrides: of `generate` and `route`.
        progress: see WORK.
        replayed: told of the updates that are replayed to rebuild the policy.

    Raises:
        ConfigError: the method has no teacher, or nothing to show it; a setting can't be changed
            here.
    """
    config = _settings(session.config, overrides)
    expect_offered(config, session.questions)
    policy = session.prepare(steps_done, replayed)
    expect_training_context(config, positions_of(policy))
    first = steps_done * session.config.generate.questions
    asked = session.questions.stretch(config, "epoch", first, questions)
    recorded = config.recorded()
    made_from = {
        "steps_done": steps_done,
        "policy_version": policy.version,
        "teacher_version": policy.teacher_version,
        "seed": config.run.seed,
        "questions": questions,
        "questions_digest": digest_of([q.recorded() for q in asked.questions]),
        "task_digest": session.run.record.get("task_digest"),
        "settings": {name: recorded[name] for name in ("generate", "verify", "route")},
    }
    path = lead_path(session.run.root, made_from)
    if path.exists():
        return Lead(path, read_sealed(path), found=True)
    with session.stages.asking(config, asked, steps_done, path) as handles:
        answers = _answers(config, handles, progress)
    return Lead(path, write_lead(path, made_from, answers), found=False)


def _answers(config: Config, handles: Handles, progress: Sequence[Progress]) -> pa.Table:
    """Return the answers of all parts, one after the other."""
    policy = handles.require_policy()
    groups = _part(SAMPLED, config, replace(handles, progress=progress[0]))
    shown, parts = _shown(groups, config, handles), [groups]
    teacher = replace(handles, engine=TransformersEngine(policy, teacher=True))
    if taught := sorted({row["group"] for row in shown}):
        prompts = {group: policy.render(handles.questions[group].messages) for group in taught}
        alone = replace(teacher, progress=progress[1])
        parts.append(_part(ALONE, config, alone, prompts))
    for source in dict.fromkeys(row["teacher_source"] for row in shown):
        rows = {row["group"]: row for row in shown if row["teacher_source"] == source}
        prompts = {g: (r["teacher_prompt_text"], r["teacher_prompt_ids"]) for g, r in rows.items()}
        parts.append(
            _part(TAUGHT, config, replace(teacher, progress=progress[2]), prompts, rows, source)
        )
    return pa.concat_tables(parts)


def _part(
    part: str,
    config: Config,
    handles: Handles,
    prompts: Mapping[int, Rendered] | None = None,
    shown: Mapping[int, Row] | None = None,
    source: str = "none",
) -> pa.Table:
    """Sample `generate.rollouts` answers to each question or prompt, and judge them.

    Args:
        prompts: by question; None: each question itself.
        shown: by question, the row of `routes` whose teacher prompt it is; None: nothing is shown.
    """
    settings, policy = config.generate, handles.require_policy()
    prefix = {SAMPLED: "", ALONE: f"{ALONE}-", TAUGHT: f"{source}-"}[part]
    columns = sample_columns(
        prefix, settings.rollouts, sampling_settings(settings), handles, prompts
    )
    del columns["sampled_logprobs"]
    columns |= verdict_columns(
        columns["task"],
        columns["response_text"],
        columns["reference"],
        columns.get(UNCLOSED_THINKING),
        config.verify,
        handles,
    )
    count = len(columns["rollout_id"])
    if part != SAMPLED:
        columns["policy_version"] = [policy.teacher_version] * count
    rows = [(shown or {}).get(group, {}) for group in columns["group"]]
    columns |= {
        "response_tokens": [len(ids) for ids in columns["response_ids"]],
        "part": [part] * count,
        "source": [source] * count,
        "teacher_rollout_id": [row.get("teacher_rollout_id") for row in rows],
        "teacher_prompt_text": [row.get("teacher_prompt_text") for row in rows],
    }
    return pa.table(columns, schema=lead_schema(list(columns)))


def _shown(groups: pa.Table, config: Config, handles: Handles) -> list[Row]:
    """Return the rows of `routes` that are asked of the teacher: by question and source, the first
    wrong answer that has something to be shown.
    """
    render = handles.require_policy().render
    tables: dict[str, pa.Table] = {"rollouts": groups, "verdicts": groups}
    if "bank" in config.route.sources:
        tables |= stages.bank.STAGE.run(tables, config, handles).tables
    deciding = replace(handles, policy=None, engine=None, render=render)
    routes = stages.route.STAGE.run(tables, config, deciding).tables["routes"].to_pylist()
    found: dict[tuple[int, str], Row] = {}
    for row, error in zip(routes, groups["error"].to_pylist(), strict=True):
        if not row["correct"] and error is None and row["teacher_prompt_ids"]:
            found.setdefault((row["group"], row["teacher_source"]), row)
    return list(found.values())


def _settings(config: Config, overrides: Sequence[str]) -> Config:
    """Return the settings to measure by: the run's, but for overrides.

    Raises:
        ConfigError: one is of another section, or changes what the run has in memory.
    """
    wanted = with_overrides(config, overrides, _SECTIONS)
    expect_teacher(wanted)
    if wanted.generate.engine != config.generate.engine:
        raise ConfigError(f"generate.engine is the run's, {config.generate.engine}")
    if teacher_settings(wanted) != teacher_settings(config):
        raise ConfigError(
            "the teacher is the run's, as it stands: route.teacher and its numbers can't be changed"
        )
    return wanted
