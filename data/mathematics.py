"""Mathematics: a question and an answer in LaTeX or plain text, compared by math-verify.

The answer of a response is what stands last in it: the last complete `\\boxed{…}` or the last
`<answer>…</answer>`, whichever ends later. Text outside of them is never searched for numbers, and
no answer in either form is 0. Gold answers are parsed when they are loaded: one that math-verify
can't read is an error there, never a question everybody passes.

math-verify limits its own time by signals, which work in main threads only and can't interrupt C;
they are switched off in verdicts, which `pipeline/verification.py` bounds. Gold answers are parsed
in the run's own process, so they must be short, and have the limit where there can be one.
"""

import json
import logging
import re
from threading import current_thread, main_thread

from math_verify import parse as parse_mathematics
from math_verify import verify as equivalent

from data.rows import Row, gold_error, load_questions
from pipeline.task import Question, Split, Verdict

VERIFIER = "mathematics/1"
LONGEST_GOLD = 500
"""Characters of a gold answer: time to parse one grows faster than its length."""
GOLD_SECONDS = 10

# It warns that its time limits are off, which is the intention.
logging.getLogger("math_verify").setLevel(logging.ERROR)

_BRACE = re.compile(r"(?P<box>\\boxed\s*\{)|\\.|[{}]", re.DOTALL)
_ANSWER = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL)


def load(path: str | None, split: Split) -> list[Question]:
    """Return a split's questions in file order; a gold answer that can't be parsed is an error."""
    return load_questions(path, split, "mathematics", _reference)


def _reference(row: Row) -> str:
    """Return a row's gold answer as JSON text."""
    answer = row.fields.get("answer")
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        answer = json.dumps(answer)
    if (
        not isinstance(answer, str)
        or len(answer) > LONGEST_GOLD
        or not _parse(answer, GOLD_SECONDS if current_thread() is main_thread() else None)
    ):
        raise gold_error(
            row,
            answer,
            f"LaTeX or plain text of at most {LONGEST_GOLD} characters that math-verify can parse",
        )
    return json.dumps(answer)


def _parse(text: str, seconds: int | None = None) -> list[object]:
    """Return what math-verify reads in an answer, empty if nothing, or not in so many seconds.

    The box makes it read the answer as a whole: outside of one it picks the 2 of `2^{10}`.
    """
    found: list[object] = parse_mathematics(
        f"\\boxed{{{text}}}", fallback_mode="no_fallback", parsing_timeout=seconds
    )
    return found


def last_boxed(response: str) -> tuple[int, str] | None:
    """Return where the last complete `\\boxed{…}` ends, and its content; `\\{` is no brace."""
    opened: list[int | None] = []
    last: tuple[int, str] | None = None
    for brace in _BRACE.finditer(response):
        if brace.group("box"):
            opened.append(brace.end())
        elif brace.group() == "{":
            opened.append(None)
        elif brace.group() == "}" and opened:
            start = opened.pop()
            if start is not None:
                last = brace.end(), response[start : brace.start()]
    return last


def last_answer(response: str) -> str | None:
    """Return the last answer of a response, in a box or in tags, without outer white space."""
    found = [(match.end(), match.group(1)) for match in _ANSWER.finditer(response)][-1:]
    boxed = last_boxed(response)
    if boxed is not None:
        found.append(boxed)
    return max(found)[1].strip() if found else None


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
    parsed = _parse(prediction)
    if not parsed:
        return Verdict(0.0, False, prediction, "The answer can't be read as mathematics.")
    if equivalent(_parse(json.loads(reference)), parsed, timeout_seconds=None):
        return Verdict(1.0, True, prediction)
    return Verdict(0.0, True, prediction, "The answer is not right.")
