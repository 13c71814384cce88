"""Route: who learns from its advantage and who from the teacher, and what the teacher says.

The decisions need only the tables; the scores need the policy that starts the step. Only rollouts
whose loss asks the teacher anything get a teacher pass.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.config.sections import Config, RouteSection
from pipeline.forward.packing import TokenSequence
from pipeline.methods import METHODS, asks_teacher, credit_lambda
from pipeline.policy.policy import Policy
from pipeline.stage.answer_columns import unfinished
from pipeline.stage.contract import Handles, Output, ProgressCounter, Render, Stage
from pipeline.tables.schemas import (
    CREDIT_LAMBDA,
    SCORES,
    STUDENT_LOGPROBS,
    TEACHER_STEP,
    Row,
    schema_with,
    teacher_schema,
)
from pipeline.task import Message
from pipeline.text import printable
from stages.route.decisions import (
    group_note,
    group_statistics,
    mini_batches,
    reason_of,
    route_of,
    teacher_available,
)
from stages.route.scores import Floats, ScoredRollout, ScoringJob, score_rollouts
from stages.route.solutions import Group, Solution, Sources
from stages.route.teacher_prompt import TeacherPrompt, is_blank, teacher_prompt

_SHOWN = 200
"""Characters of a verdict's error that are shown."""


def run(tables: Mapping[str, pa.Table], config: Config, handles: Handles) -> Output:
    """Decide routes, build teacher prompts, and make the scoring passes that are needed.

    Without a policy: the decisions and prompts alone.
    """
    settings = config.route
    rollouts = _joined(tables["rollouts"], tables["verdicts"])
    routes = decide(rollouts, settings, handles, tables.get("bank"))
    decisions = pa.Table.from_pylist(routes, schema=schema_with("routes", routes[0]))
    if handles.policy is None:
        return Output({"routes": decisions})
    policy = handles.policy
    kept = min(settings.top_k, policy.vocabulary)
    jobs = _scoring_jobs(rollouts, routes, settings)
    report = ProgressCounter(handles, sum(_passes(j) * len(j.sequence.response_ids) for j in jobs))
    scored, computed = score_rollouts(
        policy,
        jobs,
        kept,
        settings.micro_batch_tokens,
        settings.projection_mb,
        report,
    )
    return Output(
        {
            "routes": decisions,
            "scores": _scores_table(routes, scored, _on_policy(tables["rollouts"], policy)),
            "teacher": _teacher_table(routes, scored, kept, settings),
        },
        facts={
            "teacher_passes": sum(j.teacher_prompt_ids is not None for j in jobs),
            "tokens_computed": computed,
            "tokens_naive": _naive_tokens(rollouts, routes, settings),
        },
        tokens=report.total,
    )


def decide(
    rollouts: Sequence[Row],
    settings: RouteSection,
    handles: Handles,
    bank: pa.Table | None = None,
) -> list[Row]:
    """Return the rows of `routes`; needs no policy."""
    groups: dict[int, list[Row]] = {}
    for row in rollouts:
        groups.setdefault(row["group"], []).append(row)
    batch_of = dict(
        zip(
            groups,
            mini_batches(len(groups), settings.mini_batch, handles.seed, handles.step),
            strict=True,
        )
    )
    sources = Sources(settings, handles, bank)
    credit = _credit(settings, handles.step)
    return [
        {**decision, **credit}
        for group, members in groups.items()
        for decision in _decide_group(
            group_of(members), batch_of[group], settings, sources, handles.prompt_renderer()
        )
    ]


def _credit(settings: RouteSection, step: int) -> Row:
    """Return the step's lambda as the table holds it, so that nobody finds it 0 who reads it."""
    if not METHODS[settings.method].distributes:
        return {}
    credit = credit_lambda(settings.method, settings.credit_lambda, settings.credit_steps, step)
    return {CREDIT_LAMBDA: float(np.float32(credit))}


def group_of(members: Sequence[Row]) -> Group:
    """Return a group: what could not be judged is not correct, whatever its row says."""
    judged = [row["error"] is None for row in members]
    correct = [row["correct"] and known for row, known in zip(members, judged, strict=True)]
    able = [c and not row["unfinished"] for row, c in zip(members, correct, strict=True)]
    return Group(members, judged, correct, able)


