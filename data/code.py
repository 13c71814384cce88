"""Code: a function or a program in Python, run against tests; right when all of them pass.

Rows are those of HumanEval, MBPP or LiveCodeBench (data/code_layouts.py). The code of a
response is its last fenced block of Python, or all of it. It runs in a confined process of its own
that never sees what the tests expect (data/code_tests). The feedback names the first call that
went wrong, what it did, and what was expected.
"""

import json

from data.code_layouts import usual_fields
from data.code_tests import judging
from data.rows import Row, load_questions
from pipeline.task import Question, Split, Verdict

VERIFIER = "code/1"


def load(path: str | None, split: Split) -> list[Question]:
    """Return a split's questions in file order; a row whose tests can't be run is an error."""
    return load_questions(path, split, "code", _reference, usual_fields, _solution)


def _reference(row: Row) -> str:
    """Return a row's tests as JSON text."""
    return json.dumps(row.fields["answer"])


def _solution(row: Row) -> str | None:
    """Return the benchmark's own solution, where it has one."""
    return None if row.fields["solution"] is None else str(row.fields["solution"])


def verify(response: str, reference: str) -> Verdict:
    """Judge the code of a response; reward 1.0 if it passes all tests.

    Args:
        response: what the policy wrote; any text at all.
        reference: the tests as JSON text, as `load` writes them.
    """
    return judging.judge(response, reference, share=False)


def hint(response: str, reference: str) -> str | None:
    """Return the feedback on a response without what its tests expect; it is not run again."""
    return judging.hint(response, reference, share=False)
