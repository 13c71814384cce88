"""The demo's task: sums and differences of two-digit numbers, answered in a fixed format.

Idea: the four kinds of question differ in the one step a careless pupil gets wrong.

    plain   21 + 47, 68 - 25   nothing to forget
    carry   47 + 38            forget the carry
    borrow  82 - 47            take the smaller digit from the larger one instead of borrowing
    negate  31 - 58            turn the numbers round and forget the minus sign

There is no file to read: the questions are enumerated, and a hash of each question, the same on
every machine and in every Python version, decides its place and so its split.
"""

import hashlib
import json
import re
from typing import Literal, NamedTuple

from pipeline.task import Message, Question, Split, Verdict

VERIFIER = "arithmetic/1"

SYSTEM = "Work in steps."
TRAIN_QUESTIONS = 2048
TEST_QUESTIONS = 128

Kind = Literal["plain", "carry", "borrow", "negate"]
# One turn of the round by which kinds are mixed, in training and test alike.
ROUND: tuple[Kind, ...] = (
    "plain",
    "carry",
    "borrow",
    "negate",
    "carry",
    "borrow",
    "plain",
    "negate",
)

_FORM = re.compile(r"\s*<reasoning>(.+)</reasoning>\s*<answer>([^<>]+)</answer>\s*", re.DOTALL)
_TAG = re.compile(r"</?(?:reasoning|answer)>")
_INTEGER = re.compile(r"[+-]?[0-9]{1,9}")


class Problem(NamedTuple):
    """Two numbers in 10..99 and what to do with them."""

    left: int
    operator: Literal["+", "-"]
    right: int

    @property
    def text(self) -> str:
        """The question as the user asks it."""
        return f"What is {self.left} {self.operator} {self.right}?"

    @property
    def answer(self) -> int:
        """The right result."""
        return self.left + self.right if self.operator == "+" else self.left - self.right

    @property
    def kind(self) -> Kind:
        """The step in which this problem invites a slip."""
        if self.operator == "+":
            return "carry" if self.left % 10 + self.right % 10 > 9 else "plain"
        if self.left < self.right:
            return "negate"
        return "borrow" if self.left % 10 < self.right % 10 else "plain"


def problems() -> list[Problem]:
    """Return every problem of the task once, in an order that looks random but never changes.

    A negate problem never needs a borrow as well, so that each problem invites one slip at most.
    """
    numbers = range(10, 100)
    every = [Problem(a, "+", b) for a in numbers for b in numbers]
    every += [Problem(a, "-", b) for a in numbers for b in numbers if a >= b or b % 10 >= a % 10]
    return sorted(every, key=lambda problem: hashlib.sha256(problem.text.encode()).digest())


def _mixed(pool: list[Problem], count: int) -> list[Problem]:
    """Return the first `count` problems of the pool's kinds, taken in the order of `ROUND`."""
    queues = {kind: iter([p for p in pool if p.kind == kind]) for kind in ROUND}
    return [next(queues[ROUND[i % len(ROUND)]]) for i in range(count)]


def split_problems(split: Split) -> list[Problem]:
    """Return a split's problems: the test's come first in the order, the training's after them."""
    mixed = _mixed(problems(), TEST_QUESTIONS + TRAIN_QUESTIONS)
    return mixed[:TEST_QUESTIONS] if split == "test" else mixed[TEST_QUESTIONS:]


def question(problem: Problem) -> Question:
    """Return a problem as the pipeline's question."""
    return Question(
        prompt_id=f"{problem.left}{problem.operator}{problem.right}",
        messages=(Message("system", SYSTEM), Message("user", problem.text)),
        reference=json.dumps(str(problem.answer)),
    )


def load(path: str | None, split: Split) -> list[Question]:
    """Return a split's questions. There is no file behind this task: `path` is ignored."""
    del path
    return [question(problem) for problem in split_problems(split)]


def _has_form(response: str) -> bool:
    """Say whether a response is one reasoning block and one answer block and nothing else."""
    form = _FORM.fullmatch(response)
    return form is not None and _TAG.search(form.group(1)) is None


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
