"""Each invariant, broken on purpose, is named with the first rollout that breaks it."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pyarrow as pa
import pytest

from pipeline.errors import StoreError
from pipeline.tables.invariants import broken_invariants, check_table
from pipeline.tables.schemas import schema_with
from tests.builders.tables import IDS, tables, with_column, with_value

INF, NAN = math.inf, math.nan


class Broken(NamedTuple):
    """A table with one value changed, and what must be said of it."""

    table: str
    column: str
    row: int
    value: Any
    invariant: str
    first: str


BROKEN = [
    Broken("rollouts", "rollout_id", 1, IDS[0], "rollout_id is unique", IDS[0]),
    Broken("rollouts", "sampled_logprobs", 1, [-0.5], "one log-probability per token", IDS[1]),
    Broken("rollouts", "response_ids", 2, [], "one log-probability per token", IDS[2]),
    Broken("rollouts", "sampled_logprobs", 3, [-1, -1, 0.5, -1], "in (-inf, 0]", IDS[3]),
    Broken("rollouts", "sampled_logprobs", 1, [-1, -INF], "in (-inf, 0]", IDS[1]),
    Broken("rollouts", "sampled_logprobs", 0, [-1, NAN, -1], "in (-inf, 0]", IDS[0]),
    Broken("rollouts", "prompt_ids", 2, [], "prompts are not empty", IDS[2]),
    Broken("verdicts", "reward", 2, 1.5, "rewards in [0, 1]", IDS[2]),
    Broken("verdicts", "reward", 3, -0.1, "rewards in [0, 1]", IDS[3]),
    Broken("verdicts", "reward", 1, NAN, "rewards in [0, 1]", IDS[1]),
    Broken("routes", "teacher_rollout_id", 0, IDS[0], "nobody teaches itself", IDS[0]),
    Broken("routes", "teacher_rollout_id", 1, IDS[2], "teachers are correct rollouts", IDS[1]),
    Broken("routes", "teacher_rollout_id", 1, "000002-0000-00", "teachers are correct", IDS[1]),
    Broken("routes", "route", 2, "ppo", "route is grpo, sdpo, mix or none", IDS[2]),
    Broken("routes", "advantage", 3, 0.25, "advantages sum to 0 in a group", IDS[2]),
    Broken("routes", "advantage", 1, NAN, "advantages sum to 0 in a group", IDS[0]),
    Broken("scores", "old_logprobs", 1, [-0.5], "old_logprobs: none or all", IDS[1]),
    Broken("scores", "student_entropy", 3, [1.0], "student_entropy: none or all", IDS[3]),
    Broken("teacher", "position", 1, 2, "positions count up", IDS[1]),
    Broken("teacher", "entropy", 0, -0.5, "entropy in range", IDS[1]),
    Broken("teacher", "entropy", 0, NAN, "entropy in range", IDS[1]),
    Broken("teacher", "jsd", 1, 0.7, "jsd in range", IDS[1]),
    Broken("teacher", "jsd", 1, -0.01, "jsd in range", IDS[1]),
    Broken("teacher", "teacher_logprob", 0, 0.1, "teacher_logprob in range", IDS[1]),
    Broken("teacher", "student_logprob", 0, -INF, "student_logprob in range", IDS[1]),
    Broken("teacher", "teacher_tail", 1, 0.1, "teacher_tail is no NaN and at most 0", IDS[1]),
    Broken("teacher", "student_tail", 0, NAN, "student_tail is no NaN and at most 0", IDS[1]),
    Broken("weights", "weight", 0, 1.3, "their mean in a mini-batch is 1", IDS[1]),
    Broken("weights", "weight", 0, -1.2, "finite and not negative", IDS[1]),
    Broken("weights", "weight", 1, INF, "finite and not negative", IDS[1]),
    Broken("updates", "share", 2, 0.2, "shares of a mini-batch sum to 1", IDS[0]),
    Broken("updates", "loss_sum", 2, NAN, "losses are finite", IDS[2]),
    Broken("routes", "mini_batch", 1, 1, "mini-batches hold whole groups", IDS[1]),
    Broken("weights", "entropy", 1, 0.75, "entropy is that of teacher", IDS[1]),
    Broken("weights", "position", 1, 2, "position is that of teacher", IDS[1]),
    Broken("updates", "route", 1, "grpo", "route is that of routes", IDS[1]),
    Broken("updates", "mini_batch", 3, 1, "mini_batch is that of routes", IDS[3]),
    Broken("updates", "tokens", 2, 2, "tokens is the response's length", IDS[2]),
    Broken("evaluations", "response_tokens", 1, 1, "length of the response", f"e{IDS[1]}"),
    Broken("evaluations", "rollout_id", 1, f"e{IDS[0]}", "rollout_id is unique", f"e{IDS[0]}"),
    Broken("evaluations", "reward", 3, 2.0, "rewards in [0, 1]", f"e{IDS[3]}"),
]

Spoil = Callable[[dict[str, pa.Table]], None]


def refusal(name: str, found: dict[str, pa.Table]) -> str:
    with pytest.raises(StoreError) as caught:
        check_table(name, found)
    return str(caught.value)


@pytest.mark.parametrize("name", tables())
def test_the_made_up_step_keeps_them_all(name: str) -> None:
    check_table(name, tables())


@pytest.mark.parametrize("name", tables())
def test_empty_tables_keep_them_all(name: str) -> None:
    check_table(name, {n: table.slice(0, 0) for n, table in tables().items()})


@pytest.mark.parametrize("broken", BROKEN, ids=lambda b: f"{b.table}.{b.column}={b.value}")
def test_a_broken_invariant_is_named(broken: Broken) -> None:
    found = tables()
    found[broken.table] = with_value(found[broken.table], broken.column, broken.row, broken.value)
    message = refusal(broken.table, found)
    assert message.startswith(f"{broken.table}: broken invariant: ")
    assert broken.invariant in message
    assert message.endswith(f"; first at {broken.first}")


@pytest.mark.parametrize("name", ["verdicts", "routes", "scores", "updates"])
def test_rows_stand_in_the_order_of_rollouts(name: str) -> None:
    found = tables()
    found[name] = found[name].take(pa.array([1, 0, 2, 3]))
    message = refusal(name, found)
    assert message == f"{name}: its rollout_ids are not those of rollouts, in their order"
    found[name] = tables()[name].slice(0, 3)
    assert refusal(name, found) == message


@pytest.mark.parametrize(
    "spoil",
    [
        lambda table: table.slice(0, 1),
        lambda table: table.slice(0, 0),
        lambda table: pa.concat_tables([table, table]),
        lambda table: with_column(table, "rollout_id", [IDS[0]] * 2),
    ],
)
def test_teacher_rows_are_the_taught_tokens(spoil: Callable[[pa.Table], pa.Table]) -> None:
    found = tables()
    found["teacher"] = spoil(found["teacher"])
    assert "not the tokens of the taught rollouts" in refusal("teacher", found)


def test_rollouts_without_teacher_are_not_expected_among_the_taught() -> None:
    """A mix-routed rollout without a teacher has no teacher rows (docs/method.md, section 9)."""
    found = tables()
    found["routes"] = with_column(found["routes"], "route", ["mix"] * 4)
    check_table("teacher", found)


def test_tails_may_be_empty() -> None:
    """K = V: the log of no mass."""
    found = tables()
    for column in ("teacher_tail", "student_tail"):
        found["teacher"] = with_column(found["teacher"], column, [-INF] * 2)
    check_table("teacher", found)


def test_weights_stand_beside_the_teachers_rows() -> None:
    found = tables()
    found["weights"] = found["weights"].slice(0, 1)
    assert refusal("weights", found) == "weights: its rows are not those of teacher"


def test_weights_have_mean_1_in_each_mini_batch_by_itself() -> None:
    """1.5 and 0.5 have mean 1 together, but not where they belong to different updates."""
    found = tables()
    pair = [IDS[1], IDS[2]]
    for name in ("weights", "teacher"):
        found[name] = with_column(found[name], "rollout_id", pair)
    found["weights"] = with_column(found["weights"], "weight", [1.5, 0.5])
    check_table("weights", found)
    found["routes"] = with_column(found["routes"], "mini_batch", [0, 0, 1, 1])
    assert refusal("weights", found).endswith(f"mean in a mini-batch is 1; first at {IDS[1]}")


def surviving(**columns: list[float]) -> dict[str, pa.Table]:
    """Return the step with survival handed over: S = 1, 1/2, and the weights that are left."""
    found = tables()
    made = {"weight": [1.2, 0.4], "survival": [1.0, 0.5], "reward_weight": [0.0, 0.5], **columns}
    weights = found["weights"].to_pydict() | made
    found["weights"] = pa.table(weights, schema=schema_with("weights", weights))
    return found


@pytest.mark.parametrize(
    ("columns", "invariant"),
    [
        ({}, ""),
        ({"weight": [1.2, 0.9]}, "their mean in a mini-batch is at most 1"),
        ({"survival": [1.0, -0.5]}, "survival in [0, 1]"),
        ({"survival": [1.0, NAN]}, "survival in [0, 1]"),
        ({"survival": [0.9, 0.5], "reward_weight": [0.1, 0.5]}, "survival begins with 1"),
        ({"survival": [1.0, 1.5], "reward_weight": [0.0, -0.5]}, "survival never rises"),
        ({"reward_weight": [0.0, 0.4]}, "reward_weight is 1 - survival"),
    ],
)
def test_survival_falls_from_1(columns: dict[str, list[float]], invariant: str) -> None:
    texts = [broken.invariant for broken in broken_invariants("weights", surviving(**columns))]
    assert (invariant in texts) if invariant else not texts


def test_shares_sum_to_1_in_each_mini_batch_by_itself() -> None:
    found = tables()
    for name in ("routes", "updates"):
        found[name] = with_column(found[name], "mini_batch", [0, 0, 1, 1])
    assert "shares of a mini-batch" in refusal("updates", found)
    found["updates"] = with_column(found["updates"], "share", [0.6, 0.4, 0.2, 0.8])
    check_table("updates", found)


def test_a_mini_batch_without_routed_tokens_has_no_shares() -> None:
    found = tables()
    found["updates"] = with_column(found["updates"], "share", [0.0] * 4)
    for name in ("routes", "updates"):
        found[name] = with_column(found[name], "route", ["none"] * 4)
    check_table("updates", found)


def test_teachers_are_siblings() -> None:
    """Rollout 2 is right as well, but of the other group."""
    found = tables()
    found["routes"] = with_column(found["routes"], "correct", [True, False, True, False])
    found["routes"] = with_value(found["routes"], "teacher_rollout_id", 1, IDS[2])
    assert "teachers are of the same group" in refusal("routes", found)


def test_shares_are_tokens_over_n() -> None:
    """They sum to 1, but two of them were exchanged."""
    found = tables()
    found["updates"] = with_column(found["updates"], "share", [0.2, 0.3, 0.1, 0.4])
    message = refusal("updates", found)
    assert message.endswith(f"share is tokens / N, 0 for route none; first at {IDS[0]}")


def test_all_broken_invariants_are_yielded_with_their_rows() -> None:
    found = tables()
    found["teacher"] = with_column(found["teacher"], "jsd", [-1.0, 2.0])
    found["teacher"] = with_value(found["teacher"], "entropy", 1, -0.5)
    broken = list(broken_invariants("teacher", found))
    assert [(b.invariant, b.rows) for b in broken] == [("entropy in range", 1), ("jsd in range", 2)]


def test_a_group_number_may_be_anything() -> None:
    """Damage is named; it neither raises nor takes memory for a group of 2 billion."""
    for group in (-1, 2**31 - 1):
        found = tables()
        found["routes"] = with_column(found["routes"], "group", [group] * 4)
        found["routes"] = with_value(found["routes"], "advantage", 3, 0.25)
        assert "advantages sum to 0" in refusal("routes", found)
