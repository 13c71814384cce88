"""Hints for mathematics: the form, the kind of the answer, then which written step is wrong."""

import json

from data.hints.calculations import wrong_calculation
from data.math_answers.answers import (
    Answer,
    Based,
    Clock,
    Collection,
    Domain,
    Expression,
    Interval,
    Matrix,
    Named,
    Quantity,
    Ratio,
    Relation,
    Text,
    Union,
    Without,
)
from data.math_answers.expressions import NeedsCalculus
from data.math_answers.finding import last_answer
from data.math_answers.literals import Unreadable
from data.math_answers.reader import read

_KINDS = (
    ("a number or a formula", (Expression, Quantity, Based, Ratio)),
    ("an interval, a list or a set", (Interval, Collection, Union, Without, Domain)),
    ("a time", (Clock,)),
    ("a matrix", (Matrix,)),
    ("an equation or an inequality", (Relation,)),
    ("text", (Text,)),
)
"""What an answer can be; `(0, 1)` is a pair and an interval, so these are of one kind."""


def hint(response: str, reference: str) -> str | None:
    """Return what is wrong with the form or kind of a wrong answer, or with its own working."""
    prediction = last_answer(response)
    if prediction is None:
        return "There is no answer in \\boxed{…} or <answer>…</answer>."
    try:
        found, wanted = _kind(read(prediction).answer), _kind(read(json.loads(reference)).answer)
    except NeedsCalculus:
        found = wanted = None
    except Unreadable:
        return "The answer can't be read as mathematics."
    if found != wanted and found is not None and wanted is not None:
        return f"The answer is {found}, but {wanted} is asked for."
    return wrong_calculation(response) or "The answer is wrong."


def _kind(answer: Answer) -> str | None:
    """Return what an answer is, in words; None: it may be of several kinds."""
    while isinstance(answer, Named):
        answer = answer.value
    if isinstance(answer, Text) and answer.node is not None:
        return None
    return next((words for words, kinds in _KINDS if isinstance(answer, kinds)), None)
