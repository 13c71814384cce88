"""The demo's arithmetic made scarce: 64 training questions, with worked solutions."""

import json
from dataclasses import replace

from data import arithmetic
from data.demo.make_policy import worked
from pipeline.task import Question, Split, Verdict

VERIFIER = arithmetic.VERIFIER
TRAIN_QUESTIONS = 64


def load(path: str | None, split: Split) -> list[Question]:
    """Return the first training questions of the demo's task, or all test questions."""
    problems = arithmetic.split_problems(split)
    if split == "test":
        return [arithmetic.question(problem) for problem in problems]
    return [
        replace(arithmetic.question(problem), solution=worked(problem, slip=False))
        for problem in problems[:TRAIN_QUESTIONS]
    ]


def verify(response: str, reference: str) -> Verdict:
    """Judge as the demo's task does."""
    return arithmetic.verify(response, reference)


def gold(reference: str) -> str:
    """Return the answer alone."""
    return str(json.loads(reference))
