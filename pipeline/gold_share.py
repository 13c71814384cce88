"""How much of the gold answer a feedback text gives away: a number in [0, 1].

Feedback goes into the teacher's prompt. If it prints the answer, the student learns to copy one it
will never be shown.

    parts    the values of the gold answer (keys of JSON objects aside), as sequences of tokens:
             numbers and words. `1,200.50` is 1200.5, `-3` is one token, words are in lower case
    missing  the parts that the response's own answer does not hold already
    told     of such a part, the tokens in sequences of three that the feedback holds as well; a
             shorter part has to be there as a whole
    share    the mean over the missing parts of told tokens / tokens; 0 where nothing is missing

A single letter keeps its case, and the article `a` is left out, so that option `A` is none; a list
of three or more letters, as in `A, B, C or D`, names the choices and tells nothing. What stands
between backticks in the feedback and in the response as well is a quotation and tells nothing.

A reference that holds tests (of code) is no answer that could be copied: it has no share.

That the question holds a value excuses nothing: the options of a choice and the arguments of a call
nearly always stand there, and which of them is right is what feedback gives away.
"""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

RUN = 3
"""Tokens in a row that two texts hardly share by chance."""

Tokens = tuple[str, ...]

_NUMBER = r"(?<![\w)\]}.])[+-]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?!\w)"
_TOKEN = re.compile(rf"(?P<number>{_NUMBER})|\w+")
_CHOICES = re.compile(
    r"\b[A-Z]\b(?:(?:\s*,\s*(?:or\s+|and\s+)?|\s*/\s*|\s+(?:or|and)\s+)[A-Z]\b){2,}"
)
_QUOTED = re.compile(r"`([^`]+)`")


TESTS = ("tests", "cases", "inputs")
"""Keys of a reference that is no answer but what answers are tested by."""


def gold_share(feedback: str, reference: str, prediction: str, response: str) -> float | None:
    """Return which share of the gold answer, as far as the response lacks it, a feedback tells.

    None: the reference holds tests.

    Args:
        reference: the gold answer as JSON text.
        prediction: the answer of the response; empty: there is none.
    """
    try:
        gold = json.loads(reference)
    except (ValueError, RecursionError):
        gold = reference
    if isinstance(gold, dict) and any(key in gold for key in TESTS):
        return None
    own = _tokens(response)

    def unless_quoted(passage: re.Match[str]) -> str:
        return " ` " if _holds(own, _tokens(passage[1])) else passage[0]

    said = _tokens(_CHOICES.sub(" ", _QUOTED.sub(unless_quoted, feedback)))
    answered = _tokens(prediction)
    parts = dict.fromkeys(_tokens(value) for value in _values(gold))
    missing = [part for part in parts if part and not _holds(answered, part)]
    return sum(_told(part, said) for part in missing) / len(missing) if missing else 0.0


def _values(gold: Any) -> Iterator[str]:
    """Yield the values in a decoded JSON text as texts."""
    waiting = [gold]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
        elif value is not None:
            yield value if isinstance(value, str) else json.dumps(value)


def _tokens(text: str) -> Tokens:
    """Return numbers and words, each in the one form that equal ones share."""
    plain = text.replace("\N{MINUS SIGN}", "-")
    return tuple(_token(match) for match in _TOKEN.finditer(plain) if match.group() != "a")


def _token(match: re.Match[str]) -> str:
    if match["number"] is None:
        word = match.group()
        return word if len(word) == 1 else word.casefold()
    sign = "-" if match.group().startswith("-") else ""
    whole, point, decimals = match.group().lstrip("+-").replace(",", "").partition(".")
    decimals = decimals.rstrip("0")
    number = (whole.lstrip("0") or "0") + (point + decimals if decimals else "")
    return number if number == "0" else sign + number


def _windows(tokens: Sequence[str], size: int) -> list[Tokens]:
    """Return all sequences of so many tokens in a row."""
    return [tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1)]


def _holds(tokens: Tokens, part: Tokens) -> bool:
    """Say whether all of a part stands in a row among tokens; the empty part doesn't."""
    return bool(part) and part in _windows(tokens, len(part))


def _told(part: Tokens, said: Tokens) -> float:
    """Return the share of a part's tokens that stand in sequences which were said as well."""
    size = min(RUN, len(part))
    known = set(_windows(said, size))
    told = {
        place + offset
        for place, window in enumerate(_windows(part, size))
        if window in known
        for offset in range(size)
    }
    return len(told) / len(part)
