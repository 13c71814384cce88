"""How much of the gold answer a text tells: shares worked out by hand."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.gold_share import gold_share

CALL = json.dumps([{"Action": "getBook", "Action_Input": {"title": "War and Peace", "page": 3}}])
"""Three values: getBook, War and Peace, 3."""


@pytest.mark.parametrize(
    ("feedback", "reference", "prediction", "expected"),
    [
        ("5 is right.", '"5"', "7", 1.0),
        ("55 is right, or 5.5, or x5.", '"5"', "7", 0.0),  # whole tokens only
        ("7 is not the result.", '"5"', "7", 0.0),
        ("It is 5.", "5", "", 1.0),  # a JSON number
        ("It is 1200.5.", '"1,200.50"', "", 1.0),
        ("It is 007.", '"7"', "", 1.0),
        ("It is -27.", '"-27"', "27", 1.0),
        ("27 is not the result.", '"-27"', "27", 0.0),
        ("It is −27.", '"-27"', "27", 1.0),  # a minus sign
        ("In 30 -27 the sign is lost.", '"27"', "3", 0.0),
        ("In 30-27 the sign is lost.", '"27"', "3", 1.0),  # no sign behind a number
        ("It is +0 or -0.", '"0"', "", 1.0),
    ],
)
def test_numbers(feedback: str, reference: str, prediction: str, expected: float) -> None:
    assert gold_share(feedback, reference, prediction, "") == expected


@pytest.mark.parametrize(
    ("feedback", "prediction", "expected"),
    [
        ("It is A.", "C", 1.0),
        ("Option C is not the right one.", "C", 0.0),
        ("Give a single letter.", "C", 0.0),
        ("Give one of A, B, C or D.", "", 0.0),
        ("Give A/B/C.", "", 0.0),
        ("It is A or B.", "C", 1.0),  # two are no list of the choices
        ("It is A.", "A.", 0.0),  # the answer has it already
    ],
)
def test_options(feedback: str, prediction: str, expected: float) -> None:
    assert gold_share(feedback, '"A"', prediction, "") == expected


@pytest.mark.parametrize(
    ("feedback", "prediction", "expected"),
    [
        (f"Expected: {CALL}", "", 1.0),
        ("Every Action needs an Action_Input.", "", 0.0),  # keys are no answer
        ("Call getBook.", "", 1 / 3),
        ("Call GETBOOK with page 3.", "", 2 / 3),
        ("War and", "", 0.0),  # two of three words
        ("war, and peace!", "", 1 / 3),
        ("Call getBook with page 3.", '[{"Action": "getBook"}]', 1 / 2),  # two are missing
        ("Anything", CALL, 0.0),  # nothing is missing
    ],
)
def test_values_of_json(feedback: str, prediction: str, expected: float) -> None:
    assert gold_share(feedback, CALL, prediction, "") == pytest.approx(expected)


def test_a_long_value_counts_by_what_is_told_of_it() -> None:
    gold = json.dumps("one two three four five six seven eight")
    assert gold_share("two three four five, and seven eight", gold, "", "") == 4 / 8
    assert gold_share("one two", gold, "", "") == 0.0


def test_a_quotation_of_the_response_tells_nothing() -> None:
    response = "30 - 19 = 5 + 6, so 5"
    assert gold_share("In `5 + 6` there is a slip.", '"6"', "5", response) == 0.0
    assert gold_share("In 5 + 6 there is a slip.", '"6"', "5", response) == 1.0
    assert gold_share("It is `6`.", '"6"', "5", "16") == 1.0  # whole tokens there, too


def test_tests_are_no_answer() -> None:
    assert (
        gold_share("f(1) returned 3, expected 2.", '{"tests": "assert f(1) == 2"}', "", "") is None
    )
    assert gold_share("It is 2.", '{"value": 2}', "", "") == 1.0


def test_what_is_no_json_or_has_no_values() -> None:
    assert gold_share("It is Paris.", "Paris", "", "") == 1.0
    assert gold_share("It is null.", "null", "", "") == 0.0
    assert gold_share("It is {}.", "{}", "", "") == 0.0


@given(st.text(), st.text() | st.integers() | st.lists(st.text()), st.text(), st.text())
def test_it_is_a_share_whatever_the_texts(
    feedback: str, gold: object, prediction: str, response: str
) -> None:
    reference = json.dumps(gold)
    share = gold_share(feedback, reference, prediction, response)
    assert share is not None and 0.0 <= share <= 1.0
    assert gold_share("", reference, prediction, response) == 0.0
    shown = gold_share(reference, reference, "", "")
    assert shown in (0.0, 1.0) or isinstance(gold, list | str)
