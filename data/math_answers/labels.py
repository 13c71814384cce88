"""Words with a number that is part of their name: June 20, Step 2."""

from data.math_answers.answers import Text
from data.math_answers.lexing import Token
from data.math_answers.literals import words

_MONTHS = words(
    """
    january february march april may june july august september october november december
    """
)
_LABELS = words(
    """
    case day equation figure grade graph group line number option player problem quadrant question
    room row statement step team
    """
)


def label(tokens: list[Token]) -> Text | None:
    """Return a day of the year, or a word with its number such as Step 2, as a text."""
    if len(tokens) != 2:
        return None
    word, number = tokens if tokens[1].kind == "number" else reversed(tokens)
    if word.kind not in ("word", "text") or number.number is None or not number.number.plain:
        return None
    name = word.text.casefold()
    if name in _MONTHS or (name in _LABELS and word is tokens[0]):
        return Text(f"{name} {number.number.plain}")
    return None
