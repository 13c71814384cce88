"""Gold answers: which can be judged by, and the verdict itself.

A gold answer is taken if it is the same as itself, if it is not the same with a digit changed, and
if nothing in it has two usual meanings. A part that the reader overlooked would show here, before
it could teach a policy anything.
"""

import re
from collections.abc import Iterator
from functools import lru_cache
from threading import current_thread, main_thread

from data.math_answers.calculus import same_by_calculus
from data.math_answers.equality import same
from data.math_answers.expressions import NeedsCalculus
from data.math_answers.literals import Unreadable
from data.math_answers.reader import Reading, read, unwrapped

LONGEST_GOLD = 500
"""Characters of a gold answer."""
GOLD_SECONDS = 5
MOST_CHANGES = 24
"""Digits of a gold answer that are changed, one at a time."""
_SIGNIFICANT = 12
"""Digits of a decimal of which each counts: what is beyond them may be the noise of a float."""
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?|\.[0-9]+")

_read = lru_cache(maxsize=256)(read)


def same_answers(gold: str, answer: str, seconds: int | None = None) -> bool:
    """Say whether an answer is the gold one.

    Args:
        gold: the gold answer.
        answer: the answer of a response.
        seconds: a limit on computer algebra, for where nothing else bounds it; main thread only.

    Raises:
        Unreadable: the answer, or the gold one, can't be read.
    """
    try:
        wanted: Reading = _read(gold)
    except NeedsCalculus:
        return same_by_calculus(unwrapped(gold), unwrapped(answer), seconds)
    try:
        return same(wanted.answer, read(answer).answer)
    except RecursionError as error:
        raise Unreadable("nested too deeply") from error


def check_gold(gold: str) -> None:
    """Raise `Unreadable` if answers can't be judged by a gold answer; its message says why."""
    if len(gold) > LONGEST_GOLD:
        raise Unreadable(f"longer than {LONGEST_GOLD} characters")
    try:
        doubts = _read(gold).doubts
    except NeedsCalculus:
        doubts = ()
    if doubts:
        raise Unreadable(doubts[0])
    if not same_answers(gold, gold, _gold_seconds()):
        raise Unreadable("it is not judged the same as itself")
    for others in changed(gold):
        if not any(_differs(gold, other) for other in others):
            raise Unreadable(f"{others[0]} would be right as well")


def _gold_seconds() -> int | None:
    """Return the limit of one comparison while gold answers are loaded: signals make it."""
    return GOLD_SECONDS if current_thread() is main_thread() else None


def _differs(gold: str, other: str) -> bool:
    """Say whether another text is judged wrong."""
    try:
        return not same_answers(gold, other, _gold_seconds())
    except Unreadable:
        return True


def changed(gold: str) -> Iterator[list[str]]:
    """Yield a gold answer with one digit changed: the first and the last of its numbers.

    Each comes with several other digits, since one of them may by chance mean the same: 5 over 3 is
    5 over 2.
    """
    places: list[int] = []
    for match in _NUMBER.finditer(gold):
        digits = [i for i in range(match.start(), match.end()) if gold[i] != "."]
        if "." in match.group():
            first = next((n for n, i in enumerate(digits) if gold[i] != "0"), 0)
            digits = digits[: first + _SIGNIFICANT]
        places += sorted({digits[0], digits[-1]})
    step = max(1, -(-len(places) // MOST_CHANGES))
    for place in places[::step]:
        others = [str((int(gold[place]) + shift) % 10) for shift in (1, 2, 5)]
        yield [gold[:place] + digit + gold[place + 1 :] for digit in others]