def _decide_group(
    group: Group, mini_batch: int, settings: RouteSection, sources: Sources, render: Render
) -> list[Row]:
    scaled = settings.advantage_scale == "group_std"
    rewards = [row["reward"] for row in group.members]
    statistics = group_statistics(rewards, scaled, group.judged_G)
    decisions = []
    for index, row in enumerate(group.members):
        judged, correct = group.judged_G[index], group.correct_G[index]
        solution = sources.solution(group, index) if judged else None
        feedback = _feedback(row, solution, settings) if judged else None
        shown = solution is not None or feedback is not None
        prompt: TeacherPrompt | None = None
        notes = _source_notes(solution, feedback, settings) if judged else []
        if shown and METHODS[settings.method].has_teacher:
            prompt, fitted = _teach(row, solution, feedback, settings, render)
            notes += fitted
        available = teacher_available(settings.method, shown, prompt is not None)
        route = route_of(settings.method, correct, available, judged)
        advantage = statistics.advantages_G[index]
        notes = _notes(group, index, route == "grpo" and advantage == 0) + notes
        source = solution.source if solution else "feedback"
        decision = {
            "rollout_id": row["rollout_id"],
            "group": row["group"],
            "reward": row["reward"],
            "correct": row["correct"],
            "advantage": advantage,
            "group_mean": statistics.mean,
            "group_std": statistics.std,
            "teacher_available": available,
            "teacher_source": source if available else "none",
            "teacher_rollout_id": solution.rollout_id if available and solution else None,
            "teacher_prompt_text": prompt.text if prompt else None,
            "teacher_prompt_ids": prompt.token_ids if prompt else [],
            "route": route,
            "mini_batch": mini_batch,
            "reason": reason_of(route, correct, available, notes, judged),
        }
        if "bank" in settings.sources:
            decision[TEACHER_STEP] = solution.step if available and solution else None
        decisions.append(decision)
    return decisions


def _feedback(row: Row, solution: Solution | None, settings: RouteSection) -> str | None:
    """Return the feedback that a rollout's teacher is shown; None: none."""
    wanted = settings.feedback if solution else settings.feedback_alone
    return None if not wanted or is_blank(row["feedback"]) else row["feedback"]


def _source_notes(
    solution: Solution | None, feedback: str | None, settings: RouteSection
) -> list[str]:
    """Say where a solution comes from, and where none was found; nothing by the paper's rule."""
    if settings.sources == ["sibling"] and not settings.feedback_alone:
        return []
    if solution is not None:
        of = f" of step {solution.step}" if solution.source == "bank" else ""
        return [] if solution.source == "sibling" else [f"solution from {solution.source}{of}"]
    asked = ", ".join(settings.sources) or "no source"
    if feedback is not None:
        return [f"no solution ({asked}), feedback alone"]
    return [f"no solution ({asked}){', no feedback' if settings.feedback_alone else ''}"]


def _teach(
    row: Row,
    solution: Solution | None,
    feedback: str | None,
    settings: RouteSection,
    render: Render,
) -> tuple[TeacherPrompt | None, list[str]]:
    """Return the teacher prompt of a rollout and notes on how it came about."""
    limit = settings.max_teacher_prompt_length
    prompt = teacher_prompt(
        [Message(**message) for message in row["messages"]],
        solution.text if solution else None,
        feedback,
        settings.templates,
        limit,
        render,
    )
    if prompt is None:
        return None, [f"teacher prompt can't be brought to {limit} tokens"]
    if prompt.shortened:
        return prompt, [f"{prompt.shortened} shortened to fit {limit} prompt tokens"]
    return prompt, []


def _notes(group: Group, index: int, no_signal: bool) -> list[str]:
    """Return what is worth knowing of a rollout in its group, beside its teacher's prompt."""
    row, judged = group.members[index], group.judged_G
    found: list[str | None] = []
    if judged[index]:
        known = [c for c, k in zip(group.correct_G, judged, strict=True) if k]
        found.append(group_note(known, sum(judged[:index])))
    else:
        found.append(printable(row["error"], _SHOWN))
    if no_signal:
        found.append("advantage 0, no signal")
    if not row["response_ids"]:
        found.append("empty response")
    elif row["finish_reason"] == "length":
        found.append("response truncated at the length limit")
    if judged[index] and not all(judged):
        found.append(f"{judged.count(False)} of {len(judged)} in the group not judged")
    others = [g for g in range(len(judged)) if g != index]
    if judged[index] and not any(group.able_G[g] for g in others):
        mute = any(group.correct_G[g] for g in others)
        found.append("correct siblings end inside a think block" if mute else None)
    return [note for note in found if note is not None]


def _scoring_jobs(
    rollouts: Sequence[Row], routes: Sequence[Row], settings: RouteSection
) -> list[ScoringJob]:
    """List the rollouts that need a pass: the taught ones, and what `rescore` asks for.

    One optimizer update per step needs no stored old log-probabilities; several do, for every
    rollout whose loss has a gradient.
    """
    several = len({route["mini_batch"] for route in routes}) > 1
    jobs = []
    for row, route in zip(rollouts, routes, strict=True):
        credit = route.get(CREDIT_LAMBDA, 0.0)
        asked = asks_teacher(route["route"], route["advantage"], credit)
        taught = asked and route["teacher_available"]
        old_needed = several and route["route"] in ("grpo", "mix") and route["advantage"] != 0
        if row["response_ids"] and (taught or old_needed or settings.rescore == "all"):
            jobs.append(
                ScoringJob(
                    row["rollout_id"],
                    TokenSequence(row["prompt_ids"], row["response_ids"]),
                    row["temperature"],
                    route["teacher_prompt_ids"] if taught else None,
                )
            )
    return jobs


