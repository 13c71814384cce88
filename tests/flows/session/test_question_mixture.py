"""Shares of a mixture: exact at every moment, the same from any start."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.session.question_mixture import deal

WEIGHTS = st.dictionaries(
    st.sampled_from("abcdef"),
    st.one_of(st.integers(1, 30).map(float), st.floats(0.01, 20.0).map(lambda w: round(w, 2))),
    min_size=1,
)


def test_by_hand() -> None:
    # (had + 1) / weight: first a 1/2 before b 1; then both 1, and a stands first; then a has had
    # its 2/3 of 3 questions, so b.
    assert deal({"a": 2.0, "b": 1.0}, 0, 6).names == ["a", "a", "b", "a", "a", "b"]
    assert deal({"b": 1.0}, 5, 2) == (["b", "b"], {"b": 5})
    assert deal({"a": 2.0, "b": 1.0}, 600, 1).before == {"a": 400, "b": 200}
    assert deal({"a": 0.1, "b": 0.2, "c": 0.7}, 1000, 1).before == {"a": 100, "b": 200, "c": 700}


def test_equal_weights_take_turns() -> None:
    assert deal({"a": 3.0, "b": 3.0, "c": 3.0}, 2, 5).names == ["c", "a", "b", "c", "a"]


@given(WEIGHTS, st.integers(0, 200))
def test_after_any_number_each_has_its_share_rounded_up_or_down(
    weights: dict[str, float], number: int
) -> None:
    exact = {name: Fraction(repr(weight)) for name, weight in weights.items()}
    had = deal(weights, number, 1).before
    assert sum(had.values()) == number
    for name, weight in exact.items():
        assert abs(had[name] - number * weight / sum(exact.values())) < 1


@given(WEIGHTS, st.integers(0, 60), st.integers(1, 9), st.integers(1, 9))
def test_a_stretch_is_the_same_in_one_piece_and_in_two(
    weights: dict[str, float], start: int, first: int, second: int
) -> None:
    whole = deal(weights, start, first + second)
    one, two = deal(weights, start, first), deal(weights, start + first, second)
    assert whole.names == one.names + two.names
    assert two.before == {n: one.before[n] + one.names.count(n) for n in weights}


@pytest.mark.parametrize("weights", [(1e-300, 1e300), (5e-324, 1.0), (1 / 3, 2 / 3)])
def test_weights_of_any_size(weights: tuple[float, float]) -> None:
    found = deal({"a": weights[0], "b": weights[1]}, 0, 9).names
    assert found.count("a") == (3 if weights[0] > 0.1 else 0) and len(found) == 9
