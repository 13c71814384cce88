"""Integrals, sums, products and limits: left to math-verify, as far as it reads them whole.

Its LaTeX parser stops where it understands no more, and its clean-up drops what it takes for units
or words. So it gets nothing with words in it, no clean-up is made, and the parser must have reached
the end of the text. What it makes of the two texts is compared by its `verify`.
"""

import logging
import re
from typing import Any

from latex2sympy2_extended.latex2sympy2 import _Latex2Sympy
from math_verify import verify

from data.math_answers.lexing import Lexer, with_braces
from data.math_answers.literals import Unreadable

# It warns that its time limits are off; the pool of the verifiers has its own.
logging.getLogger("math_verify").setLevel(logging.ERROR)

_FRACTION = re.compile(r"\\[dtc]frac(?![A-Za-z])")
_SPACING = re.compile(r"\\(?:[,;:! ]|limits(?![A-Za-z])|left(?![A-Za-z])|right(?![A-Za-z]))|~")
DECIMALS = 12
"""Decimal places to which numbers are compared."""


def same_by_calculus(gold: str, answer: str, seconds: int | None = None) -> bool:
    """Say whether two texts are the same to math-verify.

    Args:
        gold: the one.
        answer: the other.
        seconds: they are not the same if computing takes longer; needs the main thread.

    Raises:
        Unreadable: it can't read one of them to its end.
    """
    return bool(
        verify(
            _expression(gold), _expression(answer), float_rounding=DECIMALS, timeout_seconds=None
        )
    )


def _expression(text: str) -> Any:
    """Return what math-verify's parser makes of a text."""
    plain = _SPACING.sub(" ", _FRACTION.sub(r"\\frac", with_braces(text)))
    for token in Lexer(plain).run():
        if token.kind == "text" or (token.kind == "word" and len(token.text) > 4):
            raise Unreadable(f"the word {token.text} beside an integral, sum or limit")
        if token.kind == "number" and token.number is not None and token.number.base != 10:
            raise Unreadable("a number with a base beside an integral, sum or limit")
        if token.text in ("~", "...", ":", "%", "deg", "'"):
            raise Unreadable(f"{token.text!r} beside an integral, sum or limit")
    try:
        reader = _Latex2Sympy(is_real=True)
        parser = reader.create_parser(plain)
        parser.math()
        if parser.getCurrentToken().type != -1:
            raise Unreadable("an integral, sum or limit that math-verify reads in part")
        return reader.parse(plain)
    except RecursionError:
        raise
    except Exception as error:
        # Its parser raises bare Exceptions, and what sympy makes of a formula may raise anything.
        if isinstance(error, Unreadable):
            raise
        raise Unreadable("an integral, sum or limit that math-verify can't read") from error
