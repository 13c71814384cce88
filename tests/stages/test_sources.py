"""Where a teacher's solution comes from, in order, and what `routes` says of it."""

from typing import Any

import pyarrow as pa
import pytest

from pipeline.errors import StoreError
from pipeline.policy.policy import Policy
from pipeline.stage.contract import Handles
from pipeline.tables.invariants import check_table
from pipeline.tables.schemas import BANK, Row
from stages.route import STAGE as ROUTE
from tests.stages.steps import Group, config_of, open_tiny, sampled

RIGHT, WRONG = 1.0, 0.0
STEP = 7
GROUPS: list[Group] = [
    [("bad", WRONG), ("good", RIGHT)],
    [("bad", WRONG), ("worse", WRONG)],
    [("bad", WRONG), ("lost", None)],
]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return open_tiny(tmp_path_factory.mktemp("policy"))


def banked(group: int, step: int, sample: int, text: str) -> Row:
    return {
        "rollout_id": f"{step:06d}-{group:04d}-{sample:02d}",
        "task": "none",
        "prompt_id": str(group),
        "step": step,
        "response_text": text,
        "response_tokens": len(text),
    }


def decided(
    policy: Policy,
    settings: dict[str, Any],
    bank: list[Row] | None = None,
    feedback: dict[int, str] | None = None,
    **offered: Any,
) -> list[Row]:
    """Return the rows of `routes` of step 7; feedback by the place of its rollout."""
    tables = sampled(policy, GROUPS, STEP)
    task = pa.array(["none"] * tables["rollouts"].num_rows)
    place = tables["rollouts"].schema.get_field_index("task")
    field = tables["rollouts"].schema.field(place)
    tables["rollouts"] = tables["rollouts"].set_column(place, field, task)
    rows = tables["verdicts"].to_pylist()
    for number, text in (feedback or {}).items():
        rows[number]["feedback"] = text
    tables["verdicts"] = pa.Table.from_pylist(rows, schema=tables["verdicts"].schema)
    if bank is not None:
        tables["bank"] = pa.Table.from_pylist(bank, schema=BANK)
        check_table("bank", tables)
    handles = Handles(seed=0, step=STEP, render=policy.render, **offered)
    tables |= ROUTE.run(tables, config_of(route=settings), handles).tables
    check_table("routes", tables)
    return list(tables["routes"].to_pylist())


def taught_by(rows: list[Row]) -> list[tuple[str, str | None]]:
    return [(row["teacher_source"], row["teacher_rollout_id"]) for row in rows]


NOBODY = ("none", None)


def test_siblings_come_first_and_the_bank_helps_the_others(policy: Policy) -> None:
    bank = [
        banked(1, 5, 1, "newest, second"),
        banked(1, 5, 0, "newest, first of its sample, second in order"),
        banked(1, 2, 0, "oldest"),
        banked(0, 6, 0, "not needed"),
    ]
    rows = decided(policy, {"sources": ["sibling", "bank"]}, bank)
    newest = ("bank", "000005-0001-01")
    assert taught_by(rows) == [
        ("sibling", "000007-0000-01"),
        ("bank", "000006-0000-00"),
        newest,
        newest,
        NOBODY,
        NOBODY,
    ]
    assert [row["teacher_step"] for row in rows] == [7, 6, 5, 5, None, None]
    assert [row["route"] for row in rows] == ["sdpo", "grpo", "sdpo", "sdpo", "grpo", "none"]
    assert "\nCorrect solution:\n\nnewest, second\n\n" in rows[2]["teacher_prompt_text"]
    assert "solution from bank of step 5" in rows[2]["reason"]
    assert "no solution (sibling, bank)" in rows[4]["reason"]
    assert rows[4]["reason"].startswith("wrong, no teacher")


@pytest.mark.parametrize(("age", "found"), [(None, True), (5, True), (4, False)])
def test_a_banked_rollout_can_be_too_old(policy: Policy, age: int | None, found: bool) -> None:
    settings = {"sources": ["bank"], "bank_max_age": age}
    rows = decided(policy, settings, [banked(1, 2, 0, "old")])
    assert (rows[2]["teacher_source"] == "bank") == found


def test_a_bank_that_is_named_must_be_there(policy: Policy) -> None:
    with pytest.raises(StoreError, match="step 7 has no table bank"):
        decided(policy, {"sources": ["bank"]})


def test_thinking_is_removed_from_banked_rollouts(policy: Policy) -> None:
    rows = decided(policy, {"sources": ["bank"]}, [banked(1, 2, 0, "<think>a</think>\n so 4")])
    assert "\n\nso 4\n\n" in rows[2]["teacher_prompt_text"]


def test_the_tasks_own_solution_and_its_gold_answer(policy: Policy) -> None:
    settings = {"sources": ["sibling", "solution", "gold"]}
    worked = {("none", "1"): "worked", ("other", "2"): "of another task"}
    rows = decided(policy, settings, solutions=worked, golds={"none": lambda gold: f"is {gold}"})
    assert taught_by(rows) == [
        ("sibling", "000007-0000-01"),
        ("gold", None),
        ("solution", None),
        ("solution", None),
        ("gold", None),
        NOBODY,
    ]
    assert "\n\nworked\n\n" in rows[2]["teacher_prompt_text"]
    assert "\n\nis " in rows[4]["teacher_prompt_text"]
    assert "teacher_step" not in rows[0]


def test_feedback_alone_teaches_what_no_source_can(policy: Policy) -> None:
    settings = {"feedback_alone": True}
    rows = decided(policy, settings, feedback={0: "beside", 2: "off by one", 3: " \n"})
    assert taught_by(rows) == [
        ("sibling", "000007-0000-01"),
        NOBODY,
        ("feedback", None),
        NOBODY,
        NOBODY,
        NOBODY,
    ]
    # `feedback_alone` puts none beside a solution: that is `route.feedback`.
    assert "beside" not in rows[0]["teacher_prompt_text"]
    assert "attempt:\n\noff by one\n\n" in rows[2]["teacher_prompt_text"]
    assert "no solution (sibling), feedback alone" in rows[2]["reason"]
    assert "no solution (sibling), no feedback" in rows[3]["reason"]
    both = decided(policy, {"feedback": True}, feedback={0: "beside", 2: "off by one"})
    assert "beside" in both[0]["teacher_prompt_text"] and both[2]["teacher_source"] == "none"


def test_the_papers_rule_says_what_it_always_said(policy: Policy) -> None:
    rows = decided(policy, {})
    assert rows[0]["reason"] == "wrong, teacher available: learns from the teacher"
    assert not any("no solution" in row["reason"] for row in rows)
    assert "teacher_step" not in rows[0]


def test_grpo_records_what_a_teacher_would_be_shown(policy: Policy) -> None:
    settings = {"method": "grpo", "sources": ["sibling", "bank"]}
    rows = decided(policy, settings, [banked(1, 2, 0, "old")])
    assert [row["teacher_source"] for row in rows[:4]] == ["sibling", "none", "bank", "bank"]
    assert not any(row["teacher_prompt_ids"] for row in rows)
