"""Runs of tokens: brackets that match, and what separators outside of them take apart."""

from collections.abc import Callable

from data.math_answers.lexing import Token
from data.math_answers.literals import Unreadable

_OPEN = frozenset(("(", "[", "{", "set{", "<|", "|(", "floor(", "ceil("))
_CLOSE = frozenset((")", "]", "}", "}set", "|>", ")|", ")floor", ")ceil"))


def without_group(tokens: list[Token]) -> list[Token]:
    """Return tokens without the braces around all of them; those of a plain set become its own."""
    if len(tokens) < 2 or tokens[0].text != "{" or matching(tokens, 0) != len(tokens) - 1:
        return tokens
    inner = tokens[1:-1]
    if any(token.kind == "command" and token.text in ("over", "choose") for token in inner):
        return tokens  # TeX's operators need them
    bars = sum(is_mark(token, "|") for token in inner)
    if bars == 1 or any(is_mark(token, ",", ":", "mid") for token in inner):
        return [Token("mark", "set{"), *inner, Token("mark", "}set")]
    return without_group(inner)


def is_mark(token: Token, *texts: str) -> bool:
    """Say whether a token is one of these marks."""
    return token.kind == "mark" and token.text in texts


def _depth_change(token: Token) -> int:
    if token.kind == "mark":
        return (token.text in _OPEN) - (token.text in _CLOSE)
    if token.kind == "command":
        return token.text.startswith("begin:") - token.text.startswith("end:")
    return 0


def matching(tokens: list[Token], start: int) -> int:
    """Return where the bracket at a position closes, whatever its shape; -1: nowhere."""
    depth = 0
    for position in range(start, len(tokens)):
        depth += _depth_change(tokens[position])
        if depth == 0:
            return position
    return -1


def split(
    tokens: list[Token], separates: Callable[[Token], bool]
) -> tuple[list[list[Token]], list[Token]]:
    """Return the runs between separators outside of brackets, and the separators.

    Raises:
        Unreadable: brackets don't match.
    """
    runs: list[list[Token]] = [[]]
    separators: list[Token] = []
    depth = 0
    for token in tokens:
        depth += _depth_change(token)
        if depth < 0:
            raise Unreadable(f"{token.text!r} closes nothing")
        if depth == 0 and separates(token):
            separators.append(token)
            runs.append([])
        else:
            runs[-1].append(token)
    if depth:
        raise Unreadable("a bracket is not closed")
    return runs, separators


def with_usual_brackets(tokens: list[Token]) -> list[Token]:
    """Return tokens in which the open ends of ]0, 1[ are round brackets."""
    if not tokens or not (is_mark(tokens[0], "]") or is_mark(tokens[-1], "[")):
        return tokens
    out: list[Token] = []
    opened = False
    for token in tokens:
        if is_mark(token, "[", "]"):
            shape = token.text if (token.text == "[") != opened else "(" if not opened else ")"
            token = Token("mark", shape, token.spaced)
            opened = not opened
        out.append(token)
    return out


def with_union_signs(tokens: list[Token]) -> list[Token]:
    """Return tokens in which a letter U between two brackets is the sign of a union."""
    return [
        Token("mark", "∪")
        if token.text in ("U", "u")
        and 0 < i < len(tokens) - 1
        and tokens[i - 1].text in _CLOSE
        and tokens[i + 1].text in _OPEN
        else token
        for i, token in enumerate(tokens)
    ]
