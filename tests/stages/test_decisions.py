"""Table 7 of the paper, advantages, siblings, and the other methods' routes."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.methods import METHODS, Method
from pipeline.twin.routing import group_advantages
from stages.route.decisions import (
    demonstrating_sibling,
    group_note,
    group_statistics,
    mini_batches,
    reason_of,
    route_of,
    teacher_available,
)

# (c_i, m_i): route of srpo, sdpo, sdpo_incorrect_only, sdpo_correct_only (docs/method.md,
# sections 3 and 9).
TABLE_7 = {
    (True, True): ("grpo", "sdpo", "none", "sdpo"),
    (True, False): ("grpo", "none", "none", "none"),
    (False, True): ("sdpo", "sdpo", "sdpo", "none"),
    (False, False): ("grpo", "none", "none", "none"),
}


@pytest.mark.parametrize(("correct", "available"), TABLE_7)
def test_routes_are_table_7_and_section_9(correct: bool, available: bool) -> None:
    methods = ("srpo", "sdpo", "sdpo_incorrect_only", "sdpo_correct_only")
    found = tuple(route_of(method, correct, available) for method in methods)
    assert found == TABLE_7[correct, available]
    assert route_of("grpo", correct, available) == "grpo"
    assert route_of("advantage_mix", correct, available) == "mix"
    assert route_of("rlsd", correct, available) == "grpo"


def test_nobody_demonstrates_to_itself() -> None:
    assert demonstrating_sibling("first", [False, True, True], [1, 2, 3], 0) == 1
    assert (
        demonstrating_sibling("first", [False, True, True], [1, 2, 3], 1) == 2
    )  # the first one that isn't itself
    assert (
        demonstrating_sibling("first", [True, False, False], [1, 2, 3], 0) is None
    )  # sole correct: no teacher
    assert demonstrating_sibling("first", [True, False, False], [1, 2, 3], 2) == 0
    assert demonstrating_sibling("first", [False, False], [1, 2, 3], 1) is None
    assert demonstrating_sibling("first", [True], [1, 2, 3], 0) is None


def test_the_longest_correct_sibling() -> None:
    lengths = [7, 9, 9, 20]
    correct = [True, True, True, False]
    found = [demonstrating_sibling("longest", correct, lengths, index) for index in range(4)]
    assert found == [1, 2, 1, 1]  # the first of equals; never itself; never a wrong one
    assert demonstrating_sibling("longest", [True, False], [1, 2], 0) is None


def test_advantages_by_hand() -> None:
    # r = 1, 0, 0, 1: mean 0.5; deviations 0.5 each; sum of squares 1; std = sqrt(1 / 3).
    plain = group_statistics([1.0, 0.0, 0.0, 1.0], scaled=False)
    assert plain.mean == 0.5
    assert plain.std == pytest.approx(math.sqrt(1 / 3), abs=1e-12)
    assert plain.advantages_G == [0.5, -0.5, -0.5, 0.5]
    scaled = group_statistics([1.0, 0.0, 0.0, 1.0], scaled=True)
    assert scaled.advantages_G[0] == pytest.approx(0.5 / (math.sqrt(1 / 3) + 1e-6), rel=1e-12)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1])
def test_equal_rewards_give_exactly_no_advantage(reward: float, scaled: bool) -> None:
    statistics = group_statistics([reward] * 7, scaled)
    assert statistics.advantages_G == [0.0] * 7
    assert statistics.std == 0.0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=64), st.booleans())
def test_advantages_sum_to_zero(rewards: list[float], scaled: bool) -> None:
    advantages = group_statistics(rewards, scaled).advantages_G
    assert sum(advantages) == pytest.approx(0, abs=1e-8 * len(rewards))


def test_groups_of_which_not_all_could_be_judged() -> None:
    # r = 1, -, 0: mean 0.5, deviations of +-0.5, std = sqrt(0.5); the second is in none of it.
    found = group_statistics([1.0, 0.0, 0.0], False, [True, False, True])
    assert found == (0.5, math.sqrt(0.5), [0.5, 0.0, -0.5])
    assert group_statistics([0.0, 0.0], True, [False, False]) == (0.0, 0.0, [0.0, 0.0])
    assert group_statistics([1.0, 0.0], True, [True, False]) == (1.0, 0.0, [0.0, 0.0])


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=20), st.booleans())
def test_the_unjudged_change_nothing_for_the_others(
    pairs: list[tuple[float, bool]], scaled: bool
) -> None:
    rewards, judged = [r for r, _ in pairs], [j for _, j in pairs]
    found = group_statistics(rewards, scaled, judged)
    known = [r for r, j in pairs if j]
    alone = group_statistics(known, scaled)
    assert (found.mean, found.std) == (alone.mean, alone.std)
    assert [a for a, j in zip(found.advantages_G, judged, strict=True) if j] == alone.advantages_G
    assert {a for a, j in zip(found.advantages_G, judged, strict=True) if not j} <= {0.0}
    twin = group_advantages(rewards, "group_std" if scaled else "none", judged)
    assert found.mean == pytest.approx(twin.mean, abs=1e-12)
    assert found.std == pytest.approx(twin.std, abs=1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_without_a_verdict_there_is_no_route(method: Method) -> None:
    for correct in (True, False):
        for available in (True, False):
            assert route_of(method, correct, available, judged=False) == "none"
    assert reason_of("none", False, False, ["x"], judged=False) == "not judged: left out; x"


def test_group_compositions_have_their_note() -> None:
    assert group_note([True, True], 0) == "all-right group"
    assert group_note([False, False], 1) == "all-wrong group"
    assert group_note([True, False], 0) == "sole correct rollout, cannot teach itself"
    assert group_note([True, False], 1) is None


def test_reasons_say_what_a_rollout_learns_from() -> None:
    assert reason_of("sdpo", False, True, []) == (
        "wrong, teacher available: learns from the teacher"
    )
    assert reason_of("none", True, False, ["x"]) == "correct, no teacher: left out; x"
    assert reason_of("mix", False, False, []).endswith("learns from its advantage")


@given(st.integers(1, 40), st.integers(1, 45), st.integers(0, 5))
def test_mini_batches_are_whole_seeded_and_full(groups: int, size: int, step: int) -> None:
    batches = mini_batches(groups, size, 7, step)
    assert batches == mini_batches(groups, size, 7, step)
    counts = [batches.count(b) for b in range(max(batches) + 1)]
    assert all(count == size for count in counts[:-1])
    assert 1 <= counts[-1] <= max(size, groups)
    assert mini_batches(groups, None, 7, step) == [0] * groups


def test_mini_batches_differ_from_step_to_step() -> None:
    assert mini_batches(32, 8, 0, 0) != mini_batches(32, 8, 0, 1)


@pytest.mark.parametrize(
    ("method", "sibling", "prompt_fits", "available"),
    [
        ("srpo", True, True, True),
        ("srpo", True, False, False),  # the demonstration can't be cut short enough
        ("srpo", False, False, False),  # nobody else is right
        ("grpo", True, False, True),  # no prompt is made; a sibling is there
        ("grpo", False, False, False),
    ],
)
def test_a_teacher_needs_a_sibling_and_a_prompt_that_fits(
    method: Method, sibling: bool, prompt_fits: bool, available: bool
) -> None:
    assert teacher_available(method, sibling, prompt_fits) is available
