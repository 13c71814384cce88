"""Mathematics: a question and an answer in LaTeX or plain text, compared by what they mean.

The answer of a response is what stands last in it: the last complete box (`\\boxed{…}`,
`\\fbox{…}`, `\\boxed 42`) or the last `<answer>…</answer>`, whichever ends later. Text outside of
them is never searched for numbers, and no answer in any form is 0.

An answer is read as a whole or not at all (data/math_answers): one that can't be read is wrong. A
gold answer that can't be read, has two usual meanings, isn't judged the same as itself, or is with
one digit changed, is refused when it is loaded. docs/tasks.md says what can be read.
"""

import json
import math
from decimal import Decimal

from data.math_answers.finding import last_answer
from data.math_answers.golds import LONGEST_GOLD, check_gold, same_answers
from data.math_answers.literals import Unreadable
from data.rows import Row, WrittenFloat, gold_error, load_questions
from pipeline.task import Question, Split, Verdict

VERIFIER = "mathematics/2"


def load(path: str | None, split: Split) -> list[Question]:
    """Return a split's questions in file order; a gold answer that can't be used is an error."""
    return load_questions(path, split, "mathematics", _reference)


def _reference(row: Row) -> str:
    """Return a row's gold answer as JSON text."""
    found = row.fields.get("answer")
    answer = _text(found)
    if answer is None:
        raise gold_error(row, found, "a number, or LaTeX or plain text")
    try:
        check_gold(answer)
    except Unreadable as error:
        raise gold_error(
            row,
            found,
            f"LaTeX or plain text of at most {LONGEST_GOLD} characters with one meaning "
            f"(docs/tasks.md): {error}",
        ) from error
    return json.dumps(answer)


def _text(answer: object) -> str | None:
    """Return a gold answer as the text that it was written as; None: it is neither text nor number.

    Whole numbers have one spelling, and of decimals the reader of the file keeps it.
    """
    if isinstance(answer, str):
        return answer
    if isinstance(answer, WrittenFloat):
        return answer.text
    if isinstance(answer, bool) or not isinstance(answer, int | float | Decimal):
        return None
    if isinstance(answer, int):
        # Python writes no more than some thousand digits.
        return str(answer) if answer.bit_length() < 10_000 else None
    return str(answer) if math.isfinite(answer) else None


def verify(response: str, reference: str) -> Verdict:
    """Judge a response by its last answer; reward 1.0 if it is mathematically the gold one.

    Args:
        response: what the policy wrote; any text at all.
        reference: the gold answer as JSON text, such as `"\\\\frac{1}{2}"`.
    """
    prediction = last_answer(response)
    if prediction is None:
        feedback = "There is no answer in \\boxed{…} or <answer>…</answer>."
        return Verdict(0.0, format_ok=False, feedback=feedback)
    try:
        right = same_answers(json.loads(reference), prediction)
    except Unreadable as error:
        return Verdict(0.0, False, prediction, f"The answer can't be read as mathematics: {error}.")
    if right:
        return Verdict(1.0, True, prediction)
    return Verdict(0.0, True, prediction, "The answer is not right.")
