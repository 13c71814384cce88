"""Prompts that occur more than once: in training and in test, or several times in a split.

Idea: accuracy on a question that was trained on says little, and a question that stands twice in
training counts twice, so both are counted and warned of. Two prompts are equal if all their turns
are, apart from white space, marks of no width, and the ways in which Unicode may write one letter.
"""

import hashlib
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

from pipeline.task import Question

_NO_WIDTH = dict.fromkeys([0xAD, 0x200B, 0x2060, 0xFEFF])
"""Soft hyphen, zero-width space, word joiner, byte order mark: to be removed."""


class Repeat(NamedTuple):
    """A question and an earlier one, or one of training, with the same prompt."""

    again: Question
    first: Question

    @property
    def contradictory(self) -> bool:
        """Return whether their gold answers differ."""
        return self.again.reference != self.first.reference


def prompt_key(question: Question) -> bytes:
    """Return what equal prompts share: a digest, since texts may fill the memory."""
    turns = [
        (turn.role, " ".join(unicodedata.normalize("NFC", text).split()))
        for turn in question.messages
        for text in (turn.content.translate(_NO_WIDTH),)
    ]
    return hashlib.blake2b(repr(turns).encode(), digest_size=16).digest()


def keyed(questions: Sequence[Question]) -> list[tuple[bytes, Question]]:
    """Return questions behind the keys of their prompts."""
    return [(prompt_key(question), question) for question in questions]


def repeats_within(questions: Sequence[tuple[bytes, Question]]) -> list[Repeat]:
    """Return the questions whose prompt an earlier one has."""
    first: dict[bytes, Question] = {}
    pairs = [(question, first.setdefault(key, question)) for key, question in questions]
    return [Repeat(again, other) for again, other in pairs if again is not other]


def trained_on(
    test: Sequence[tuple[bytes, Question]], train: Sequence[tuple[bytes, Question]]
) -> list[Repeat]:
    """Return the test questions whose prompt is in training, with the first that has it there."""
    known = dict(reversed(train))
    return [Repeat(question, known[key]) for key, question in test if key in known]


def repeat_warnings(train: Sequence[Question], test: Sequence[Question]) -> list[str]:
    """Say how many prompts occur more than once, with an example."""
    found = []
    keys = {"train": keyed(train), "test": keyed(test)}
    if both := trained_on(keys["test"], keys["train"]):
        found.append(
            f"{len(both)} of {len(test)} questions of the test split have a prompt that is also in "
            f"train ({_example(both, 'test', 'train')}): accuracy counts what was trained on; "
            "data.drop_test_duplicates=true leaves them out"
        )
    for split, questions in keys.items():
        if twice := repeats_within(questions):
            found.append(
                f"{len(twice)} of {len(questions)} questions of the {split} split repeat the "
                f"prompt of an earlier one ({_example(twice, split, split)})"
            )
    return found


def _example(repeats: Sequence[Repeat], split: str, other: str) -> str:
    """Return the first pair, and how many have different gold answers."""
    again, first = repeats[0]
    text = f"first {_named(split, again)} = {_named(other, first)}"
    differing = sum(repeat.contradictory for repeat in repeats)
    return f"{text}; {differing} with another gold answer" if differing else text


def _named(split: str, question: Question) -> str:
    """Return a question's split and id; an id may have the split in it."""
    name = question.prompt_id
    return name if f"{split}/" in name else f"{split} {name}"
