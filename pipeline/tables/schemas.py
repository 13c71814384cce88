"""The tables of a run: one Arrow schema each, every column described.

`rollout_id` is the key of every table, unique in a run, in the same row order everywhere:
"{step:06d}-{group:04d}-{sample:02d}" for training rollouts, with a leading "e" for evaluations.
"""

from collections.abc import Container
from typing import Any

import pyarrow as pa

from pipeline.config.sections import KeptDtype

Row = dict[str, Any]
"""One row of a table, by column."""

SCHEMA_VERSION = 2

TOKEN_TABLES = ("teacher", "weights")
"""Tables with one row per response token; their manifests carry an index by rollout."""

STUDENT_LOGPROBS = "student_logprobs"
"""The column of `teacher` that `route.keep_student_logprobs` leaves out."""

TEACHER_STEP, CREDIT_LAMBDA = "teacher_step", "credit_lambda"
"""Columns of `routes` for banked demonstrations and for rlsd."""

SURVIVAL, REWARD_WEIGHT = "survival", "reward_weight"
"""Columns of `weights` that `weigh.survival` adds."""

UNCLOSED_THINKING = "unclosed_thinking"
"""The column of `rollouts` and `evaluations` that only policies have whose chat template thinks."""

_KEPT_TYPES: dict[KeptDtype, pa.DataType] = {"float32": pa.float32(), "float16": pa.float16()}
_MESSAGE = pa.struct([pa.field("role", pa.string()), pa.field("content", pa.string())])


# A description is part of its file, and so of the version of the policy that learns from it: it
# stays as it is. What later settings add to a column's meaning is in docs/words.py.
def _column(name: str, kind: pa.DataType, description: str, nullable: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=nullable, metadata={"description": description})


def _tokens(kind: pa.DataType) -> pa.DataType:
    return pa.list_(pa.field("item", kind, nullable=False))


def _kept(kind: pa.DataType, kept: int) -> pa.DataType:
    return pa.list_(pa.field("item", kind, nullable=False), kept)


_ROLLOUT_ID = _column("rollout_id", pa.string(), "key of the rollout")
_POSITION = _column("position", pa.int32(), "index of the response token, from 0")

_SAMPLE_COLUMNS = [
    _ROLLOUT_ID,
    _column("step", pa.int32(), "training step, from 0; for evaluations: steps done before it"),
    _column("group", pa.int32(), "index of the question within the step"),
    _column("sample", pa.int32(), "index of the rollout within its group"),
    _column("task", pa.string(), "task the question belongs to"),
    _column("prompt_id", pa.string(), "question, stable over epochs"),
    _column("messages", pa.list_(_MESSAGE), "system and user turns before the chat template"),
    _column("reference", pa.string(), "gold answer, JSON text"),
    _column("prompt_ids", _tokens(pa.int32()), "token ids of the rendered prompt"),
    _column("response_ids", _tokens(pa.int32()), "sampled token ids, with EOS if it was reached"),
    _column("response_text", pa.string(), "response decoded without special tokens"),
]
_SAMPLING_COLUMNS = [
    _column("temperature", pa.float32(), "sampling temperature"),
    _column("top_p", pa.float32(), "nucleus mass, 1: all"),
    _column("top_k", pa.int32(), "likeliest tokens kept while sampling, 0: all"),
    _column("finish_reason", pa.string(), "stop: EOS was sampled; length: cut at the limit"),
    _column("seed", pa.int64(), "seed of this rollout's random numbers"),
    _column("policy_version", pa.string(), "version of the policy that sampled it"),
    _column("engine", pa.string(), "sampling engine"),
]
_UNCLOSED_THINKING = _column(
    UNCLOSED_THINKING,
    pa.bool_(),
    "the response ends inside a think block that it or its prompt opened; only where the chat "
    "template thinks",
)
_VERDICT_COLUMNS = [
    _column("reward", pa.float32(), "r_i, in [0, 1]"),
    _column("correct", pa.bool_(), "c_i: reward >= verify.success_threshold"),
    _column("format_ok", pa.bool_(), "response keeps the task's output format"),
    _column("prediction", pa.string(), "answer found in the response; empty: none"),
    _column("feedback", pa.string(), "environment feedback", nullable=True),
    _column("verifier", pa.string(), "verifier and its version"),
    _column("error", pa.string(), "why the response could not be judged", nullable=True),
]

