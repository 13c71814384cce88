"""A made-up step of four rollouts, every table of it valid, and ways to spoil it.

    group 0: rollout 0 correct (3 tokens), rollout 1 wrong (2 tokens): taught by rollout 0
    group 1: rollouts 2 and 3 wrong (1 and 4 tokens): no demonstration, no signal

All values are chosen so that sums and means can be done in the head.
"""

from typing import Any

import pyarrow as pa

from pipeline.config.load import validate_config
from pipeline.config.sections import Config
from pipeline.tables.manifest import Cost, Origin
from pipeline.tables.schemas import SCHEMA_VERSION, SCHEMAS, teacher_schema

STEP = 3
IDS = [f"{STEP:06d}-{group:04d}-{sample:02d}" for group in (0, 1) for sample in (0, 1)]
LENGTHS = [3, 2, 1, 4]
KEPT = 3
COST = Cost(seconds=1.5, tokens=10, peak_memory_mb=100.0, created="2026-01-01T00:00:00+00:00")


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
    made = {
        "rollouts": _rollouts(),
        "verdicts": {"rollout_id": IDS, **_verdicts()},
        "routes": _routes(),
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
        "updates": _updates(),
        "evaluations": _evaluations(),
    }
    schemas = {**SCHEMAS, "teacher": teacher_schema(KEPT)}
    return {name: pa.table(columns, schema=schemas[name]) for name, columns in made.items()}


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


def _samples() -> dict[str, list[Any]]:
    return {
        "rollout_id": IDS,
        "step": [STEP] * 4,
        "group": [0, 0, 1, 1],
        "sample": [0, 1, 0, 1],
        "task": ["arithmetic"] * 4,
        "prompt_id": ["q0", "q0", "q1", "q1"],
        "messages": [[{"role": "user", "content": "2 + 2?"}]] * 4,
        "reference": ["4"] * 4,
        "prompt_ids": [[5, 6, 7]] * 2 + [[8]] * 2,
        "response_ids": [list(range(10, 10 + length)) for length in LENGTHS],
        "response_text": ["a", "b", "c", "d"],
        "temperature": [1.0] * 4,
        "top_p": [1.0] * 4,
        "top_k": [0] * 4,
        "finish_reason": ["stop", "stop", "stop", "length"],
        "seed": [1, 2, 3, 4],
        "policy_version": ["000003-abc"] * 4,
        "engine": ["transformers"] * 4,
    }


def _rollouts() -> dict[str, list[Any]]:
    return {**_samples(), "sampled_logprobs": [[-0.5] * length for length in LENGTHS]}


def _verdicts() -> dict[str, list[Any]]:
    return {
        "reward": [1.0, 0.0, 0.0, 0.0],
        "correct": [True, False, False, False],
        "format_ok": [True, True, True, False],
        "prediction": ["4", "5", "5", ""],
        "feedback": [None] * 4,
        "verifier": ["arithmetic/1"] * 4,
        "error": [None, None, None, "timed out"],
    }


def _routes() -> dict[str, list[Any]]:
    return {
        "rollout_id": IDS,
        "group": [0, 0, 1, 1],
        "reward": [1.0, 0.0, 0.0, 0.0],
        "correct": [True, False, False, False],
        "advantage": [0.5, -0.5, 0.0, 0.0],
        "group_mean": [0.5, 0.5, 0.0, 0.0],
        "group_std": [0.70710678, 0.70710678, 0.0, 0.0],
        "teacher_available": [False, True, False, False],
        "teacher_source": ["none", "sibling", "none", "none"],
        "teacher_rollout_id": [None, IDS[0], None, None],
        "teacher_prompt_text": [None, "taught", None, None],
        "teacher_prompt_ids": [[], [5, 6], [], []],
        "route": ["grpo", "sdpo", "grpo", "grpo"],
        "mini_batch": [0, 0, 0, 0],
        "reason": ["correct", "wrong", "wrong", "wrong"],
    }


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


def _updates() -> dict[str, list[Any]]:
    return {
        "rollout_id": IDS,
        "route": ["grpo", "sdpo", "grpo", "grpo"],
        "mini_batch": [0, 0, 0, 0],
        "tokens": LENGTHS,
        "computed": [True, True, False, False],
        "old_source": ["live"] * 4,
        "loss_sum": [-1.5, 0.5, 0.0, 0.0],
        "share": [0.3, 0.2, 0.1, 0.4],
        "mean_ratio": [1.0, 1.0, None, None],
        "clipped_fraction": [0.5, 0.0, None, None],
        "mean_tis": [1.0, 1.0, None, None],
        "max_logprob_gap": [0.25, 0.125, None, None],
        "mean_logprob_gap": [0.125, 0.0625, None, None],
        "engine_kl": [0.03125, 0.25, None, None],
        "tis_cut_fraction": [0.0, 0.5, None, None],
        "mean_divergence": [None, 0.25, None, None],
    }


def _evaluations() -> dict[str, list[Any]]:
    evaluated = {**_samples(), **_verdicts(), "response_tokens": LENGTHS}
    return {**evaluated, "rollout_id": [f"e{rollout_id}" for rollout_id in IDS]}
