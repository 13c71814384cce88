"""Colours of the heat map: levels, ends of the scale, and what is not recorded."""

from math import inf, nan

import pytest

from pipeline.viewer.heat_map import (
    LEVELS,
    QUANTITIES,
    SIDE,
    Layer,
    colour,
    css_class,
    first_shown,
)

OF = {quantity.key: quantity for quantity in QUANTITIES}


def test_sizes_go_from_pale_at_zero_to_the_largest_value() -> None:
    made = colour(OF["teacher_entropy"], [0.0, 1.0, 2.0], "")
    assert made.levels == [0, 16, LEVELS]
    assert (made.pale, made.strong, made.extreme) == (0.0, 2.0, None)


def test_small_log_probabilities_are_the_strong_ones() -> None:
    made = colour(OF["student_logprob"], [-0.0, -4.0, -2.0], "")
    assert made.levels == [0, LEVELS, 16]
    assert made.strong == -4.0


def test_two_hues_meet_at_zero() -> None:
    made = colour(OF["advantage"], [-0.5, 0.0, 0.5], "", least_end=1.0)
    assert made.levels == [-SIDE // 2, 0, SIDE // 2]
    classes = [css_class(OF["advantage"], level) for level in made.levels]
    assert classes == ["n8", "p0", "p8"]


def test_two_hues_meet_at_one_where_a_factor_changes_nothing() -> None:
    made = colour(OF["credit"], [0.9, 1.0, 1.05, 1.1], "")
    assert made.levels == [-SIDE, 0, SIDE // 2, SIDE]
    assert (made.pale, made.strong, made.extreme) == (1.0, pytest.approx(1.1), None)
    far = colour(OF["credit"], [1.0] + [1.1] * 98 + [0.5], "")
    assert far.extreme == 0.5 and far.levels[0] == 0


def test_one_outlier_does_not_leave_the_others_pale() -> None:
    made = colour(OF["jsd"], [0.1] * 99 + [10.0], "")
    assert made.levels == [LEVELS] * 100
    assert made.extreme == 10.0


def test_what_is_missing_has_no_colour_and_a_reason() -> None:
    made = colour(OF["weight"], [None, nan, inf], "no teacher")
    assert made.levels == [None] * 3 and made.missing == "no teacher"
    assert css_class(OF["weight"], None) == "hx"
    some = colour(OF["weight"], [None, 1.0], "no teacher")
    assert some.levels == [None, LEVELS] and some.missing == ""


def test_all_equal_to_zero_is_pale() -> None:
    assert colour(OF["share"], [0.0, 0.0], "").levels == [0, 0]


def test_the_first_layer_that_tells_tokens_apart_is_shown() -> None:
    def of(key: str, values: list[float | None]) -> Layer:
        return colour(OF[key], values, "")

    nothing, equal = of("teacher_entropy", [None, None]), of("advantage", [1.0, 1.0])
    differing = of("student_logprob", [-1.0, -2.0])
    assert first_shown([nothing, equal, differing]) == "student_logprob"
    assert first_shown([nothing, equal]) == "advantage"
    assert first_shown([nothing]) == "teacher_entropy"
