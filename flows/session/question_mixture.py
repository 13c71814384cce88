"""Which task of a mixture each question of training comes from: exact shares, nothing drawn.

Idea: deal the questions of all steps out in one endless row. The next one is of the task that is
due first: among those that have had less than their share so far, the one with the smallest
(had + 1) / weight. This is Balinski and Young's quota method of apportionment: after any number of
questions, so after any step too, every task has had its exact share, rounded up or down. The row
repeats once every task has had a whole number for its weight, so any step is found from its number
alone.
"""

from collections.abc import Mapping
from fractions import Fraction
from math import gcd, lcm
from typing import NamedTuple


class Deal(NamedTuple):
    """A stretch of the row: the task of each question, and what each had before."""

    names: list[str]
    before: dict[str, int]


def deal(weights: Mapping[str, float], start: int, count: int) -> Deal:
    """Return the tasks of questions [start, start + count) of the row; of equals, the first.

    Weights count as they are written, so 0.1 is a tenth.
    """
    shares = _whole(weights)
    period, common = sum(shares.values()), lcm(*shares.values())
    pace = {name: common // share for name, share in shares.items()}
    had = {name: start // period * share for name, share in shares.items()}
    before: dict[str, int] = {}
    names = []
    for index in range(start - start % period, start + count):
        if index == start:
            before = dict(had)
        due = (name for name in shares if had[name] * period < shares[name] * (index + 1))
        chosen = min(due, key=lambda name: (had[name] + 1) * pace[name])
        had[chosen] += 1
        if index >= start:
            names.append(chosen)
    return Deal(names, before)


def _whole(weights: Mapping[str, float]) -> dict[str, int]:
    """Return the smallest whole numbers in the proportions of the weights."""
    exact = {name: Fraction(repr(weight)) for name, weight in weights.items()}
    factor = lcm(*(share.denominator for share in exact.values()))
    whole = {name: int(share * factor) for name, share in exact.items()}
    divisor = gcd(*whole.values())
    return {name: share // divisor for name, share in whole.items()}
