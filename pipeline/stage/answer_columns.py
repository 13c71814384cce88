"""Columns of sampled answers, shared by the tables `rollouts` and `evaluations`."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import thinking
from pipeline.config.sections import VerifySection
from pipeline.errors import NumericalError, PolicyError
from pipeline.files.durable import digest_of
from pipeline.sampling.engine import Sample, SamplingSettings
from pipeline.seeds import derive_seed
from pipeline.stage.contract import Handles
from pipeline.tables.schemas import UNCLOSED_THINKING
from pipeline.task import Question, Verdict, Verifier
from pipeline.verification.pool import timed_out

Rendered = tuple[str, list[int]]
"""A prompt: its text and its token ids."""


def sample_columns(
    prefix: str,
    rollouts: int,
    settings: SamplingSettings,
    handles: Handles,
    prompts: Mapping[int, Rendered] | None = None,
) -> dict[str, list[Any]]:
    """Sample `rollouts` answers per question and return the columns of `rollouts`.

    Rollout j of a group has seed (seed of the group) + j, groups' seeds being far apart: engines
    that number the samples of one request themselves draw the same seeds.

    Args:
        prefix: leading text of rollout ids ("" in training, "e" in evaluations).
        settings: how to draw tokens.
        handles: questions, policy and engine.
        prompts: what to ask instead of questions, by their index; None: every question itself.

    Raises:
        NumericalError: the engine reports a log-probability that is not finite.
    """
    policy, engine = handles.require_policy(), handles.engine
    if engine is None:
        raise PolicyError("sampling needs an engine and got none")
    asked = prompts or {g: policy.render(q.messages) for g, q in enumerate(handles.questions)}
    firsts = {g: derive_seed(handles.seed, f"sample{prefix}", handles.step, g) for g in asked}
    seeds = [[first + j for j in range(rollouts)] for first in firsts.values()]
    samples = engine.sample([ids for _, ids in asked.values()], seeds, settings, handles.progress)
    groups = zip(asked, samples, strict=True)
    rows = [(group, j, s) for group, answers in groups for j, s in enumerate(answers)]
    questions = [handles.questions[group] for group, _, _ in rows]

    def column(value: Callable[[int, int, Sample], Any]) -> list[Any]:
        return [value(*row) for row in rows]

    def constant(value: Any) -> list[Any]:
        return [value] * len(rows)

    rollout_ids = column(lambda g, j, _: f"{prefix}{handles.step:06d}-{g:04d}-{j:02d}")
    _expect_finite(engine.name, rollout_ids, column(lambda g, j, s: s.logprobs))
    thinking_columns = {}
    if policy.prompts.thinks:
        thinking_columns[UNCLOSED_THINKING] = column(
            lambda g, j, s: policy.leaves_thinking_open(asked[g][0], s.response_ids)
        )
    return {
        "rollout_id": rollout_ids,
        "step": constant(handles.step),
        "group": column(lambda g, j, _: g),
        "sample": column(lambda g, j, _: j),
        "task": column(lambda g, j, _: handles.tasks[g]),
        "prompt_id": [q.prompt_id for q in questions],
        "messages": [[m._asdict() for m in q.messages] for q in questions],
        "reference": [q.reference for q in questions],
        "prompt_ids": column(lambda g, j, _: asked[g][1]),
        "response_ids": column(lambda g, j, s: s.response_ids),
        "response_text": column(lambda g, j, s: policy.decode(s.response_ids)),
        "sampled_logprobs": column(lambda g, j, s: s.logprobs),
        "temperature": constant(settings.temperature),
        "top_p": constant(settings.top_p),
        "top_k": constant(settings.top_k),
        "finish_reason": column(lambda g, j, s: s.finish_reason),
        "seed": column(lambda g, j, _: firsts[g] + j),
        "policy_version": constant(policy.version),
        "engine": constant(engine.name),
        **thinking_columns,
    }


def asked_facts(questions: Sequence[Question]) -> dict[str, str]:
    """Return the digest of questions as a table holds them, where that is not the origin's.

    The origin's is of their worked solutions, too, which no table has.
    """
    if all(question.solution is question.demonstration is None for question in questions):
        return {}
    return {"asked": digest_of([question.asked() for question in questions])}


def _expect_finite(engine: str, rollout_ids: list[str], logprobs: list[list[float]]) -> None:
    """Refuse samples of broken distributions; evaluations would keep no trace of what they were."""
    broken = [
        (rollout_id, [position for position, value in enumerate(row) if not math.isfinite(value)])
        for rollout_id, row in zip(rollout_ids, logprobs, strict=True)
    ]
    broken = [(rollout_id, positions) for rollout_id, positions in broken if positions]
    if broken:
        first = ", ".join(f"{i} (from position {positions[0]})" for i, positions in broken[:3])
        raise NumericalError(
            f"engine {engine} reports log-probabilities that are not finite in {len(broken)} of "
            f"{len(rollout_ids)} rollouts: {first}; none of them is kept: the policy's weights or "
            "logits are broken, or the engine's copy of them"
        )


def unfinished(answers: pa.Table) -> list[bool]:
    """Return which answers end inside a think block: they demonstrate nothing (section 2).

    Where the chat template thinks, generate has recorded it; elsewhere the response alone tells.

    Args:
        answers: rollouts or evaluations.
    """
    if UNCLOSED_THINKING in answers.column_names:
        return list(answers.column(UNCLOSED_THINKING).to_pylist())
    return [thinking.unclosed_thinking(t) for t in answers.column("response_text").to_pylist()]


def verdict_columns(
    tasks: list[str],
    responses: list[str],
    references: list[str],
    unclosed: Sequence[bool] | None,
    settings: VerifySection,
    handles: Handles,
) -> dict[str, list[Any]]:
    """Judge answers, each by its task's verifier, and return the columns of `verdicts`.

    Args:
        unclosed: which answers end inside a think block; None: the chat template doesn't think.
    """
    wrong = unclosed is not None and settings.unfinished_thinking == "wrong"
    unasked = list(unclosed or ()) if wrong else [False] * len(tasks)
    judged = _judged(tasks, list(zip(responses, references, strict=True)), unasked, handles)
    verdicts = [verdict for _, verdict in judged]
    threshold = settings.success_threshold
    return {
        "reward": [v.reward for v in verdicts],
        # Compared as stored, in float32, so that an audit of the table agrees.
        "correct": [bool(np.float32(v.reward) >= np.float32(threshold)) for v in verdicts],
        "format_ok": [v.format_ok for v in verdicts],
        "prediction": [v.prediction or "" for v in verdicts],
        "feedback": [v.feedback for v in verdicts],
        "verifier": [version for version, _ in judged],
        "error": [v.error for v in verdicts],
    }


_UNFINISHED = Verdict(reward=0.0, format_ok=False)
"""Of an answer that was never given: what may look like one is part of a draft."""


def _judged(
    tasks: Sequence[str],
    pairs: Sequence[tuple[str, str]],
    unasked: Sequence[bool],
    handles: Handles,
) -> list[tuple[str, Verdict]]:
    """Return the version of the verifier and the verdict of each pair, one task after the other.

    No verifier is asked of an answer that was never given (`unasked`): it is wrong.
    A time-out is judged once more, when nothing else is: the machine may have been busy. What can't
    be judged all the same is neither right nor wrong (section 1): its reward is a placeholder.
    """
    found: dict[int, tuple[str, Verdict]] = {}
    names = [_verifier_of(task, handles.verifiers) for task in tasks]
    for name, verifier in handles.verifiers.items():
        own = [row for row, whose in enumerate(names) if whose == name]
        found |= {row: (verifier.version, _UNFINISHED) for row in own if unasked[row]}
        rows = [row for row in own if not unasked[row]]
        verdicts = verifier.pool.verify([pairs[row] for row in rows]) if rows else []
        found |= {row: (verifier.version, v) for row, v in zip(rows, verdicts, strict=True)}
    late = [row for row in range(len(pairs)) if timed_out(found[row][1])]
    for done, row in enumerate(late, start=1):
        verifier = handles.verifiers[names[row]]
        found[row] = (verifier.version, _judged_alone(verifier, pairs[row]))
        handles.progress(done, len(late))
    return [(version, _placeholder(v)) for version, v in map(found.__getitem__, range(len(pairs)))]


def _judged_alone(verifier: Verifier, pair: tuple[str, str]) -> Verdict:
    """Judge one pair again, on its own; say so if that, too, takes too long."""
    (verdict,) = verifier.pool.verify([pair])
    if not timed_out(verdict):
        return verdict
    return replace(verdict, error=f"{verdict.error}, also when judged alone")


def _placeholder(verdict: Verdict) -> Verdict:
    """Return a verdict; with an error its reward is 0, whatever the verifier gave beside it."""
    if verdict.error is None:
        return verdict
    return replace(verdict, reward=0.0, format_ok=False)


def _verifier_of(task: str, verifiers: Mapping[str, Verifier]) -> str:
    """Return whose verifier judges a task's answers: its own.

    The only one there is judges all: in a fork, a run's rollouts may be judged by other code.

    Raises:
        PolicyError: there is none.
    """
    name = next(iter(verifiers)) if len(verifiers) == 1 else task
    if name not in verifiers:
        raise PolicyError(f"judging answers of task {task} needs its verifier and got none")
    return name
