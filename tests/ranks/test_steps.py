"""Scoring and updates on 2 and 4 ranks equal those on one: ids exactly, numbers within 1e-5.

So do those of a policy that is kept in the host's memory, which is all that CPUs can show of that.
"""

from typing import Any

import pytest

from tests.ranks.compared import compare
from tests.ranks.steps import STEPS, all_steps, on_ranks

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return all_steps(tmp_path_factory.mktemp("one"))


HOW = {
    "2 ranks": (2, False),
    "4 ranks": (4, False),
    "1 rank, offloaded": (1, True),
    "2 ranks, offloaded": (2, True),
}


@pytest.fixture(scope="module", params=HOW.values(), ids=HOW)
def several(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    return on_ranks(tmp_path_factory.mktemp("several"), *request.param)


def test_an_error_of_one_rank_is_everybodys_and_they_go_on(
    one: list[dict[str, Any]], several: list[dict[str, Any]]
) -> None:
    assert "differ by more than generate.max_logprob_gap = 50 nats in 1 of" in one[0]["error"]
    assert several[0]["error"].split(" (")[0] == one[0]["error"].split(" (")[0]


@pytest.mark.parametrize("step", range(1, 1 + len(STEPS)))
def test_tables_are_those_of_one_rank(
    step: int, one: list[dict[str, Any]], several: list[dict[str, Any]]
) -> None:
    for name, table in one[step]["tables"].items():
        compare(table, several[step]["tables"][name])


@pytest.mark.parametrize("step", range(1, 1 + len(STEPS)))
def test_gradients_are_those_of_one_rank(
    step: int, one: list[dict[str, Any]], several: list[dict[str, Any]]
) -> None:
    ours, theirs = one[step]["gradient"], several[step]["gradient"]
    assert ours.keys() == theirs.keys()
    whole = float(sum(g.double().square().sum() for g in ours.values())) ** 0.5
    for name, gradient in ours.items():
        assert float((gradient - theirs[name]).double().norm()) <= 1e-5 * whole, name
    norms = [found[step]["facts"]["grad_norm"] for found in (one, several)]
    assert norms[1] == pytest.approx(norms[0], rel=1e-5)
    assert norms[0][0] == pytest.approx(whole, rel=1e-5)
