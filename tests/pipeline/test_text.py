"""Texts that try to do something to a terminal come out as what they are."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.text import encodable, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, äöü €, 漢字, 🙂", "plain, äöü €, 漢字, 🙂"),
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("\x9b31m", "\\x9b31m"),
        ("a\u202eb\u2066c", "a\\u202eb\\u2066c"),
        ("zero\u200bwidth\ufeff", "zero\\u200bwidth\\ufeff"),
        ("lone \ud800 surrogate", "lone \\ud800 surrogate"),
        ("private \ue000", "private \\ue000"),
        ("tag \U000e0041", "tag \\ue0041"),
        ("a\nb\tc\rd\x00", "a\\nb\\tc\\rd\\x00"),
        ("[bold]no markup[/bold]", "[bold]no markup[/bold]"),
    ],
)
def test_what_acts_or_hides_is_spelled_out(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_line_ends_are_kept_on_request_and_carriage_returns_never() -> None:
    assert printable("a\n\tb\r", newlines=True) == "a\n\tb\\r"


def test_long_texts_are_cut_and_the_rest_counted() -> None:
    assert printable("x" * 100_000, 10) == "x" * 10 + "… (99,990 more characters)"
    assert printable("x" * 10, 10) == "x" * 10


@given(st.text(st.characters(exclude_categories=[]), max_size=50))
def test_no_character_that_acts_is_left(text: str) -> None:
    shown = printable(text)
    assert {unicodedata.category(c)[0] for c in shown} <= set("LMNPSZ")
    assert "\u2028" not in shown
    shown.encode("utf-8")


def test_lone_surrogates_can_be_encoded() -> None:
    assert encodable("a\ud800b").encode() == b"a?b"
    assert encodable("ä") == "ä"
