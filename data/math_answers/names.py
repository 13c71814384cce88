"""Left sides of answers: what names a value, as x, f(x), x_1, P(A), \\angle ABC or Area do."""

import re

from data.math_answers.expressions import CALCULUS, FUNCTIONS, GREEK
from data.math_answers.lexing import Token

_COMMANDS = GREEK | {"overline", "vec", "hat", "tilde", "angle", "triangle", "measuredangle"}
_FUNCTIONS = frozenset("fghFGHPE")
"""Letters that are applied to sums and not multiplied with them."""
_DERIVATIVE = re.compile(r"frac { (d[A-Za-z]) } { (d[A-Za-z]) }|(d[A-Za-z]) / (d[A-Za-z])")
_OPEN, _CLOSE = ("(", "{"), (")", "}")


def name_of(tokens: list[Token]) -> str | None:
    """Return the name that tokens make, in one spelling; None: they make none.

    Numbers stand in indices and arguments only (x_1, f(2)), signs in the inverse of a function.
    """
    if (derivative := _DERIVATIVE.fullmatch(" ".join(token.text for token in tokens))) is not None:
        return "/".join(group for group in derivative.groups() if group)
    if len(tokens) == 3 and (tokens[0].text, tokens[2].text) in (("|", "|"), ("|(", ")|")):
        length = tokens[1].text
        return f"|{length}|" if len(length) > 1 and length.isupper() else None
    if any(_is_product(tokens, position) for position in range(1, len(tokens))):
        return None
    parts: list[str] = []
    depth = 0
    letters = False
    for position, token in enumerate(tokens):
        before = tokens[position - 1] if position else None
        if token.kind == "mark":
            if token.text in _OPEN:
                depth += 1
            elif token.text in _CLOSE:
                depth -= 1
            elif token.text == "^":
                if [t.text for t in tokens[position : position + 5]] != ["^", "{", "-", "1", "}"]:
                    return None
            elif token.text not in ("_", "'") and depth == 0:
                return None
        elif token.kind == "number":
            if depth == 0 and (before is None or before.text != "_"):
                return None
        elif token.kind == "command":
            if token.text not in _COMMANDS:
                return None
            letters = True
        elif token.text in FUNCTIONS or token.text in CALCULUS:
            return None
        else:
            letters = True
            if parts and before is not None and before.kind in ("word", "text"):
                parts.append(" ")
        if not (token.kind == "mark" and token.text in ("{", "}")):
            parts.append(token.text)
    name = "".join(parts)
    if not letters or depth or (name.startswith("(") and "," not in name):
        return None
    return name


def _is_product(tokens: list[Token], position: int) -> bool:
    """Say whether a bracket opens at a position that multiplies, as in x(x + 1), and not f(x)."""
    if tokens[position].text != "(" or tokens[position - 1].text in _FUNCTIONS:
        return False
    inside = [token.text for token in tokens[position + 1 :]]
    end = inside.index(")") if ")" in inside else len(inside)
    return any(sign in inside[:end] for sign in ("+", "-", "*", "/", "^"))
