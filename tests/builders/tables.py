"""Made-up tables, all of them valid: columns for any answers, one small step, ways to spoil it.

`tables` is a step of four rollouts:

    group 0: rollout 0 correct (3 tokens), rollout 1 wrong (2 tokens): taught by rollout 0
    group 1: rollouts 2 and 3 wrong (1 and 4 tokens): no demonstration, no signal

All its values are chosen so that sums and means can be done in the head.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from pipeline.config.load import validate_config
from pipeline.config.sections import Config
from pipeline.tables.manifest import Cost, Origin
from pipeline.tables.schemas import SCHEMA_VERSION, schema_with, teacher_schema

STEP = 3
IDS = [f"{STEP:06d}-{group:04d}-{sample:02d}" for group in (0, 1) for sample in (0, 1)]
LENGTHS = [3, 2, 1, 4]
KEPT = 3
COST = Cost(seconds=1.5, tokens=10, peak_memory_mb=100.0, created="2026-01-01T00:00:00+00:00")

Columns = dict[str, list[Any]]
Place = tuple[int, int]
"""Group and sample of an answer."""


def config(**sections: dict[str, Any]) -> Config:
    """Return a configuration; sections are merged over what has no default."""
    base = {"data": {"task": "arithmetic"}, "model": {"path": "demo"}}
    return validate_config({**base, **sections}, "test")


def origin(table: str, **changes: Any) -> Origin:
    """Return the origin of a table, with some of its parts changed."""
    parts: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "table": table,
        "step": STEP,
        "stage": "made_up",
        "stage_version": 1,
        "inputs": {"questions": "aa"},
        "settings": {"generate": {"rollouts": 2}},
        "policy_version": "000003-abc",
        "teacher_version": None,
    }
    return Origin(**{**parts, **changes})


def tables() -> dict[str, pa.Table]:
    """Return the eight tables of the step."""
    answers = answer_columns(
        STEP,
        [(0, 0), (0, 1), (1, 0), (1, 1)],
        [list(range(10, 10 + length)) for length in LENGTHS],
        prompt_ids=[[5, 6, 7]] * 2 + [[8]] * 2,
        response_text=["a", "b", "c", "d"],
        finish_reason=["stop", "stop", "stop", "length"],
        seed=[1, 2, 3, 4],
    )
    verdicts = verdict_columns(
        [True, False, False, False],
        format_ok=[True, True, False, False],
        prediction=["4", "5", "5", ""],
        feedback=[None, "It is 4.", "It is not 5.", None],
        error=[None, None, None, "timed out"],
    )
    routes = route_columns(
        answers,
        verdicts,
        [None, IDS[0], None, None],
        teacher_prompt_text=[None, "taught: It is 4.", None, None],
        advantage=[0.5, -0.5, 0.0, 0.0],
        group_mean=[0.5, 0.5, 0.0, 0.0],
        group_std=[0.70710678, 0.70710678, 0.0, 0.0],
    )
    made = {
        "rollouts": {**answers, "sampled_logprobs": [[-0.5] * length for length in LENGTHS]},
        "verdicts": {"rollout_id": IDS, **verdicts},
        "routes": routes,
        "scores": {
            "rollout_id": IDS,
            "old_logprobs": [[-0.5] * 3, [-0.5] * 2, [], []],
            "student_entropy": [[1.0] * 3, [1.0] * 2, [], []],
        },
        "teacher": _teacher(),
        "weights": {
            "rollout_id": [IDS[1]] * 2,
            "position": [0, 1],
            "entropy": [0.5, 1.0],
            "raw_weight": [0.6, 0.4],
            "weight": [1.2, 0.8],
        },
        "updates": update_columns(
            routes,
            LENGTHS,
            computed=[True, True, False, False],
            loss_sum=[-1.5, 0.5, 0.0, 0.0],
            mean_ratio=[1.0, 1.0, None, None],
            clipped_fraction=[0.5, 0.0, None, None],
            mean_tis=[1.0, 1.0, None, None],
            max_logprob_gap=[0.25, 0.125, None, None],
            mean_logprob_gap=[0.125, 0.0625, None, None],
            engine_kl=[0.03125, 0.25, None, None],
            tis_cut_fraction=[0.0, 0.5, None, None],
            mean_divergence=[None, 0.25, None, None],
        ),
        "evaluations": {
            **answers,
            **verdicts,
            "rollout_id": [f"e{rollout_id}" for rollout_id in IDS],
            "response_tokens": LENGTHS,
        },
    }
    schemas = {name: schema_with(name, columns) for name, columns in made.items()}
    schemas["teacher"] = teacher_schema(KEPT)
    return {name: pa.table(columns, schema=schemas[name]) for name, columns in made.items()}


def answer_columns(
    step: int, places: Sequence[Place], response_ids: Sequence[list[int]], **columns: Sequence[Any]
) -> Columns:
    """Return what `rollouts` and `evaluations` say of answers.

    Args:
        places: group and sample of each answer.
        response_ids: tokens of each answer.
        columns: values of these columns, instead of made-up ones.
    """
    count = len(places)
    defaults: dict[str, Sequence[Any]] = {
        "rollout_id": [f"{step:06d}-{group:04d}-{sample:02d}" for group, sample in places],
        "step": [step] * count,
        "group": [group for group, _ in places],
        "sample": [sample for _, sample in places],
        "task": ["arithmetic"] * count,
        "prompt_id": [f"q{group}" for group, _ in places],
        "messages": [[{"role": "user", "content": "2 + 2?"}]] * count,
        "reference": ["4"] * count,
        "prompt_ids": [[5, 6, 7]] * count,
        "response_ids": response_ids,
        "response_text": [" ".join(map(str, ids)) for ids in response_ids],
        "temperature": [1.0] * count,
        "top_p": [1.0] * count,
        "top_k": [0] * count,
        "finish_reason": ["stop"] * count,
        "seed": range(count),
        "policy_version": [f"{step:06d}-abc"] * count,
        "engine": ["transformers"] * count,
    }
    return _replaced(defaults, columns)


def verdict_columns(correct: Sequence[bool], **columns: Sequence[Any]) -> Columns:
    """Return what `verdicts` and `evaluations` say of answers, without their ids."""
    count = len(correct)
    defaults: dict[str, Sequence[Any]] = {
        "reward": [float(right) for right in correct],
        "correct": correct,
        "format_ok": [True] * count,
        "prediction": ["4" if right else "5" for right in correct],
        "feedback": [None] * count,
        "verifier": ["arithmetic/1"] * count,
        "error": [None] * count,
    }
    return _replaced(defaults, columns)


def route_columns(
    answers: Columns, verdicts: Columns, teachers: Sequence[str | None], **columns: Sequence[Any]
) -> Columns:
    """Return what `routes` says of answers under `srpo`, advantages aside.

    Args:
        teachers: ids of the correct siblings whose responses demonstrate; None: nobody's.
        columns: advantages and the statistics of groups, and columns to replace.
    """
    taught = [teacher is not None for teacher in teachers]
    defaults: dict[str, Sequence[Any]] = {
        "rollout_id": answers["rollout_id"],
        "group": answers["group"],
        "reward": verdicts["reward"],
        "correct": verdicts["correct"],
        "teacher_available": taught,
        "teacher_source": ["sibling" if teacher else "none" for teacher in teachers],
        "teacher_rollout_id": teachers,
        "teacher_prompt_text": ["taught" if teacher else None for teacher in teachers],
        "teacher_prompt_ids": [[5, 6] if teacher else [] for teacher in teachers],
        "route": [
            "sdpo" if teacher and not right else "grpo"
            for teacher, right in zip(teachers, verdicts["correct"], strict=True)
        ],
        "mini_batch": [0] * len(teachers),
        "reason": ["correct" if right else "wrong" for right in verdicts["correct"]],
    }
    return _replaced(defaults, columns)


def update_columns(routes: Columns, tokens: Sequence[int], **columns: Sequence[Any]) -> Columns:
    """Return what `updates` says of answers of so many tokens: one mini-batch, on-policy."""
    count = len(tokens)
    defaults: dict[str, Sequence[Any]] = {
        "rollout_id": routes["rollout_id"],
        "route": routes["route"],
        "mini_batch": routes["mini_batch"],
        "tokens": tokens,
        "computed": [True] * count,
        "old_source": ["live"] * count,
        "loss_sum": [0.0] * count,
        "share": [n / sum(tokens) for n in tokens],
        "mean_ratio": [1.0] * count,
        "clipped_fraction": [0.0] * count,
        "mean_tis": [1.0] * count,
        "max_logprob_gap": [0.0] * count,
        "mean_logprob_gap": [0.0] * count,
        "engine_kl": [0.0] * count,
        "tis_cut_fraction": [0.0] * count,
        "mean_divergence": [None] * count,
    }
    return _replaced(defaults, columns)


def with_column(table: pa.Table, name: str, values: list[Any]) -> pa.Table:
    """Return a table with one column replaced, its type kept."""
    index = table.schema.get_field_index(name)
    field = table.schema.field(index)
    return table.set_column(index, field, pa.array(values, type=field.type))


def with_value(table: pa.Table, name: str, row: int, value: Any) -> pa.Table:
    """Return a table with one value replaced."""
    values = table.column(name).to_pylist()
    values[row] = value
    return with_column(table, name, values)


def _replaced(
    defaults: Mapping[str, Sequence[Any]], columns: Mapping[str, Sequence[Any]]
) -> Columns:
    return {name: list(values) for name, values in {**defaults, **columns}.items()}


def _teacher() -> dict[str, list[Any]]:
    return {
        "rollout_id": [IDS[1]] * 2,
        "position": [0, 1],
        "topk_ids": [[1, 2, 3], [4, 5, 6]],
        "teacher_logprobs": [[-1.0, -2.0, -3.0], [-1.5, -2.5, -3.5]],
        "student_logprobs": [[-1.25, -2.25, -3.25], [-1.75, -2.75, -3.75]],
        "teacher_tail": [-0.5, -0.25],
        "student_tail": [-0.75, -0.125],
        "entropy": [0.5, 1.0],
        "teacher_logprob": [-1.0, -2.5],
        "student_logprob": [-1.25, -2.75],
        "jsd": [0.125, 0.375],
    }
