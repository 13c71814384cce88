"""What a worked response shows by itself: whether it has an answer, which calculations are wrong.

Nothing but the response is looked at, so what is found says nothing of the gold answer.
"""

import re
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

MOST_TERMS = 20
"""Numbers on one side of a calculation: longer ones are not read, which bounds the search."""

_NUMBER = r"\$?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,15})(?:\.[0-9]{1,9})?"
_TIMES, _OVER = "*x×·", "/÷"
_SIGN = rf"[ \t]*[-+−{_TIMES}{_OVER}][ \t]*"
_SIDE = rf"{_NUMBER}(?:{_SIGN}{_NUMBER}){{0,{MOST_TERMS - 1}}}"
_WRITTEN = re.compile(
    rf"(?<![\w.,$])(?<![0-9]:){_SIDE}(?:[ \t]*=[ \t]*[-−]?{_SIDE})+(?![\w%^:]|[.,][0-9])"
)
_TERM = re.compile(rf"({_SIGN})?({_NUMBER})")
# What may stand before or behind if the calculation is whole: else it is part of a longer one.
_JOINED_BEFORE = re.compile(rf"[-+−{_TIMES}{_OVER}^=%][ \t]*$")
_JOINED_AFTER = re.compile(rf"[ \t]*(?:[-+−*×·{_OVER}^=]|x[ \t]*[0-9]|remainder|r[ \t.]*[0-9])")
_BULLET = re.compile(r"(?:^|\n)[ \t]*[-*+][ \t]+$")


class Calculation(NamedTuple):
    """One calculation of a response: as it is written, the result, whether its sides agree."""

    text: str
    result: Fraction
    holds: bool


def calculations(response: str) -> list[Calculation]:
    """Return the calculations such as `30 - 19 = 11` of a response, in order.

    Only what is plain is read: numbers, + - * / and =, on one line. Brackets, powers, units between
    the numbers and parts of longer formulas are left out.
    """
    return list(_read(response))


def _read(response: str) -> Iterator[Calculation]:
    for match in _WRITTEN.finditer(response):
        before = response[max(0, match.start() - 40) : match.start()]
        joined = _JOINED_BEFORE.search(before) and not _BULLET.search(before)
        if joined or _JOINED_AFTER.match(response, match.end()):
            continue
        sides = [side.strip() for side in match.group().split("=")]
        if all(_TERM.fullmatch(side) for side in sides):
            continue  # two numbers and nothing that was calculated
        try:
            values = [_value(side) for side in sides]
        except ZeroDivisionError:
            continue
        holds = all(_agree(values[0], v, side) for v, side in zip(values, sides, strict=True))
        yield Calculation(match.group(), values[-1], holds)


def _value(side: str) -> Fraction:
    """Return the value of numbers joined by + - * /, products first.

    Raises:
        ZeroDivisionError: something is divided by 0.
    """
    total = product = Fraction(0)
    for match in _TERM.finditer(side):
        sign, number = (match[1] or "+").strip(), Fraction(re.sub("[$,]", "", match[2]))
        if sign in _TIMES:
            product *= number
        elif sign in _OVER:
            product /= number
        else:
            total, product = total + product, number if sign == "+" else -number
    return total + product


def _agree(first: Fraction, value: Fraction, side: str) -> bool:
    """Say whether two sides are equal; a decimal may be the other one rounded or cut."""
    decimals = re.fullmatch(rf"[-−]?{_NUMBER}", side) and side.partition(".")[2]
    return abs(first - value) < Fraction(1, 10 ** len(decimals)) if decimals else first == value


def wrong_calculation(response: str) -> str | None:
    """Return a sentence about the first calculation whose sides differ; None: there is none."""
    wrong = next((made for made in calculations(response) if not made.holds), None)
    return None if wrong is None else f"In `{wrong.text}` the two sides differ."


def last_answer(response: str) -> str | None:
    """Return the text of the last `<answer>…</answer>`, found in linear time, or None."""
    end = response.rfind("</answer>")
    start = response.rfind("<answer>", 0, max(end, 0))
    return None if start < 0 else response[start + len("<answer>") : end].strip()


def missing_number(response: str) -> str | None:
    """Return a sentence about an answer that is missing or no whole number; None: it is one."""
    prediction = last_answer(response)
    if prediction is None:
        return "There is no <answer>…</answer>."
    if re.fullmatch(r"[+-]?[0-9]{1,9}", prediction) is None:
        return "The answer is not a whole number."
    return None
