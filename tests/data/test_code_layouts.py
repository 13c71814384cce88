"""Rows of HumanEval, MBPP and LiveCodeBench: what is asked, what is tested, what is refused."""

import base64
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data import code, code_share
from data.code_layouts import MOST_TESTS_MB
from pipeline.task import BadRows, Question
from tests.data.conftest import Writer

HUMAN_EVAL = {
    "task_id": "HumanEval/7",
    "prompt": "from math import inf\n\ndef half(x):\n    return x / 2\n\ndef f(x: int) -> int:\n"
    '    """Double."""\n',
    "entry_point": "f",
    "canonical_solution": "    return 2 * x\n",
    "test": "def check(candidate):\n    for x in range(9):\n        assert half(candidate(x)) == x",
}
MBPP = {
    "task_id": 601,
    "text": "Write a function to add.",
    "code": "def helper(x):\r\n    return x\r\ndef add(a, b):\r\n    return helper(a) + b",
    "test_list": ["assert add(1, 2) == 3", "assert math.isclose(add(0.1, 0.2), 0.3)"],
    "test_setup_code": "import math\r\nlimit = 3",
    "challenge_test_list": [],
}
SOLUTION = "class Solution:\n    def add(self, xs: List[int], y: int) -> int:\n        "
FUNCTIONAL = {
    "question_id": "lc-1",
    "question_content": "Add all.",
    "starter_code": SOLUTION,
    "public_test_cases": json.dumps(
        [{"input": "[1, 2]\n3", "output": "6", "testtype": "functional"}]
    ),
    "private_test_cases": json.dumps(
        [{"input": "[]\n-1", "output": "-1", "testtype": "functional"}]
    ),
    "metadata": json.dumps({"func_name": "add"}),
}
HIDDEN = [{"input": "3\n", "output": "6\n", "testtype": "stdin"}]


def pickled(*texts: str) -> bytes:
    """What pickle.dumps gives of a text, or of several as a tuple."""
    parts = [b"X" + len(text.encode()).to_bytes(4, "little") + text.encode() for text in texts]
    return b"\x80\x04" + (parts[0] if len(parts) == 1 else b"(" + b"".join(parts) + b"t") + b"."


def packed(data: bytes) -> str:
    """Hidden tests as the benchmark has them."""
    return base64.b64encode(zlib.compress(data)).decode()


STDIN = {
    "question_id": "abc301_a",
    "question_content": "Double.",
    "starter_code": "",
    "public_test_cases": json.dumps([{"input": "2", "output": "4", "testtype": "stdin"}]),
    "private_test_cases": packed(pickled(json.dumps(HIDDEN))),
    "metadata": "{}",
}

Load = Callable[[dict[str, Any]], Question]


@pytest.fixture
def load(write: Writer, tmp_path: Path) -> Load:
    """Returns the question of a row."""

    def first(row: dict[str, Any]) -> Question:
        write([row], "test.jsonl")
        (question,) = code.load(str(tmp_path), "test")
        assert code_share.load(str(tmp_path), "test") == [question]
        return question

    return first


def test_a_row_of_humaneval(load: Load) -> None:
    question = load(HUMAN_EVAL)
    assert question.prompt_id == "HumanEval-7"
    assert question.messages[0].content == (
        "Complete this Python function. Answer with the code in one block: ```python … ```\n\n"
        f"```python\n{HUMAN_EVAL['prompt'].strip()}\n```"
    )
    assert question.solution is not None
    for response in (question.solution, "    return x + x", "def f(x): return 2 * x if inf else 0"):
        assert code.verify(response, question.reference).reward == 1.0
    verdict = code.verify("def f(x): return half(x)", question.reference)
    assert verdict.feedback == (
        "f(1) returned 0.5, expected half(f(x)) == 1 (its left side is 0.25)."
    )
    # A response's own helper is nothing that the tests use.
    assert code.verify("def half(x): return 0\ndef f(x): return 0", question.reference).reward == 0


def test_a_row_of_mbpp(load: Load) -> None:
    question = load(MBPP)
    assert question.prompt_id == "mbpp-601"
    assert question.messages[0].content == (
        "Write a function to add.\n\nThe code must pass these tests:\n\n```python\n"
        "assert add(1, 2) == 3\nassert math.isclose(add(0.1, 0.2), 0.3)\n```\n\n"
        "Answer with the code in one block: ```python … ```"
    )
    assert question.solution is not None
    assert code.verify(question.solution, question.reference).reward == 1.0
    verdict = code.verify("def add(a, b): return a - b", question.reference)
    assert verdict.feedback == "add(1, 2) returned -1, expected 3."
    verdict = code.verify("def add(a, b): return int(a + b)", question.reference)
    assert verdict.feedback == (
        "add(0.1, 0.2) returned 0, expected that math.isclose(add(0.1, 0.2), 0.3) holds."
    )
    sanitized = {**MBPP, "prompt": MBPP["text"], "test_imports": ["import math"]}
    del sanitized["text"], sanitized["test_setup_code"]
    assert load(sanitized).messages == question.messages


