"""Scoring and updates on 2 and 4 ranks equal those on one: ids exactly, numbers within 1e-5.

So do those of a policy that is kept in the host's memory, which is all that CPUs can show of that,
and of one whose matrices are rounded to bfloat16 before they are gathered. Where the projection is
not the table of embeddings, a rank that computes nothing makes a gradient of it all the same. Of
adapters every rank has all, and the same to the last bit. With rlsd the teacher is periodic.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch

from tests.ranks.compare_tables import compare
from tests.ranks.run_steps import STEPS, all_steps, on_ranks

pytestmark = pytest.mark.slow

Found = list[dict[str, Any]]
"""What some number of ranks found: an error, then of every step its tables and gradient."""


BFLOAT16 = {"precision": "bfloat16"}
OFFLOADED = {"cpu_offload": True}
UNTIED = {"tied": False}
LORA = {"lora": {"rank": 4}}
ROUNDED = {**LORA, "base_dtype": "bfloat16"}
HOW: dict[str, tuple[int, dict[str, Any]]] = {
    "2 ranks": (2, {}),
    "4 ranks, untied": (4, UNTIED),
    "1 rank, offloaded": (1, OFFLOADED),
    "2 ranks, offloaded, untied": (2, OFFLOADED | UNTIED),
    "2 ranks, bfloat16, untied": (2, BFLOAT16 | UNTIED),
    "4 ranks, offloaded, bfloat16": (4, OFFLOADED | BFLOAT16),
    "4 ranks, adapters": (4, LORA),
    "2 ranks, adapters, bfloat16 base, untied": (2, ROUNDED | UNTIED),
    "2 ranks, rlsd": (2, {"method": "rlsd"}),
    "2 ranks, offloaded, rlsd": (2, {"method": "rlsd"} | OFFLOADED),
    "2 ranks, adapters, rlsd": (2, {"method": "rlsd"} | LORA),
}


Several = tuple[dict[str, Any], Found]
"""How a policy was opened, and what several ranks found."""


@pytest.fixture(scope="module")
def ones(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Mapping[str, Any]], Found]:
    """Return what one rank finds, by how its policy is opened; in the host's memory or not."""
    known: dict[str, Found] = {}

    def find(model: Mapping[str, Any]) -> Found:
        wanted = {name: value for name, value in model.items() if name != "cpu_offload"}
        if (key := json.dumps(wanted)) not in known:
            known[key] = all_steps(tmp_path_factory.mktemp("one"), **wanted)
        return known[key]

    return find


@pytest.fixture(scope="module", params=HOW.values(), ids=HOW)
def several(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Several:
    count, model = request.param
    return model, on_ranks(tmp_path_factory.mktemp("several"), count, **model)


@pytest.fixture
def pair(ones: Callable[[Mapping[str, Any]], Found], several: Several) -> tuple[Found, Found]:
    """Return what one rank found, and what several did with the same model and precision."""
    model, found = several
    return ones(model), found


def test_an_error_of_one_rank_is_everybodys_and_they_go_on(pair: tuple[Found, Found]) -> None:
    one, several = pair
    assert "differ by more than generate.max_logprob_gap = 50 nats in 1 of" in one[0]["error"]
    assert several[0]["error"].split(" (")[0] == one[0]["error"].split(" (")[0]


def test_bfloat16_gathers_what_autocast_would_round(several: Several) -> None:
    model, found = several
    assert not found[0]["why"]  # tried out in float32, also where weights come rounded
    for name, dtype in found[0]["dtypes"].items():
        rounded = "precision" in model and name.endswith("_proj.weight")
        assert dtype == (torch.bfloat16 if rounded else torch.float32), name


@pytest.mark.parametrize("step", range(1, 1 + len(STEPS)))
def test_tables_are_those_of_one_rank(step: int, pair: tuple[Found, Found]) -> None:
    one, several = pair
    for name, table in one[step]["tables"].items():
        compare(table, several[step]["tables"][name])


@pytest.mark.parametrize("step", range(1, 1 + len(STEPS)))
def test_gradients_are_those_of_one_rank(step: int, pair: tuple[Found, Found]) -> None:
    one, several = pair
    ours, theirs = one[step]["gradient"], several[step]["gradient"]
    assert ours.keys() == theirs.keys()
    whole = float(sum(g.double().square().sum() for g in ours.values())) ** 0.5
    for name, gradient in ours.items():
        assert float((gradient - theirs[name]).double().norm()) <= 1e-5 * whole, name
    norms = [found[step]["facts"]["grad_norm"] for found in pair]
    assert norms[1] == pytest.approx(norms[0], rel=1e-5)
    assert norms[0][0] == pytest.approx(whole, rel=1e-9)


@pytest.mark.parametrize("step", range(1, 1 + len(STEPS)))
def test_clipped_gradients_are_those_of_one_rank(step: int, pair: tuple[Found, Found]) -> None:
    one, several = (found[step] for found in pair)
    whole = float(sum(g.double().square().sum() for g in one["gradient"].values())) ** 0.5
    scale = min(1.0, 1e-3 / (whole + 1e-6))
    for name, gradient in one["gradient"].items():
        for found in (one, several):
            off = (found["clipped"][name].double() - scale * gradient.double()).norm()
            assert float(off) <= 1e-5 * scale * whole, name


@pytest.mark.parametrize("step", range(1, 1 + len(STEPS)))
def test_what_every_rank_holds_whole_is_the_same_to_the_last_bit(
    step: int, several: Several
) -> None:
    """Of adapters that is everything; of a model that is spread, AdamW's counts of steps."""
    assert len(set(several[1][step]["held"])) == 1