def _naive_tokens(rollouts: Sequence[Row], routes: Sequence[Row], settings: RouteSection) -> int:
    """Count what scoring would push through if every rollout went alone, by student and teacher."""
    passes = 2 if METHODS[settings.method].has_teacher else 1
    alone = [len(row["prompt_ids"]) + len(row["response_ids"]) for row in rollouts]
    longer = [
        max(len(route["teacher_prompt_ids"]) - len(row["prompt_ids"]), 0)
        for row, route in zip(rollouts, routes, strict=True)
    ]
    return passes * sum(alone) + sum(longer)


def _on_policy(rollouts: pa.Table, policy: Policy) -> bool:
    """Tell whether the policy that scores is the one that sampled: only then is it pi_old."""
    return set(rollouts.column("policy_version").to_pylist()) == {policy.version}


def _scores_table(
    routes: Sequence[Row], scored: Mapping[str, ScoredRollout], on_policy: bool
) -> pa.Table:
    found = [scored.get(route["rollout_id"]) for route in routes]
    empty = np.empty(0, dtype=np.float32)
    columns = {
        "rollout_id": [route["rollout_id"] for route in routes],
        "old_logprobs": [s.old_logprobs_T if s and on_policy else empty for s in found],
        "student_entropy": [s.student_entropy_T if s else empty for s in found],
    }
    return pa.table(columns, schema=SCORES)


def _teacher_table(
    routes: Sequence[Row],
    scored: Mapping[str, ScoredRollout],
    kept: int,
    settings: RouteSection,
) -> pa.Table:
    """Pack the taught tokens, rollout after rollout, in the order of `routes`."""
    schema = teacher_schema(kept, settings.kept_dtype, settings.keep_student_logprobs)
    ids = [route["rollout_id"] for route in routes]
    taught = [(i, s.teacher) for i in ids if (s := scored.get(i)) and s.teacher is not None]
    if not taught:
        return schema.empty_table()
    lengths = [len(tokens.entropy_T) for _, tokens in taught]

    def flat(name: str) -> Any:
        return np.concatenate([getattr(tokens, name) for _, tokens in taught])

    def kept_lists(name: str) -> pa.Array:
        kind = schema.field(name.removesuffix("_TK")).type
        values = flat(name).ravel()
        stored = _half(values) if pa.types.is_float16(kind.value_type) else values
        return pa.FixedSizeListArray.from_arrays(pa.array(stored), type=kind)

    columns = {
        "rollout_id": np.repeat([i for i, _ in taught], lengths),
        "position": np.concatenate([np.arange(n, dtype=np.int32) for n in lengths]),
        "topk_ids": kept_lists("topk_ids_TK"),
        "teacher_logprobs": kept_lists("teacher_logprobs_TK"),
        "teacher_tail": flat("teacher_tail_T"),
        "student_tail": flat("student_tail_T"),
        "entropy": flat("entropy_T"),
        "teacher_logprob": flat("teacher_logprob_T"),
        "student_logprob": flat("student_logprob_T"),
        "jsd": flat("jsd_T"),
    }
    if settings.keep_student_logprobs:
        columns[STUDENT_LOGPROBS] = kept_lists("student_logprobs_TK")
    return pa.table(columns, schema=schema)


def _half(logprobs: Floats) -> npt.NDArray[np.float16]:
    """Round to float16; what is below its range stays finite."""
    with np.errstate(over="ignore"):
        half = logprobs.astype(np.float16)
    lost = np.isneginf(half)
    if lost.any():
        half[lost & np.isfinite(logprobs)] = np.finfo(np.float16).min
    return half


def _joined(rollouts: pa.Table, verdicts: pa.Table) -> list[Row]:
    """Return rollouts with their verdicts as rows; the tables have the same order."""
    needed = [
        "rollout_id", "group", "task", "prompt_id", "messages", "reference", "prompt_ids",
        "response_ids", "response_text", "temperature", "finish_reason",
    ]  # fmt: skip
    rows = rollouts.select(needed).to_pylist()
    judged = verdicts.select(["reward", "correct", "feedback", "error"]).to_pylist()
    return [
        {**row, **verdict, "unfinished": open_}
        for row, verdict, open_ in zip(rows, judged, unfinished(rollouts), strict=True)
    ]


def _passes(job: ScoringJob) -> int:
    return 1 if job.teacher_prompt_ids is None else 2


STAGE = Stage(
    name="route",
    version=4,
    sections=("route",),
    reads=("rollouts", "verdicts"),
    reads_if_made=("bank",),
    writes=("routes", "scores", "teacher"),
    uses=frozenset({"seed", "policy"}),
    run=run,
    without_policy=("routes",),
)