ROLLOUTS = pa.schema(
    [
        *_SAMPLE_COLUMNS,
        _column(
            "sampled_logprobs",
            _tokens(pa.float32()),
            "log-probability of each sampled token under the distribution it was drawn from, nats",
        ),
        *_SAMPLING_COLUMNS,
        _UNCLOSED_THINKING,
    ]
)

VERDICTS = pa.schema([_ROLLOUT_ID, *_VERDICT_COLUMNS])

ROUTES = pa.schema(
    [
        _ROLLOUT_ID,
        _column("group", pa.int32(), "index of the question within the step"),
        _column("reward", pa.float32(), "r_i"),
        _column("correct", pa.bool_(), "c_i"),
        _column("advantage", pa.float32(), "A_i (METHOD.md, section 3)"),
        _column("group_mean", pa.float32(), "mean reward of the group"),
        _column("group_std", pa.float32(), "deviation of the group's rewards, with n - 1"),
        _column("teacher_available", pa.bool_(), "m_i: there is a demonstration that fits"),
        _column("teacher_source", pa.string(), "none or sibling"),
        _column("teacher_rollout_id", pa.string(), "the demonstrating sibling", nullable=True),
        _column(
            TEACHER_STEP,
            pa.int32(),
            "step that rollout is of; only where `route.sources` has the bank",
            nullable=True,
        ),
        _column("teacher_prompt_text", pa.string(), "rendered teacher prompt", nullable=True),
        _column("teacher_prompt_ids", _tokens(pa.int32()), "its token ids; empty without teacher"),
        _column("route", pa.string(), "grpo, sdpo, mix or none"),
        _column("mini_batch", pa.int32(), "optimizer update of the step the rollout belongs to"),
        _column("reason", pa.string(), "why this route, and what happened on the way"),
        _column(
            CREDIT_LAMBDA,
            pa.float32(),
            "share of the advantage that the teacher distributes over tokens; rlsd only",
        ),
    ]
)

BANK = pa.schema(
    [
        _column("rollout_id", pa.string(), "key of the earlier rollout"),
        _column("task", pa.string(), "task the question belongs to"),
        _column("prompt_id", pa.string(), "its question, which this step has again"),
        _column("step", pa.int32(), "the step it was sampled in"),
        _column("response_text", pa.string(), "response decoded without special tokens"),
        _column("response_tokens", pa.int32(), "length of the response"),
    ]
)

SCORES = pa.schema(
    [
        _ROLLOUT_ID,
        _column(
            "old_logprobs",
            _tokens(pa.float32()),
            "log-probability of each response token under the policy that starts the step, nats; "
            "empty where no pass was needed",
        ),
        _column(
            "student_entropy",
            _tokens(pa.float32()),
            "entropy of that policy's distribution over the vocabulary, nats; empty likewise",
        ),
    ]
)


def teacher_schema(kept: int, dtype: KeptDtype = "float32", student: bool = True) -> pa.Schema:
    """Return the schema of `teacher` for K = `kept` logits.

    Args:
        dtype: how both lists of log-probabilities are stored (`route.kept_dtype`).
        student: whether the student's are kept (`route.keep_student_logprobs`).
    """
    logprobs = _kept(_KEPT_TYPES[dtype], kept)
    columns = [
        _ROLLOUT_ID,
        _POSITION,
        _column("topk_ids", _kept(pa.int32(), kept), "the student's K likeliest ids"),
        _column("teacher_logprobs", logprobs, "log q at these ids, nats"),
        _column(STUDENT_LOGPROBS, logprobs, "log s at these ids, nats"),
        _column("teacher_tail", pa.float32(), "log of q's mass outside them; -inf if K = V"),
        _column("student_tail", pa.float32(), "log of s's mass outside them; -inf if K = V"),
        _column("entropy", pa.float32(), "H of q over the full vocabulary, nats"),
        _column("teacher_logprob", pa.float32(), "log q of the sampled token, nats"),
        _column("student_logprob", pa.float32(), "log s of the sampled token, nats"),
        _column("jsd", pa.float32(), "divergence of the K + 1 buckets at alpha = 0.5, nats"),
    ]
    return pa.schema([c for c in columns if student or c.name != STUDENT_LOGPROBS])


WEIGHTS = pa.schema(
    [
        _ROLLOUT_ID,
        _POSITION,
        _column("entropy", pa.float32(), "H of the teacher, nats"),
        _column("raw_weight", pa.float32(), "exp(-beta * H)"),
        _column("weight", pa.float32(), "raw weight over its mean in the mini-batch"),
        _column(
            SURVIVAL,
            pa.float32(),
            "S: how far the teacher, too, would have come here; only with weigh.survival",
        ),
        _column(
            REWARD_WEIGHT,
            pa.float32(),
            "1 - S: weight of the token's GRPO loss; only with weigh.survival = hand_over",
        ),
    ]
)

