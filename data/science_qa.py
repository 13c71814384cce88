"""SciKnowEval, level 3: questions of chemistry, physics, biology and materials with four options.

The system turn of each row asks for `<reasoning>…</reasoning>`, then `<answer>…</answer>` with one
letter.

Scoring follows the published verifier (lasgroup/SDPO), which is strict: white space around the
letter is dropped, and what remains must equal the gold letter, so `A.`, `A: 2270.7` and `a` are
wrong. Two things differ from it:

    no complete <answer>…</answer>   always 0 (METHOD.md, section 10). The published code compares
                                     the whole response, or the text after an unclosed tag, so that
                                     a bare `A` is right.
    format_ok                        is true when the format is kept. The published field
                                     `incorrect_format` is inverted, and looks at the end only.
"""

import json

from data.rows import Row, gold_error, load_questions
from pipeline.task import Question, Split, Verdict

VERIFIER = "science_qa/1"
LETTERS = ("A", "B", "C", "D")

_TAGS = ("<reasoning>", "</reasoning>", "<answer>", "</answer>")


def load(path: str | None, split: Split) -> list[Question]:
    """Return a split's questions in file order; a gold answer other than A, B, C, D is an error."""
    return load_questions(path, split, "science_qa", _reference)


def _reference(row: Row) -> str:
    """Return a row's gold letter as JSON text."""
    answer = row.fields.get("answer")
    if answer not in LETTERS:
        raise gold_error(row, answer, "one of the letters A, B, C, D")
    return json.dumps(answer)


def last_answer(response: str) -> str | None:
    """Return the text of the last complete `<answer>…</answer>` without outer white space."""
    opening, closing = _TAGS[2:]
    start = response.rfind(opening, 0, max(response.rfind(closing), 0))
    if start < 0:
        return None
    start += len(opening)
    return response[start : response.find(closing, start)].strip()


def has_form(response: str) -> bool:
    """Say whether a response is one reasoning block, then one answer block with a single letter."""
    text = response.strip()
    if any(text.count(tag) != 1 for tag in _TAGS):
        return False
    reasoning, _, answer = text.partition("</reasoning>")
    answer = answer.strip()
    return (
        reasoning.startswith("<reasoning>")
        and bool(reasoning.removeprefix("<reasoning>").strip())
        and answer.startswith("<answer>")
        and answer.endswith("</answer>")
        and last_answer(answer) in LETTERS
    )


def verify(response: str, reference: str) -> Verdict:
    """Judge a response by its last `<answer>…</answer>`; reward 1.0 for exactly the gold letter.

    The feedback never says which letter is right.

    Args:
        response: what the policy wrote; any text at all.
        reference: the gold letter as JSON text, such as `"A"`.
    """
    gold, format_ok = json.loads(reference), has_form(response)
    prediction = last_answer(response)
    if prediction is None:
        return Verdict(0.0, format_ok, feedback="There is no <answer>…</answer>.")
    if prediction == gold:
        return Verdict(1.0, format_ok, prediction)
    if prediction not in LETTERS:
        feedback = "The answer must be a single letter, A, B, C or D, and nothing else."
        return Verdict(0.0, format_ok, prediction, feedback)
    return Verdict(0.0, format_ok, prediction, f"Option {prediction} is not the right one.")
