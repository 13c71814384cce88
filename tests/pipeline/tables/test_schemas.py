"""The tables: their columns, types, nullability and descriptions."""

import hashlib

import pyarrow as pa
import pytest

from pipeline.config.sections import KeptDtype
from pipeline.tables.schemas import (
    OPTIONAL,
    SCHEMAS,
    TOKEN_TABLES,
    schema_of,
    schema_with,
    teacher_schema,
)

# Columns in order; "?" marks nullable ones.
COLUMNS = {
    "rollouts": "rollout_id step group sample task prompt_id messages reference prompt_ids "
    "response_ids response_text sampled_logprobs temperature top_p top_k finish_reason seed "
    "policy_version engine unclosed_thinking",
    "verdicts": "rollout_id reward correct format_ok prediction feedback? verifier error?",
    "routes": "rollout_id group reward correct advantage group_mean group_std teacher_available "
    "teacher_source teacher_rollout_id? teacher_step? teacher_prompt_text? teacher_prompt_ids "
    "route mini_batch reason credit_lambda",
    "bank": "rollout_id task prompt_id step response_text response_tokens",
    "scores": "rollout_id old_logprobs student_entropy",
    "teacher": "rollout_id position topk_ids teacher_logprobs student_logprobs teacher_tail "
    "student_tail entropy teacher_logprob student_logprob jsd",
    "weights": "rollout_id position entropy raw_weight weight survival reward_weight",
    "updates": "rollout_id route mini_batch tokens computed old_source loss_sum share mean_ratio? "
    "clipped_fraction? mean_tis? max_logprob_gap? mean_logprob_gap? engine_kl? "
    "tis_cut_fraction? mean_divergence?",
}
TYPES = {
    "rollout_id": pa.string(),
    "step": pa.int32(),
    "group": pa.int32(),
    "sample": pa.int32(),
    "mini_batch": pa.int32(),
    "tokens": pa.int32(),
    "position": pa.int32(),
    "top_k": pa.int32(),
    "seed": pa.int64(),
    "reward": pa.float32(),
    "advantage": pa.float32(),
    "temperature": pa.float32(),
    "entropy": pa.float32(),
    "weight": pa.float32(),
    "loss_sum": pa.float64(),
    "share": pa.float64(),
    "correct": pa.bool_(),
    "computed": pa.bool_(),
    "teacher_tail": pa.float32(),
}


def schemas() -> dict[str, pa.Schema]:
    return {name: schema or teacher_schema(100) for name, schema in SCHEMAS.items()}


def marked(schema: pa.Schema) -> list[str]:
    return [f"{f.name}?" if f.nullable else f.name for f in schema]


@pytest.mark.parametrize("name", COLUMNS)
def test_columns_are_those_of_the_design(name: str) -> None:
    assert marked(schemas()[name]) == COLUMNS[name].split()


def test_evaluations_have_rollouts_and_verdicts_without_log_probabilities() -> None:
    found = marked(schemas()["evaluations"])
    both = COLUMNS["rollouts"].split() + COLUMNS["verdicts"].split()[1:] + ["response_tokens"]
    assert sorted(found) == sorted(c for c in both if c != "sampled_logprobs")


@pytest.mark.parametrize("name", SCHEMAS)
def test_types_and_descriptions(name: str) -> None:
    for field in schemas()[name]:
        assert field.metadata[b"description"]
        assert field.type == TYPES.get(field.name, field.type)


@pytest.mark.parametrize("column", ["prompt_ids", "response_ids", "sampled_logprobs"])
def test_token_lists_hold_no_nulls(column: str) -> None:
    kind = schemas()["rollouts"].field(column).type
    assert kind.value_type == (pa.float32() if column == "sampled_logprobs" else pa.int32())
    assert not kind.value_field.nullable


@pytest.mark.parametrize("kept", [1, 16, 100])
def test_the_teachers_lists_have_a_fixed_size(kept: int) -> None:
    schema = teacher_schema(kept)
    for column, kind in (("topk_ids", pa.int32()), ("teacher_logprobs", pa.float32())):
        found = schema.field(column).type
        assert (found.list_size, found.value_type) == (kept, kind)
        assert not found.value_field.nullable
    assert schema_of("teacher", schema).equals(schema)


def test_the_kept_size_comes_from_the_table_that_is_checked() -> None:
    mixed = teacher_schema(16)
    index = mixed.get_field_index("student_logprobs")
    mixed = mixed.set(index, teacher_schema(8).field("student_logprobs"))
    assert not schema_of("teacher", mixed).equals(mixed)


VARIANTS: list[tuple[KeptDtype, bool]] = [
    ("float32", True), ("float32", False), ("float16", True), ("float16", False)
]  # fmt: skip


@pytest.mark.parametrize(("dtype", "student"), VARIANTS)
def test_a_teacher_table_has_four_variants(dtype: KeptDtype, student: bool) -> None:
    schema = teacher_schema(16, dtype, student)
    assert schema_of("teacher", schema).equals(schema)
    assert schema.field("teacher_logprobs").type.value_type == pa.type_for_alias(dtype)
    assert ("student_logprobs" in schema.names) == student
    tails = [schema.field(name).type for name in ("teacher_tail", "student_tail", "jsd")]
    assert tails == [pa.float32()] * 3
    others = [teacher_schema(16, *other) for other in VARIANTS if other != (dtype, student)]
    assert not any(schema.equals(other) for other in others)


def test_no_fifth_variant() -> None:
    whole, half = teacher_schema(16), teacher_schema(16, "float16")
    column = whole.get_field_index("student_logprobs")
    for found in (
        half.set(column, whole.field(column)),
        whole.set(column, half.field(column)),
        whole.remove(whole.get_field_index("teacher_logprobs")),
        whole.append(whole.field(column)),
        teacher_schema(16, student=False).append(whole.field(column)),
    ):
        assert not schema_of("teacher", found).equals(found)


@pytest.mark.parametrize("fields", [[], [pa.field("topk_ids", pa.list_(pa.int32()))]])
def test_something_else_is_never_a_teacher_table(fields: list[pa.Field]) -> None:
    found = pa.schema(fields)
    assert not schema_of("teacher", found).equals(found)


def test_token_tables() -> None:
    assert set(TOKEN_TABLES) == {n for n, s in schemas().items() if "position" in s.names}


def test_a_column_that_is_added_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables of before are read as they are; other columns are as strict as ever."""
    today = SCHEMAS["scores"]
    assert today is not None
    added = pa.field("added", pa.float32(), nullable=False)
    more = today.insert(2, added)
    monkeypatch.setitem(SCHEMAS, "scores", more)
    monkeypatch.setitem(OPTIONAL, "scores", frozenset({"added"}))
    assert schema_of("scores", today).equals(today)
    assert schema_of("scores", more).equals(more)
    for found in (
        today.append(added),
        more.remove(0),
        today.insert(2, added.with_type(pa.float64())),
    ):
        assert not schema_of("scores", found).equals(found)


def test_descriptions_stay_as_files_have_them() -> None:
    """Files hold them, and versions of policies come from the files' digests."""
    names = ("rollouts", "verdicts", "routes", "scores", "weights", "updates", "evaluations")
    found = {
        name: hashlib.sha256(schema_with(name, ()).serialize()).hexdigest()[:12] for name in names
    }
    assert found == {
        "rollouts": "52c3f1be24fc",
        "verdicts": "ac73f778d1a7",
        "routes": "9a3d7c72f122",
        "scores": "017f7dbc4581",
        "weights": "59c03e09c82a",
        "updates": "a37b370ed595",
        "evaluations": "83d1ba174b7c",
    }
