"""`srpo check` computes who teaches whom from siblings, bank and feedback."""

from typing import Any

import pyarrow as pa
import pytest

from pipeline.check.rollout_tables import StepTables, routes_rules
from pipeline.policy.policy import Policy
from pipeline.stage.contract import Handles
from pipeline.tables.manifest import Manifest
from pipeline.tables.schemas import BANK, Row
from stages.route import STAGE as ROUTE
from tests.builders.tables import COST, origin
from tests.stages.steps import Group, config_of, open_tiny, sampled

STEP = 7
GROUPS: list[Group] = [[("bad", 0.0), ("good", 1.0)], [("bad", 0.0), ("worse", 0.0)]]
Columns = dict[str, list[Any]]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return open_tiny(tmp_path_factory.mktemp("policy"))


def made(policy: Policy, settings: dict[str, Any], golds: bool = False) -> dict[str, pa.Table]:
    """Return a step with a bank for its second question, of steps 3 and 6, and feedback there."""
    tables = sampled(policy, GROUPS, STEP)
    rows = tables["verdicts"].to_pylist()
    rows[3]["feedback"] = "worse than bad"
    tables["verdicts"] = pa.Table.from_pylist(rows, schema=tables["verdicts"].schema)
    task = tables["rollouts"]["task"][0].as_py()
    bank = [
        {
            "rollout_id": f"{step:06d}-0001-00",
            "task": task,
            "prompt_id": "1",
            "step": step,
            "response_text": "fine",
            "response_tokens": 4,
        }
        for step in (6, 3)
    ]
    tables["bank"] = pa.Table.from_pylist(bank, schema=BANK)
    words = {task: str} if golds else {}
    handles = Handles(seed=0, step=STEP, render=policy.render, golds=words)
    return tables | ROUTE.run(tables, config_of(route=settings), handles).tables


def broken(tables: dict[str, pa.Table], settings: dict[str, Any]) -> list[str]:
    recorded = config_of(route=settings).route.recorded()
    manifest = Manifest(
        origin=origin("routes", stage="route", stage_version=4, settings={"route": recorded}),
        rows=4,
        bytes=1,
        sha256="",
        facts={},
        index=None,
        cost=COST,
    )
    return [f.invariant for f in routes_rules(StepTables(STEP, tables, {"routes": manifest}, None))]


def changed(tables: dict[str, pa.Table], row: int, **values: Any) -> dict[str, pa.Table]:
    rows: list[Row] = tables["routes"].to_pylist()
    rows[row] |= values
    routes = pa.Table.from_pylist(rows, schema=tables["routes"].schema)
    return {**tables, "routes": routes}


BANKED = {"sources": ["sibling", "bank"]}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        BANKED,
        {"sources": ["bank"], "bank_max_age": 1},
        {"sources": ["bank"], "bank_max_age": 1, "method": "grpo"},
        {"feedback_alone": True},
        {"sources": [], "feedback_alone": True, "method": "sdpo"},
    ],
)
def test_what_route_decides_is_right(policy: Policy, settings: dict[str, Any]) -> None:
    assert broken(made(policy, settings), settings) == []


def test_gold_is_believed(policy: Policy) -> None:
    settings = {"sources": ["gold", "sibling"]}
    tables = made(policy, settings, golds=True)
    assert tables["routes"]["teacher_source"].to_pylist() == ["gold"] * 4
    assert broken(tables, settings) == []


def test_another_source_than_the_first_is_found(policy: Policy) -> None:
    tables = made(policy, BANKED)
    other = changed(tables, 2, teacher_rollout_id="000003-0001-00")
    assert broken(other, BANKED) == [
        "the teacher is bank, 000006-0001-00, not 000003-0001-00 (bank)"
    ]
    of_group = changed(tables, 0, teacher_source="bank")
    assert broken(of_group, BANKED) == [
        "the teacher is the first correct sibling, 000007-0000-01, not 000007-0000-01 (bank)"
    ]


def test_a_rollout_that_is_too_old_is_found(policy: Policy) -> None:
    tables = made(policy, BANKED)
    bank = tables["bank"]
    kept = {**tables, "bank": bank.filter(pa.array([s == 3 for s in bank["step"].to_pylist()]))}
    (found, again) = broken(kept, BANKED | {"bank_max_age": 2})
    assert found == again == "the teacher is none, None, not 000006-0001-00 (bank)"


def test_feedback_that_is_not_there_teaches_nobody(policy: Policy) -> None:
    settings = {"sources": [], "feedback_alone": True}
    tables = made(policy, settings)
    found = broken(changed(tables, 3, teacher_source="sibling"), settings)
    assert "the teacher is feedback, None, not None" in found
    told = changed(tables, 2, teacher_available=True, teacher_source="feedback")
    assert "the teacher is none, None, not None (feedback)" in broken(told, settings)
