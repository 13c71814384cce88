"""Two texts side by side, with what differs marked; bounded in time however long they are."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher

MOST_WORDS, MOST_LINES = 4000, 4000
"""Longer texts are compared by lines; with more lines than that, not at all."""
_WORDS = re.compile(r"\w+|[^\S\n]+|\n|[^\w\s]")
_LINES = re.compile(r"[^\n]*\n|[^\n]+")


@dataclass(frozen=True)
class Passage:
    """A stretch of one text; `differs`: the other has something else here, or nothing."""

    text: str
    differs: bool


@dataclass(frozen=True)
class Sides:
    """The two texts in parts; `note` says how they were compared, if not word by word."""

    left: list[Passage]
    right: list[Passage]
    note: str


def side_by_side(left: str, right: str) -> Sides:
    """Mark what differs: by words, by lines where texts are long, or not at all."""
    for pattern, most, note in (
        (_WORDS, MOST_WORDS, ""),
        (_LINES, MOST_LINES, "Long texts: compared by lines."),
    ):
        ours, theirs = pattern.findall(left), pattern.findall(right)
        if max(len(ours), len(theirs)) <= most:
            return Sides(*_marked(ours, theirs), note)
    return Sides([Passage(left, False)], [Passage(right, False)], "Too long to compare.")


def _marked(ours: list[str], theirs: list[str]) -> tuple[list[Passage], list[Passage]]:
    left: list[Passage] = []
    right: list[Passage] = []
    for same, mine, other in _stretches(ours, theirs):
        if mine:
            left.append(Passage("".join(mine), not same))
        if other:
            right.append(Passage("".join(other), not same))
    return left, right


def _stretches(ours: list[str], theirs: list[str]) -> Iterator[tuple[bool, list[str], list[str]]]:
    for tag, a, b, c, d in SequenceMatcher(None, ours, theirs).get_opcodes():
        yield tag == "equal", ours[a:b], theirs[c:d]
