"""Chains: a number and five or seven calculations on it, one after the other, in a fixed format.

Idea: each step is short and easy to get wrong, and all must be right. A step can be written at once
or in parts; parts take more tokens and go wrong less often. So a policy has something to find out,
the length of its answers means something, and an early mistake leaves most of an answer without
value.

    level-1    five steps, one in eleven a product
    level-1p   five steps, one in four a product
    level-2    seven steps, one in five a product

`data.path` names the level. No file is read: candidate n of a level is drawn from a hash of both,
the same on every machine and in every Python version. A hash of the question decides whether it
belongs to train or test.
"""

import hashlib
import json
from collections.abc import Iterator
from itertools import count, islice
from typing import NamedTuple

from data.word_problems import verify
from data.word_stories.tale import Draws
from pipeline.errors import DataError
from pipeline.task import Message, Question, Split

__all__ = ["VERIFIER", "load", "verify"]
"""The parts of a task."""

VERIFIER = "chains/1"

SYSTEM = "Work in steps."
TRAIN_QUESTIONS = 4096
TEST_QUESTIONS = 256
TEST_SHARE = 16
"""One in so many questions belongs to test."""
LARGEST = 999
"""No result is larger, and none is below 1."""


class Level(NamedTuple):
    """How many steps a chain has, and which operators are drawn, by frequency."""

    steps: int
    operators: str


LEVELS = {
    "level-1": Level(5, "++++---*"),
    "level-1p": Level(5, "++-***"),
    "level-2": Level(7, "++-***"),
}


class Step(NamedTuple):
    """One calculation: the number before it, the operator, the other number."""

    left: int
    operator: str
    right: int

    @property
    def result(self) -> int:
        """The right result."""
        left, right = self.left, self.right
        return {"+": left + right, "-": left - right, "*": left * right}[self.operator]

    @property
    def at_once(self) -> str:
        """The calculation in one: `85 + 38 = 123`."""
        return f"{self.left} {self.operator} {self.right} = {self.result}"

    @property
    def in_parts(self) -> str:
        """The calculation by tens and units: `85 + 30 = 115, 115 + 8 = 123`."""
        if self.operator == "*":
            first, second = (Step(n, "*", self.right) for n in _parts(self.left))
            parts = [first, second, Step(first.result, "+", second.result)]
        else:
            tens, units = _parts(self.right)
            first = Step(self.left, self.operator, tens)
            parts = [first, Step(first.result, self.operator, units)]
        return ", ".join(part.at_once for part in parts)

    @property
    def has_parts(self) -> bool:
        """Whether there is anything to take apart."""
        return all(_parts(self.left if self.operator == "*" else self.right))


def _parts(number: int) -> tuple[int, int]:
    """Return a number's tens, hundreds included, and its units."""
    return number - number % 10, number % 10


class Problem(NamedTuple):
    """A chain of calculations; the last result answers it."""

    name: str
    steps: tuple[Step, ...]

    @property
    def text(self) -> str:
        """The question as the user asks it."""
        parts = [f"{step.operator} {step.right}" for step in self.steps]
        return f"Start with {self.steps[0].left}, " + ", ".join(parts)

    @property
    def answer(self) -> int:
        """The right result."""
        return self.steps[-1].result

    @property
    def split(self) -> Split:
        """Where the question belongs."""
        digest = hashlib.sha256(self.text.encode()).digest()
        return "test" if digest[0] % TEST_SHARE == 0 else "train"


def candidate(level: str, number: int) -> Problem:
    """Return candidate `number` of a level."""
    draws, (length, operators) = Draws("chains", level, number), LEVELS[level]
    steps: list[Step] = []
    value = draws.between(11, 99)
    while len(steps) < length:
        operator = draws.of(operators)
        right = draws.between(2, 9) if operator == "*" else draws.between(11, 99)
        step = Step(value, operator, right)
        if not 0 < step.result <= LARGEST:
            # From a large number a product leads out of range, from a small one a difference.
            step = Step(value, "-" if value > LARGEST // 2 else "+", draws.between(11, 99))
        steps.append(step)
        value = step.result
    return Problem(f"{level}-{number}", tuple(steps))


def problems(level: str) -> Iterator[Problem]:
    """Yield the problems of a level without end, each once."""
    seen = set()
    for number in count():
        problem = candidate(level, number)
        if problem.text not in seen:
            seen.add(problem.text)
            yield problem


def worked(problem: Problem, wording: int) -> str:
    """Return a worked solution, a line for each step; other wordings are drawn independently.

    Half of the steps that have parts are taken apart.
    """
    draws = Draws("worked", problem.name, wording)
    lines = [s.in_parts if s.has_parts and draws.below(2) else s.at_once for s in problem.steps]
    return "\n".join([*lines, f"<answer>{problem.answer}</answer>"])


def question(problem: Problem) -> Question:
    """Return a problem as the pipeline's question."""
    return Question(
        prompt_id=problem.name,
        messages=(Message("system", SYSTEM), Message("user", problem.text)),
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
    level = next(iter(LEVELS)) if path is None else path
    if level not in LEVELS:
        raise DataError(
            f"data.path is {level}, but task chains reads no files: there it is the level, one of "
            f"{', '.join(LEVELS)}"
        )
    size = TEST_QUESTIONS if split == "test" else TRAIN_QUESTIONS
    return [question(p) for p in islice((p for p in problems(level) if p.split == split), size)]
