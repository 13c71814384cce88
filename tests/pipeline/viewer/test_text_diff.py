"""Two texts side by side: what is marked, and that length costs no time."""

import time

from pipeline.viewer.text_diff import MOST_WORDS, Passage, side_by_side


def test_differing_words_are_marked_on_both_sides() -> None:
    found = side_by_side("so 7 - 4 = 2.", "so 7 - 4 = 3.")
    assert found.left == [Passage("so 7 - 4 = ", False), Passage("2", True), Passage(".", False)]
    assert found.right == [Passage("so 7 - 4 = ", False), Passage("3", True), Passage(".", False)]
    assert found.note == ""


def test_nothing_is_lost() -> None:
    left, right = "a  b\n\nc\td é ж ✓", "a b\nc x"
    found = side_by_side(left, right)
    assert "".join(part.text for part in found.left) == left
    assert "".join(part.text for part in found.right) == right


def test_one_side_may_be_empty() -> None:
    found = side_by_side("", "all of it")
    assert found.left == [] and found.right == [Passage("all of it", True)]


def test_long_texts_are_compared_by_lines() -> None:
    lines = ["one two three four five"] * MOST_WORDS
    found = side_by_side("\n".join(lines[:2000]), "\n".join(["other", *lines[:1999]]))
    assert found.note == "Long texts: compared by lines."
    assert found.right[0] == Passage("other\n", True)


def test_texts_of_100_000_characters_cost_no_second() -> None:
    begun = time.perf_counter()
    for pair in (("x" * 100_000, "x " * 50_000), ("a\n" * 50_000, "b\n" * 50_000)):
        assert "".join(part.text for part in side_by_side(*pair).left) == pair[0]
    assert time.perf_counter() - begun < 1
    assert side_by_side(*pair).note == "Too long to compare."
