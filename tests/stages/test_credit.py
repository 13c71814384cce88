"""RLSD (docs/method.md, section 13): who is asked, what each token counts, what is learned."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.errors import StoreError
from pipeline.methods import credit_lambda
from pipeline.policy.policy import Policy
from pipeline.tables.invariants import check_table
from stages.update import STAGE as UPDATE
from stages.update.batch import flatten, rollouts_of
from stages.weigh import credit_columns
from tests.builders.tables import with_value
from tests.stages.steps import Group, config_of, open_tiny, routed, run_one, updated

RIGHT, WRONG = 1.0, 0.0
GROUPS: list[Group] = [
    [("one", RIGHT), ("two", RIGHT)],  # all right: no advantage
    [("one", WRONG), ("good answer", RIGHT), ("", WRONG), ("x|", None)],  # a sole right one
    [("a", RIGHT), ("cut off|", WRONG), ("b", RIGHT)],
]
RLSD = {"method": "rlsd"}


@pytest.fixture
def policy(tmp_path: Path) -> Policy:
    return open_tiny(tmp_path)


def factors(log_ratio: list[float], advantage: float, credit: float, clip: float) -> list[float]:
    shape = np.ones(len(log_ratio))
    found = credit_columns(np.array(log_ratio), advantage * shape, credit * shape, clip)
    return list(found["weight"])


def test_lambda_by_hand() -> None:
    found = [credit_lambda("rlsd", 0.5, 50, step) for step in (0, 10, 25, 49, 50, 51, 900)]
    assert found == pytest.approx([0.5, 0.4, 0.25, 0.01, 0, 0, 0])
    assert credit_lambda("srpo", 0.5, 50, 0) == 0


def test_factors_by_hand() -> None:
    # q/s = 2, 1.1, 1, 1/2: clipped to 1.2, 1.1, 1, 0.8; half of the way from 1.
    ratios = np.log([2.0, 1.1, 1.0, 0.5]).tolist()
    assert factors(ratios, 0.25, 0.5, 0.2) == pytest.approx([1.1, 1.05, 1.0, 0.9])
    # A < 0 turns them over: 1/2, 10/11, 1, 2.
    expected = [0.9, 0.5 + 0.5 * 10 / 11, 1.0, 1.1]
    assert factors(ratios, -0.25, 0.5, 0.2) == pytest.approx(expected)
    # lambda = 1, all but unclipped.
    assert factors(ratios, -0.25, 1.0, 1.0) == pytest.approx([0.5, 10 / 11, 1.0, 2.0])


NUMBERS = st.floats(-1e6, 1e6)
SHARES = st.floats(0, 1)


@given(NUMBERS, st.floats(-2, 2).filter(bool), SHARES, SHARES)
@example(1e5, 1.0, 0.5, 0.2)
@example(1e5, -1.0, 1.0, 1.0)
@example(-1e5, 1.0, 1.0, 1.0)
def test_no_token_turns_its_advantage_over(
    ratio: float, advantage: float, credit: float, clip: float
) -> None:
    raw, factor = (
        float(column[0])
        for column in credit_columns(
            *(np.array([v]) for v in (ratio, advantage, credit)), clip
        ).values()
    )
    assert advantage * factor * advantage >= 0
    slack = 1e-12
    assert 1 - credit * clip - slack <= factor <= 1 + credit * clip + slack
    assert math.isfinite(np.float32(raw)) and raw >= 0


@given(st.lists(NUMBERS, min_size=2, max_size=20), st.sampled_from([-1.0, 0.5]), SHARES)
def test_the_teachers_favourites_gain_and_lose_least(
    ratios: list[float], advantage: float, credit: float
) -> None:
    """What it likes better than the student gets more of a reward, and less of a blame."""
    found = factors(sorted(ratios), advantage, credit, 0.2)
    steps = np.diff(found) * np.sign(advantage)
    assert (steps >= -1e-12).all()


@given(st.lists(NUMBERS, min_size=1, max_size=20), st.sampled_from([-1.0, 0.5]))
def test_without_a_share_all_factors_are_one(ratios: list[float], advantage: float) -> None:
    assert set(factors(ratios, advantage, 0.0, 0.2)) == {1.0}


def test_only_rollouts_with_an_advantage_ask_their_teacher(policy: Policy) -> None:
    tables = routed(policy, config_of(route=RLSD), GROUPS)
    routes = tables["routes"].to_pylist()
    assert [r["route"] for r in routes] == ["grpo"] * 5 + ["none"] + ["grpo"] * 3
    # Group 0 has teachers and no advantage; 000000-0001-01 has no sibling; -02 is empty but for
    # its EOS.
    assert [r["teacher_available"] for r in routes[:3]] == [True, True, True]
    asked = ["000000-0001-00", "000000-0001-02", *(f"000000-0002-0{n}" for n in range(3))]
    assert tables["teacher"]["rollout_id"].unique().to_pylist() == asked
    assert tables["weights"]["rollout_id"].unique().to_pylist() == asked
    assert {r["credit_lambda"] for r in routes} == {0.5}


@pytest.mark.parametrize(("step", "settings"), [(0, {"credit_lambda": 0.0}), (50, {}), (73, {})])
def test_a_share_of_nothing_asks_nobody(
    policy: Policy, step: int, settings: dict[str, float]
) -> None:
    tables = routed(policy, config_of(route={**RLSD, **settings}), GROUPS, step)
    assert tables["teacher"].num_rows == tables["weights"].num_rows == 0
    assert set(tables["routes"]["credit_lambda"].to_pylist()) == {0.0}


@pytest.mark.parametrize("mini_batch", [None, 1])
@pytest.mark.parametrize(("step", "settings"), [(0, {"credit_lambda": 0.0}), (50, {})])
def test_a_share_of_nothing_is_grpo_bit_for_bit(
    tmp_path: Path, mini_batch: int | None, step: int, settings: dict[str, float]
) -> None:
    """Losses, statistics, and every bit of weights, optimizer and teacher after the step."""
    found = []
    for method, more in (("grpo", {}), ("rlsd", settings)):
        policy = open_tiny(tmp_path / method)
        config = config_of(
            route={"method": method, "mini_batch": mini_batch, **more},
            generate={"questions": 3},
            update={"learning_rate": 1e-2},
        )
        tables = routed(policy, config, GROUPS, step)
        facts = dict(run_one(UPDATE, tables, policy, config, step))
        facts.pop("tokens_naive", None)
        found.append((tables["updates"], tables["weights"], tables["scores"], facts))
    (grpo, rlsd) = found
    assert all(one.equals(other) for one, other in zip(grpo[:3], rlsd[:3], strict=True))
    assert grpo[3] == rlsd[3]


def test_losses_by_hand(policy: Policy) -> None:
    """On-policy a token's loss is -A c min(pi_old / pi_engine, 2); a factor of 1 has no teacher."""
    config = config_of(route={**RLSD, "credit_lambda": 0.9}, weigh={"credit_clip": 0.7})
    tables = updated(policy, config, GROUPS)
    teacher, weights = tables["teacher"].to_pylist(), tables["weights"].to_pylist()
    advantages = dict(
        zip(*(tables["routes"][n].to_pylist() for n in ("rollout_id", "advantage")), strict=True)
    )
    sums: dict[str, float] = {}
    for row, weight in zip(teacher, weights, strict=True):
        a = advantages[row["rollout_id"]]
        ratio = math.exp(row["teacher_logprob"] - row["student_logprob"])
        w = ratio if a > 0 else 1 / ratio
        c = 0.1 + 0.9 * min(max(w, 0.3), 1.7)
        assert weight["raw_weight"] == pytest.approx(w, rel=1e-5)
        assert weight["weight"] == pytest.approx(c, rel=1e-6)
        tis = min(math.exp(row["student_logprob"] + 3.5), 2.0)
        sums[row["rollout_id"]] = sums.get(row["rollout_id"], 0.0) - a * c * tis
    assert len({round(weight["weight"], 3) for weight in weights}) > 10
    updates = {row["rollout_id"]: row for row in tables["updates"].to_pylist()}
    for name, expected in sums.items():
        assert updates[name]["loss_sum"] == pytest.approx(expected, rel=1e-4)
        assert updates[name]["mean_divergence"] is None
    alone = updates["000000-0001-01"]
    expected = -advantages["000000-0001-01"] * alone["mean_tis"] * alone["tokens"]
    assert alone["loss_sum"] == pytest.approx(expected, rel=1e-5)


