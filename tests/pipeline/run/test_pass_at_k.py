"""pass@k: by hand, against all sets of k answers, and what always holds."""

import math
from fractions import Fraction
from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.run.metrics import evaluation_metrics
from pipeline.run.pass_at_k import ks_of, ks_up_to, pass_at_k
from tests.builders.evaluations import answers
from tests.builders.tables import with_column

TALLIES = st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n)))


@pytest.mark.parametrize(
    ("n", "c", "k", "expected"),
    [
        (4, 1, 2, 1 / 2),  # 1 - C(3, 2) / C(4, 2) = 1 - 3 / 6
        (4, 2, 2, 5 / 6),  # 1 - C(2, 2) / C(4, 2) = 1 - 1 / 6
        (16, 1, 4, 1 / 4),  # one right answer is among 4 of 16 with chance 4 / 16
        (16, 3, 8, 9 / 10),  # 1 - C(13, 8) / C(16, 8) = 1 - 1287 / 12870
        (5, 3, 3, 1.0),  # two wrong ones are no set of three
        (5, 0, 5, 0.0),
    ],
)
def test_by_hand(n: int, c: int, k: int, expected: float) -> None:
    assert pass_at_k(n, c, k) == expected


@pytest.mark.parametrize("n", range(1, 9))
def test_it_is_the_share_of_all_sets_of_k_answers(n: int) -> None:
    for c in range(n + 1):
        for k in range(1, n + 1):
            sets = list(combinations([True] * c + [False] * (n - c), k))
            assert pass_at_k(n, c, k) == float(Fraction(sum(map(any, sets)), len(sets)))


@given(TALLIES)
def test_what_always_holds(tally: tuple[int, int]) -> None:
    n, c = tally
    found = [pass_at_k(n, c, k) for k in range(1, n + 1)]
    assert found[0] == c / n
    assert found[-1] == float(c > 0)
    assert all(a <= b for a, b in pairwise(found))


@pytest.mark.parametrize("p", [0.1, 0.35, 0.8])
def test_it_has_no_bias(p: float) -> None:
    """Over all samples of 6 answers its mean is 1 - (1 - p)^k; that of the plug-in is lower."""
    n, k = 6, 3
    chance = [math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
    mean = math.fsum(chance[c] * pass_at_k(n, c, k) for c in range(n + 1))
    plug_in = math.fsum(chance[c] * (1 - (1 - c / n) ** k) for c in range(n + 1))
    assert mean == pytest.approx(1 - (1 - p) ** k, rel=1e-12)
    assert plug_in < mean - 1e-3


@pytest.mark.parametrize(
    ("n", "c", "k"), [(4, 1, 5), (4, 1, 0), (4, 5, 1), (4, -1, 1), (0, 0, 1), (0, 0, 0)]
)
def test_what_it_cannot_estimate_is_refused(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match=f"pass@{k} of {n} answers, {c} of them correct"):
        pass_at_k(n, c, k)


def test_ks_are_powers_of_two_and_all_answers() -> None:
    assert [ks_up_to(n) for n in (1, 2, 3, 8, 12)] == [
        [1], [1, 2], [1, 2, 3], [1, 2, 4, 8], [1, 2, 4, 8, 12],
    ]  # fmt: skip


def test_an_evaluation_by_hand() -> None:
    """Right: 2 of 4, 1 of 4, 0 of 4; pass@2: 5/6, 3/6, 0."""
    found = evaluation_metrics(answers("4455", "4565", "5..."))
    assert ks_of(found) == [1, 2, 4]
    assert found["pass_at_1"] == found["accuracy"] == 0.25
    assert found["pass_at_2"] == pytest.approx((5 / 6 + 1 / 2) / 3)
    assert found["pass_at_4"] == found["pass_at_k"] == pytest.approx(2 / 3)
    assert found["distinct_answers"] == pytest.approx((2 + 3 + 1) / 3)  # "." predicts nothing
    for name in ("pass_at_1", "pass_at_2", "pass_at_4", "distinct_answers"):
        assert found[f"{name}_low"] < found[name] < found[f"{name}_high"]
    assert found["pass_at_1_low"] == found["low"] and found["pass_at_1_high"] == found["high"]


def test_predictions_differ_as_texts_and_the_unjudged_have_none() -> None:
    assert evaluation_metrics(answers("45....", "......"))["distinct_answers"] == 1.0
    made = with_column(answers("4567"), "error", [None, None, "timed out", "timed out"])
    assert evaluation_metrics(made)["distinct_answers"] == 2.0


def test_k_ends_with_the_answers_that_every_question_has() -> None:
    found = evaluation_metrics(answers("4", "555"))
    assert ks_of(found) == [1] and found["rollouts"] == 3
    found = evaluation_metrics(answers("455", "55554"))
    assert ks_of(found) == [1, 2, 3]
    assert found["pass_at_3"] == pytest.approx((1 + 3 / 5) / 2)
    assert found["pass_at_k"] == 1.0


def test_each_task_of_a_mixture_has_its_own() -> None:
    found = evaluation_metrics(answers("44", "45", "55", tasks=("a", "b", "b")))
    assert ks_of(found) == [1, 2]
    assert [found[f"pass_at_1/{task}"] for task in "ab"] == [1.0, 0.25]
    assert [found[f"pass_at_2/{task}"] for task in "ab"] == [1.0, 0.5]
    assert [found[f"distinct_answers/{task}"] for task in "ab"] == [1.0, 1.5]
