"""Word problems: short stories about numbers, solved in two to four steps, in a fixed format.

Idea: a problem is a chain of calculations that is told (`data/word_stories`), so its worked
solution is a line for each step, and no result is negative or a fraction.

    level-1   two steps, most numbers below 30
    level-2   three steps, most numbers below 100
    level-3   four steps, sums and products of some hundreds

`data.path` names the level. No file is read: candidate n of a level is drawn from a hash of both,
the same on every machine and in every Python version. A hash of what is calculated, names and
things apart, decides whether it belongs to train or test, and only the first candidate with the
same calculations is kept: no test problem is a training problem retold.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from itertools import count, islice
from typing import NamedTuple

from data.word_stories.stories import STORIES
from data.word_stories.tale import Draws, Step, Tale, Unfit
from pipeline.errors import DataError
from pipeline.task import Message, Question, Split, Verdict

VERIFIER = "word_problems/1"

SYSTEM = (
    "Solve the problem in steps, one calculation per line. "
    "End with the result as <answer>number</answer>."
)
LEVELS = ("level-1", "level-2", "level-3")
TRAIN_QUESTIONS = 4096
TEST_QUESTIONS = 256
TEST_SHARE = 16
"""One in so many calculations belongs to test."""

_INTEGER = re.compile(r"[+-]?[0-9]{1,9}")


class Problem(NamedTuple):
    """A story and its calculations; the last result answers it."""

    name: str
    story: str
    steps: tuple[Step, ...]

    @property
    def answer(self) -> int:
        """The right result."""
        return self.steps[-1].result

    @property
    def calculations(self) -> str:
        """What is calculated, however it is told."""
        return "; ".join(step.text for step in self.steps)

    @property
    def split(self) -> Split:
        """Where the calculations belong."""
        digest = hashlib.sha256(self.calculations.encode()).digest()
        return "test" if digest[0] % TEST_SHARE == 0 else "train"


def candidate(level: str, number: int) -> Problem | None:
    """Return candidate `number` of a level; None: what was drawn makes no problem."""
    draws = Draws("word_problems", level, number)
    tale = Tale(LEVELS.index(level), draws)
    try:
        draws.of(STORIES)(tale)
    except Unfit:
        return None
    return Problem(f"{level}-{number}", " ".join(tale.sentences), tuple(tale.steps))


def problems(level: str) -> Iterator[Problem]:
    """Yield the problems of a level without end, each with calculations of its own."""
    seen = set()
    for number in count():
        problem = candidate(level, number)
        if problem is not None and problem.calculations not in seen:
            seen.add(problem.calculations)
            yield problem


_FIRST, _THEN, _LAST = ("first", "to begin"), ("then", "next"), ("so", "finally")
_FORMS = (
    "{counts}: {text}",
    "{text} {counts}.",
    "{opening} {text}.",
    "{opening} {text} {counts}.",
)


def worked(problem: Problem, wording: int) -> str:
    """Return a worked solution, a line for each step; other wordings are drawn independently."""
    draws, lines = Draws("worked", problem.name, wording), []
    form, last = draws.of(_FORMS), len(problem.steps) - 1
    for place, step in enumerate(problem.steps):
        opening = draws.of(_FIRST if place == 0 else _LAST if place == last else _THEN)
        line = form.format(text=step.text, counts=step.counts, opening=opening)
        lines.append(line[0].upper() + line[1:])
    return "\n".join([*lines, f"<answer>{problem.answer}</answer>"])


def question(problem: Problem) -> Question:
    """Return a problem as the pipeline's question."""
    return Question(
        prompt_id=problem.name,
        messages=(Message("system", SYSTEM), Message("user", problem.story)),
        reference=json.dumps(str(problem.answer)),
        solution=worked(problem, 0),
        demonstration=worked(problem, 1),
    )


def load(path: str | None, split: Split) -> list[Question]:
    """Return a split's questions.

    Args:
        path: the level; not given: the first.

    Raises:
        DataError: there is no such level.
    """
    level = LEVELS[0] if path is None else path
    if level not in LEVELS:
        raise DataError(
            f"data.path is {level}, but task word_problems reads no files: there it is the level, "
            f"one of {', '.join(LEVELS)}"
        )
    size = TEST_QUESTIONS if split == "test" else TRAIN_QUESTIONS
    return [question(p) for p in islice((p for p in problems(level) if p.split == split), size)]


def _has_form(response: str) -> bool:
    """Say whether a response is some reasoning, then one answer with a whole number."""
    reasoning, opening, rest = response.partition("<answer>")
    answer, closing, after = rest.partition("</answer>")
    return (
        bool(opening and closing and reasoning.strip())
        and "</answer>" not in reasoning
        and _INTEGER.fullmatch(answer.strip()) is not None
        and not after.strip()
    )


def _last_answer(response: str) -> str | None:
    """Return the text of the last `<answer>…</answer>`, found in linear time, or None."""
    end = response.rfind("</answer>")
    start = response.rfind("<answer>", 0, max(end, 0))
    return None if start < 0 else response[start + len("<answer>") : end].strip()


def verify(response: str, reference: str) -> Verdict:
    """Judge a response by the last `<answer>…</answer>` in it; reward 1.0 for the right integer.

    Args:
        response: what the policy wrote; any text at all.
        reference: the gold answer, a JSON text that holds a string such as `"85"`.
    """
    format_ok = _has_form(response)
    prediction = _last_answer(response)
    if prediction is None:
        return Verdict(0.0, format_ok, feedback="There is no <answer>…</answer>.")
    if _INTEGER.fullmatch(prediction) is None:
        return Verdict(0.0, format_ok, prediction, feedback="The answer is not a whole number.")
    if int(prediction) == int(json.loads(reference)):
        return Verdict(1.0, format_ok, prediction)
    return Verdict(0.0, format_ok, prediction, feedback=f"{prediction} is not the result.")