def test_the_update_gets_factors_and_nothing_to_distil(policy: Policy) -> None:
    tables = routed(policy, config_of(route=RLSD), GROUPS)
    rollouts = rollouts_of(tables, on_policy=True)
    assert all(r.taught is None for r in rollouts)
    batch = flatten([r for r in rollouts if r.computed], 16, policy.device)
    assert not bool(batch.taught_N.any()) and len(batch.weight_M) == 0
    weight = dict.fromkeys(r.rollout_id for r in rollouts)
    for name in weight:
        own = tables["weights"].filter(pa.compute.equal(tables["weights"]["rollout_id"], name))
        weight[name] = own["weight"].to_numpy()
    for rollout, part in zip(batch.rollouts, batch.slices(), strict=True):
        own = weight[rollout.rollout_id]
        expected = np.float32(rollout.advantage) * (own if len(own) else np.float32(1))
        assert (batch.advantage_N[part].numpy() == expected).all()


def spoilt(name: str, row: int, value: float) -> Callable[[dict[str, pa.Table]], None]:
    def change(tables: dict[str, pa.Table]) -> None:
        tables["weights"] = with_value(tables["weights"], name, row, value)

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (spoilt("weight", 3, 1.51), "factors of the advantage are within"),
        (spoilt("weight", 3, 0.49), "factors of the advantage are within"),
        (spoilt("weight", 3, float("nan")), "finite"),
    ],
)
def test_factors_out_of_bounds_are_refused(
    policy: Policy, change: Callable[[dict[str, pa.Table]], None], said: str
) -> None:
    tables = routed(policy, config_of(route=RLSD), GROUPS)
    change(tables)
    with pytest.raises(StoreError, match=said):
        check_table("weights", tables)


def test_a_rollout_that_should_have_been_asked_is_missed(policy: Policy) -> None:
    tables = routed(policy, config_of(route=RLSD), GROUPS)
    teacher = tables["teacher"]
    first = teacher["rollout_id"][0].as_py()
    tables["teacher"] = teacher.filter(pa.compute.not_equal(teacher["rollout_id"], first))
    with pytest.raises(StoreError, match="tokens of the taught rollouts"):
        check_table("teacher", tables)
