"""A word problem while it is drawn: its people, its sentences, and one calculation per step."""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

T = TypeVar("T")

LARGEST = 2000
"""No number in a problem is larger."""

_SHE = (
    *("Anna", "Clara", "Emma", "Grace", "Ida", "Kate", "Mia", "Olivia"),
    *("Rosa", "Tara", "Wendy", "Zoe", "Lena", "Nora", "Julia"),
)
_HE = (
    *("Ben", "David", "Felix", "Henry", "Jack", "Leo", "Noah", "Paul"),
    *("Sam", "Victor", "Adam", "Omar", "Hugo", "Theo", "Max"),
)


class Unfit(Exception):
    """What was drawn makes no problem: a number would be too small, too large or a fraction."""


class Step(NamedTuple):
    """One calculation, and what its result counts, as in `shells left`."""

    left: int
    operator: str
    right: int
    result: int
    counts: str

    @property
    def text(self) -> str:
        """The calculation as it is written: `24 - 9 = 15`."""
        return f"{self.left} {self.operator} {self.right} = {self.result}"


class Draws:
    """Choices that depend on a key and on nothing else: digits of one large hash.

    Python's own generators may draw differently in another version.
    """

    def __init__(self, *key: object) -> None:
        digest = hashlib.shake_256("/".join(map(str, key)).encode()).digest(128)
        self._rest = int.from_bytes(digest, "big")

    def below(self, count: int) -> int:
        """Return a number in 0 .. count - 1."""
        self._rest, drawn = divmod(self._rest, count)
        return drawn

    def of(self, choices: Sequence[T]) -> T:
        """Return one of several."""
        return choices[self.below(len(choices))]

    def two_of(self, choices: Sequence[T]) -> tuple[T, T]:
        """Return two different ones of several, in any order."""
        first = self.below(len(choices))
        second = (first + 1 + self.below(len(choices) - 1)) % len(choices)
        return choices[first], choices[second]

    def between(self, low: int, high: int) -> int:
        """Return a number in low .. high.

        Raises:
            Unfit: there is none.
        """
        if high < low:
            raise Unfit
        return low + self.below(high - low + 1)


class Tale:
    """A problem while it is drawn.

    Attributes:
        level: 0, 1 or 2; how many steps there are and how large numbers get.
        draws: where every choice comes from.
        sentences, steps: the story and its calculations so far.
    """

    def __init__(self, level: int, draws: Draws) -> None:
        self.level, self.draws = level, draws
        self.sentences: list[str] = []
        self.steps: list[Step] = []
        name, friend = draws.two_of(_SHE + _HE)
        she, her = ("she", "her") if name in _SHE else ("he", "his")
        self._words = {"name": name, "friend": friend, "she": she, "She": she.title(), "her": her}

    def count(self) -> int:
        """Return a number of things, as large as the level has them."""
        return self.draws.between(*((3, 25), (5, 30), (15, 80))[self.level])

    def few(self) -> int:
        """Return a number of groups, hours or days."""
        return self.draws.between(*((2, 4), (2, 5), (3, 8))[self.level])

    def some(self) -> int:
        """Return a number of things in a group, or a price."""
        return self.draws.between(*((2, 8), (3, 9), (4, 12))[self.level])

    def say(self, choices: Sequence[str], **blanks: object) -> None:
        """Add one of several sentences, with its blanks filled in."""
        self.sentences.append(self.draws.of(choices).format(**self._words, **blanks))

    def step(self, left: int, operator: str, right: int, counts: str) -> int:
        """Add a calculation; return its result.

        Raises:
            Unfit: the result is no positive whole number, or too large.
        """
        if min(left, right) < 1 or (operator == "/" and left % right):
            raise Unfit
        results = {"+": left + right, "-": left - right, "*": left * right, "/": left // right}
        result = results[operator]
        if not 0 < result <= LARGEST:
            raise Unfit
        self.steps.append(Step(left, operator, right, result, counts))
        return result
