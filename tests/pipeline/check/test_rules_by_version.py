"""Routes are judged by the version of `route` that made them: once, the unjudged were wrong."""

import pyarrow as pa
import pytest

from pipeline.check.rollout_tables import StepTables, routes_rules
from pipeline.tables.manifest import Manifest
from tests.builders.tables import COST, IDS, STEP, origin, tables, with_column

SETTINGS = {
    "route": {"method": "srpo", "advantage_scale": "none", "demonstration": "first"},
}
LEFT_OUT = ["grpo", "sdpo", "grpo", "none"]


def broken(version: int, made: dict[str, pa.Table]) -> list[str]:
    """Return the rules that a step's routes break, as made by a version of the stage."""
    manifest = Manifest(
        origin=origin("routes", stage="route", stage_version=version, settings=SETTINGS),
        rows=4,
        bytes=1,
        sha256="",
        facts={},
        index=None,
        cost=COST,
    )
    found = routes_rules(StepTables(STEP, made, {"routes": manifest}, None))
    return [f"{rule.rollout}: {rule.invariant}" for rule in found]


def step(routes: list[str] | None = None, texts: list[str] | None = None) -> dict[str, pa.Table]:
    """Return the builder's step, whose last rollout could not be judged, with some changes."""
    made = tables()
    if routes is not None:
        made["routes"] = with_column(made["routes"], "route", routes)
    if texts is not None:
        made["rollouts"] = with_column(made["rollouts"], "response_text", texts)
    return made


def test_tables_of_before_are_right_by_the_rules_of_before() -> None:
    assert broken(3, step()) == []
    assert [text[: len(IDS[3])] for text in broken(3, step(LEFT_OUT))] == [IDS[3]]


@pytest.mark.parametrize("version", [4, 5])
def test_now_the_unjudged_have_no_route(version: int) -> None:
    expected = f"{IDS[3]}: method srpo: not judged gives route none, not grpo"
    assert broken(version, step()) == [expected]
    assert broken(version, step(LEFT_OUT)) == []


def test_now_what_ends_inside_its_thinking_demonstrates_nothing() -> None:
    """The builder's first rollout teaches the second."""
    texts = ["<think>a", "b", "c", "d"]
    assert broken(3, step(texts=texts)) == []
    (found,) = broken(4, step(LEFT_OUT, texts))
    assert found == f"{IDS[1]}: the teacher is the first correct sibling, None, not {IDS[0]}"