def test_a_functional_row_of_livecodebench(load: Load) -> None:
    question = load(FUNCTIONAL)
    assert question.prompt_id == "livecodebench-lc-1"
    assert f"Complete this code:\n\n```python\n{SOLUTION}\n```" in question.messages[0].content
    assert question.solution is None
    assert code.verify(f"{SOLUTION}return sum(xs, y)", question.reference).reward == 1.0
    verdict = code.verify(f"{SOLUTION}return max(xs) + y", question.reference)
    assert verdict.feedback == "add([1, 2], 3) returned 5, expected 6."
    plain = load({**FUNCTIONAL, "starter_code": "def add(xs, y):\n    "})
    verdict = code.verify("def add(xs, y): return reduce(operator.add, xs, y)", plain.reference)
    assert verdict.reward == 1.0


def test_a_row_of_livecodebench_that_reads_and_prints(load: Load) -> None:
    question = load(STDIN)
    assert question.messages[0].content == (
        "Double.\n\nWrite a Python program that reads standard input and prints the answer.\n"
        "Answer with the code in one block: ```python … ```"
    )
    assert code.verify("print(2 * int(input()))", question.reference).reward == 1.0
    verdict = code.verify("print(4)", question.reference)
    assert verdict.feedback == "The program, reading '3\\n', printed '4\\n', expected '6\\n'."
    assert code_share.verify("print(4)", question.reference).reward == 0.5


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"prompt": "x", "answer": "y"},
            "expected a row of HumanEval (canonical_solution), MBPP",
        ),
        ({**HUMAN_EVAL, "entry_point": "g"}, "its prompt does not define g"),
        ({**HUMAN_EVAL, "test": None}, "test is missing, expected a text"),
        ({**HUMAN_EVAL, "test": "def check(f): assert True ="}, "its tests are no Python: inv"),
        ({**HUMAN_EVAL, "test": "def check(candidate): candidate(1)"}, "its tests assert nothing"),
        ({**HUMAN_EVAL, "canonical_solution": "return ("}, "prompt and canonical_solution are no"),
        ({**MBPP, "test_list": []}, "test_list is not a list of texts"),
        ({**MBPP, "test_list": ["add(1, 2)"]}, "its tests assert nothing"),
        ({**MBPP, "test_list": ["assert Pair(1) == 2"]}, "its tests use Pair of the code, expe"),
        ({**MBPP, "test_list": ["assert 1 == 1"]}, "its tests use nothing of the code, expected"),
        ({**MBPP, "test_setup_code": "root = Node(1)"}, "its tests use Node of the code, expec"),
        ({**MBPP, "test_setup_code": 3}, "test_setup_code is no code"),
        ({**STDIN, "public_test_cases": "[]", "private_test_cases": ""}, "tests are none, expec"),
        ({**STDIN, "private_test_cases": "!"}, "private_test_cases can't be read: neither JSON"),
        ({**STDIN, "private_test_cases": "AAAA"}, "private_test_cases can't be read: Error -3"),
        (
            {**STDIN, "private_test_cases": packed(b"cos\nsystem\n(S'true'\ntR.")},
            "its pickle does GLOBAL, expected one text",
        ),
        ({**STDIN, "private_test_cases": packed(pickled("[]", "[]"))}, "its pickle does MARK"),
        ({**STDIN, "private_test_cases": packed(b"\x80\x04.")}, "its pickle is not one text"),
        (
            {**STDIN, "private_test_cases": packed(bytes((MOST_TESTS_MB << 20) + 1))},
            f"can't be read: more than {MOST_TESTS_MB} MB",
        ),
        ({**STDIN, "public_test_cases": "[1]"}, "public_test_cases is not a list of tests"),
        (
            {**STDIN, "public_test_cases": FUNCTIONAL["public_test_cases"]},
            "its tests are functional, stdin, expected stdin or functional ones",
        ),
        ({**FUNCTIONAL, "starter_code": ""}, "there is no starter_code for its function"),
        ({**FUNCTIONAL, "metadata": "{}"}, "its metadata name no function (func_name)"),
        (
            {**FUNCTIONAL, "public_test_cases": '[{"testtype": "functional", "input": "x"}]'},
            "a test is not in JSON",
        ),
        ({**STDIN, "public_test_cases": '[{"testtype": "stdin"}]'}, "no text as its input"),
    ],
)
def test_rows_that_can_not_be_used(
    row: dict[str, Any], message: str, write: Writer, tmp_path: Path
) -> None:
    write([row, STDIN | {"question_id": "good"}], "train.jsonl")
    with pytest.raises(BadRows) as found:
        code.load(str(tmp_path), "train")
    assert message in str(found.value) and "train.jsonl, row 1: " in str(found.value)
    assert [question.prompt_id for question in found.value.questions] == ["livecodebench-good"]