UPDATES = pa.schema(
    [
        _ROLLOUT_ID,
        _column("route", pa.string(), "grpo, sdpo, mix or none"),
        _column("mini_batch", pa.int32(), "optimizer update of the step"),
        _column("tokens", pa.int32(), "response tokens"),
        _column("computed", pa.bool_(), "false: zero gradient, only counted in N; no statistics"),
        _column("old_source", pa.string(), "if computed, log pi_old: live, stored or sampled"),
        _column("loss_sum", pa.float64(), "sum of the token losses, before the division by N"),
        _column("share", pa.float64(), "tokens / N of the mini-batch; 0 for route none"),
        _column("mean_ratio", pa.float32(), "mean of pi / pi_old", nullable=True),
        _column("clipped_fraction", pa.float32(), "tokens where a clip decides", nullable=True),
        _column("mean_tis", pa.float32(), "mean engine-to-trainer correction", nullable=True),
        _column(
            "max_logprob_gap",
            pa.float32(),
            "largest |log pi_old - log pi_engine|, nats",
            nullable=True,
        ),
        _column("mean_logprob_gap", pa.float32(), "mean of the same, nats", nullable=True),
        _column(
            "engine_kl",
            pa.float32(),
            "estimate of KL(engine || pi_old) per token, nats",
            nullable=True,
        ),
        _column("tis_cut_fraction", pa.float32(), "tokens whose correction is cut", nullable=True),
        _column(
            "mean_divergence",
            pa.float32(),
            "mean divergence (sampled_token: log s - log q), nats",
            nullable=True,
        ),
    ]
)

EVALUATIONS = pa.schema(
    [
        *_SAMPLE_COLUMNS,
        *_SAMPLING_COLUMNS,
        *_VERDICT_COLUMNS,
        _column("response_tokens", pa.int32(), "length of the response"),
        _UNCLOSED_THINKING,
    ]
)

SCHEMAS: dict[str, pa.Schema | None] = {
    "rollouts": ROLLOUTS,
    "verdicts": VERDICTS,
    "bank": BANK,
    "routes": ROUTES,
    "scores": SCORES,
    "teacher": None,
    "weights": WEIGHTS,
    "updates": UPDATES,
    "evaluations": EVALUATIONS,
}
"""Schema by table; None where it depends on settings."""

OPTIONAL: dict[str, frozenset[str]] = {
    "teacher": frozenset({STUDENT_LOGPROBS}),
    "rollouts": frozenset({UNCLOSED_THINKING}),
    "evaluations": frozenset({UNCLOSED_THINKING}),
    "routes": frozenset({TEACHER_STEP, CREDIT_LAMBDA}),
    "weights": frozenset({SURVIVAL, REWARD_WEIGHT}),
}
"""Columns that a table may lack: a setting leaves them out, or they are younger than the table.

A column that is added from now on belongs here, and tables have it only where a setting asks for
it: all others stay what they are, byte for byte, and older tables are read as they are.
"""


def schema_with(table: str, names: Container[str]) -> pa.Schema:
    """Return the schema of a table (not `teacher`), with those optional columns that are named."""
    lacking = {name for name in OPTIONAL.get(table, ()) if name not in names}
    return pa.schema([c for c in SCHEMAS[table] or () if c.name not in lacking])


def schema_of(table: str, found: pa.Schema) -> pa.Schema:
    """Return the schema that `table` must have: with those optional columns that are found in it.

    That of `teacher` also has the K and the dtype that are found in it.
    """
    schema = SCHEMAS[table]
    if schema is None:
        ids, logprobs = (_list_type(found, name) for name in ("topk_ids", "teacher_logprobs"))
        half = logprobs is not None and pa.types.is_float16(logprobs.value_type)
        schema = teacher_schema(
            ids.list_size if ids is not None else 0, "float16" if half else "float32"
        )
    lacking = OPTIONAL.get(table, frozenset()) - set(found.names)
    return pa.schema([column for column in schema if column.name not in lacking])


def _list_type(found: pa.Schema, name: str) -> pa.DataType | None:
    """Return the type of a column of K values; None if it is none."""
    index = found.get_field_index(name)
    kind = found.field(index).type if index >= 0 else None
    return kind if kind is not None and pa.types.is_fixed_size_list(kind) else None
