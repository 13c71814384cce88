"""Code: which part of a response runs, what its verdict is, and how feedback words it."""

import gzip
import json
from collections.abc import Sequence
from functools import cache
from pprint import pformat
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import code, code_share
from data.code_tests import process
from data.code_tests.extraction import NoCode, code_of, last_block
from data.code_tests.inside import written
from data.code_tests.judging import same_output
from data.code_tests.plain_data import decoded, literal
from data.registry import judge, open_task
from pipeline.task import Question, Verdict
from pipeline.verification.pool import VerifierPool
from tests.data.code_mutants import endless, operator_changed, return_removed
from tests.paths import DATASETS

HUMAN_EVAL = DATASETS / "humaneval" / "HumanEval.jsonl.gz"
needs_human_eval = pytest.mark.skipif(
    not HUMAN_EVAL.is_file(), reason=f"the benchmark is not at {HUMAN_EVAL}"
)


@cache
def human_eval() -> list[Question]:
    """All problems, in their order."""
    every = [*code.load(str(HUMAN_EVAL), "train"), *code.load(str(HUMAN_EVAL), "test")]
    return sorted(every, key=lambda question: int(question.prompt_id.rpartition("-")[2]))


def reference(tests: str, functions: Sequence[str] = ("f",), **others: object) -> str:
    """Tests that are code."""
    names = {name: name for name in functions}
    fields = {"functions": list(functions), "setup": "", "names": names, "tests": tests}
    return json.dumps({**fields, **others})


def said(response: str, tests: str, **others: Any) -> str | None:
    """The feedback of a response that is judged wrong, in form."""
    verdict = code.verify(response, reference(tests, **others))
    assert (verdict.reward, verdict.format_ok, verdict.error) == (0.0, True, None)
    return verdict.feedback


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("x = 1", "x = 1"),
        ("    return 1\n", "    return 1\n"),
        ("So:\n```python\nx = 1\n```\nthat is it", "x = 1\n"),
        ("```python\nx = 1\n```\nor\n```py\nx = 2\n```", "x = 2\n"),
        ("```\nx = 1\n```", "x = 1\n"),
        ("```python\nx = 1\n```\n```text\nthe output\n```", "x = 1\n"),
        ("```text\nnothing\n```", "```text\nnothing\n```"),
        ("```python\nx = 1", "x = 1"),
        ("~~~Python\nx = '''\n```\n'''\n~~~", "x = '''\n```\n'''\n"),
        ("````python\nx = 1\n```\n````", "x = 1\n```\n"),
    ],
)
def test_the_last_block_of_python_counts(response: str, expected: str) -> None:
    assert last_block(response) == expected


@pytest.mark.parametrize(
    "response",
    [
        "def f(x):\n    return x",
        "f = lambda x: x",
        "f: object = abs",
        "from math import sqrt as f",
        "try:\n    import numpy\nexcept ImportError:\n    def f(x): pass\nelse:\n    f = 1",
        "    return x",  # goes on with the prompt
    ],
)
def test_what_defines_the_function_is_code(response: str) -> None:
    assert code_of(response, ["f"], "def f(x):\n").endswith(response)


@pytest.mark.parametrize(
    ("response", "functions", "message"),
    [
        ("", ["f"], "There is no code."),
        ("```python\n\n```", ["f"], "There is no code."),
        ("I can't say.", ["f"], "The code is no valid Python: unterminated string literal "),
        ("x = (1", ["f"], "The code is no valid Python: '(' was never closed (line 1: x = (1)."),
        ("def g(x): pass", ["f"], "The code does not define f."),
        ("def g():\n    def f(x): pass", ["f"], "The code does not define f."),
        ("class Solution: pass", ["Solution.f"], "The code does not define Solution.f."),
        ("f = 1\0", ["f"], "The code is no valid Python: source code string cannot contain null "),
        ("x = 1 #" + "x" * 100_000, [], "The code is longer than 100,000 characters."),
        ("f = " + "-" * 90_000 + "1", ["f"], "The code can't be read as Python: "),
        ("(" * 1000, ["f"], "The code is no valid Python: too many nested parentheses"),
    ],
)
def test_what_holds_no_code_is_out_of_form(
    response: str, functions: list[str], message: str
) -> None:
    with pytest.raises(NoCode) as found:
        code_of(response, functions, "def f(x):\n")
    assert str(found.value).startswith(message)
    verdict = code.verify(response, reference("assert f(1)", functions))
    assert (verdict.reward, verdict.format_ok, verdict.feedback) == (0.0, False, str(found.value))


@settings(max_examples=50, deadline=None)
@given(st.text())
def test_any_text_gets_code_or_a_reason(text: str) -> None:
    try:
        assert code_of(text, [], "")
    except NoCode as reason:
        assert str(reason)


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.complex_numbers(allow_nan=False)
    | st.text()
    | st.binary()
    | st.binary().map(bytearray),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.sets(st.integers() | st.text() | st.tuples(st.integers()), max_size=3)
        | st.frozensets(st.integers(), max_size=3)
        | st.dictionaries(st.text() | st.integers() | st.tuples(st.text()), inner, max_size=3)
    ),
    max_leaves=10,
)


@given(plain)
def test_plain_data_come_back_equal_and_of_their_types(value: object) -> None:
    message = decoded(f'{{"value": {written(value)}}}'.encode())
    assert message is not None
    assert pformat(message["value"]) == pformat(value)  # which sorts sets
    assert message["value"] == value
    assert eval(literal(value), {"inf": float("inf")}) == value


class Liar(int):
    """A number that says it equals everything."""

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = int.__hash__

    def __repr__(self) -> str:
        return "7"


def test_subclasses_come_back_as_plain_data() -> None:
    message = decoded(f'{{"value": {written([Liar(3), True])}}}'.encode())
    assert message == {"value": [3, True]} and message["value"] != [7, True]


@pytest.mark.parametrize(
    "line",
    [
        "",
        "x",
        "1",
        "{}",
        '{"value": 1, "more": 2}',
        '{"value": {"set": [[1]]}}',
        '{"value": {"object": 1}}',
        '{"value": {"int": 3}}',
        '{"value": {"bytes": "0"}}',
        '{"value": {"dict": [1]}}',
        '{"value": {"complex": [1]}}',
        f'{{"value": {"[" * 200}{"]" * 200}}}',
        f'{{"value": {"[" * 100_000}{"]" * 100_000}}}',
    ],
)
def test_what_is_no_plain_data_is_no_reply(line: str) -> None:
    assert decoded(line.encode()) is None


@pytest.mark.parametrize(
    ("body", "tests", "feedback"),
    [
        ("return x + 1", "assert f(1) == 3", "f(1) returned 2, expected 3."),
        ("return x + 1", "assert 3 == f(1)", "f(1) returned 2, expected 3."),
        ("return x + 1", "assert f(x=1) < 2", "f(x=1) returned 2, expected a value < 2."),
        ("return None", "assert f([]) is True", "f([]) returned None, expected a value is True."),
        ("return x", "assert f('')", "f('') returned '', expected True."),
        ("return x", "assert not f('a')", "f('a') returned 'a', expected False."),
        (
            "return x",
            "assert abs(f(1.5) - 1) < 0.1",
            "f(1.5) returned 1.5, expected abs(f(1.5) - 1) < 0.1 (its left side is 0.5).",
        ),
        (
            "return None",
            "assert sorted(f(2)) == [2]",
            "f(2) returned None, on which its test raises TypeError: 'NoneType' object is not "
            "iterable.",
        ),
        (
            "return 1 // x",
            "y = 3\nfor x in (1, 0):\n    assert f(x) <= y",
            "f(0) raised ZeroDivisionError: integer division or modulo by zero (line 2: "
            "return 1 // x).",
        ),
        ("return 1", "assert f(1) == 1 and f(2) == 2", "that f(1) == 1 and f(2) == 2 holds."),
        ("return 'x' * 999", "assert f(1) == 2", "f(1) returned '" + "x" * 197 + " …, expected 2."),
        (
            "return (i for i in x)",
            "assert f([1])",
            "an object of type generator, which is no plain",
        ),
        ("return 10 ** 9999", "assert f(1) == 1", "returned a number too long to be written, exp"),
        ("return 'x' * 3_000_000", "assert f(1) == 1", "f(1) returned more than 2 MB."),
        ("y = []; y.append(y); return y", "assert f(1)", "f(1) returned data nested too deeply,"),
        ("raise KeyError('a\\nb')", "y = f(1)\nassert y", "f(1) raised KeyError: 'a\\nb' (line 2"),
    ],
)
def test_feedback_names_call_expected_and_got(body: str, tests: str, feedback: str) -> None:
    found = said(f"def f(x):\n    {body}", tests)
    assert found is not None and feedback in found and len(found) < 700
    assert found.startswith("f(")


def test_a_program_that_does_not_load_says_why() -> None:
    found = said("def f(x): return x\ny = g", "assert f(1) == 1")
    assert found == "The program raised NameError: name 'g' is not defined (line 2: y = g)."


def test_methods_are_called_on_a_new_object_each_time() -> None:
    solution = (
        "class Solution:\n    def __init__(self): self.n = 0\n"
        "    def add(self, x):\n        self.n += x\n        return self.n, [self.n]"
    )
    cases = [[[1], [1, [1]]], [[2], [2, [2]]], [[2], [3, [3]]]]
    gold = json.dumps({"functions": ["Solution.add"], "preamble": "", "cases": cases})
    verdict = code.verify(solution, gold)
    assert verdict.feedback == "add(2) returned (2, [2]), expected [3, [3]]."
    assert code_share.verify(solution, gold).reward == pytest.approx(2 / 3)


def test_the_share_counts_assertions_and_names_the_first_that_fails() -> None:
    tests = "assert True\nassert f(1) == 1\nassert f(2) == 9\nassert f(3) == 3\nassert f(4) == 0"
    verdict = code_share.verify("f = lambda x: x", reference(tests))
    assert (verdict.reward, verdict.feedback) == (0.5, "f(2) returned 2, expected 9.")
    assert code.verify("f = lambda x: x", reference(tests)).reward == 0.0
    # What ends the program ends it for the tests behind it, too.
    ends = "import os\ndef f(x): return x if x < 3 else os._exit(0)"
    assert code_share.verify(ends, reference(tests)).reward == 0.25
    assert code_share.verify("f = lambda x: x", reference("assert f(1) == 1")).reward == 1.0


def test_arguments_are_copies_and_random_tests_repeat() -> None:
    tests = "import random\nxs = [random.random()]\ny = f(xs)\nassert len(xs) == 1\nassert y == 0"
    first, second = (said("def f(x): return x.pop()", tests) for _ in range(2))
    assert first == second and first is not None and first.startswith("f([0.8")


def test_tests_that_can_not_run_are_an_error_of_theirs() -> None:
    with pytest.raises(NameError):
        code.verify("f = abs", reference("assert f(1)", setup="missing"))
    with pytest.raises(RuntimeError, match="the tests asserted nothing"):
        code.verify("f = abs", reference("for x in []:\n    assert f(x)"))


def programs(*pairs: tuple[str, str]) -> str:
    """Tests of a whole program."""
    return json.dumps({"functions": [], "preamble": "", "inputs": pairs})


@pytest.mark.parametrize(
    ("program", "feedback"),
    [
        ("print(sum(map(int, input().split())))", None),
        ("import sys\nfor line in sys.stdin:\n    print(float(sum(map(int, line.split()))))", None),
        ("print(sum(map(int, open(0).read().split())))\nexit()", None),
        (
            "import threading\nt = threading.Thread(target=lambda: "
            "print(sum(map(int, input().split()))))\nt.start()",
            None,
        ),
        ("print(3)", "The program, reading '2 5\\n', printed '3\\n', expected '7\\n'."),
        (
            "print(7)\nprint(input(), input())",
            "The program, reading '1 2\\n', raised EOFError: EOF when reading a line (line 2: "
            "print(input(), input())), expected '3\\n'.",
        ),
        ("while True: print('x' * 999)", "'1 2\\n', printed more than 2 MB, expected '3\\n'."),
        ("import os\nos.abort()", "reading '1 2\\n', ended its process (SIG"),
    ],
)
def test_programs_read_and_print(program: str, feedback: str | None) -> None:
    verdict = code.verify(program, programs(("1 2\n", "3\n"), ("2 5\n", "7\n")))
    if feedback is None:
        assert (verdict.reward, verdict.feedback) == (1.0, None)
    else:
        assert verdict.reward == 0.0 and feedback in str(verdict.feedback)
    if "print(3)" in program:
        assert code_share.verify(program, programs(("1 2", "3"), ("2 5", "7"))).reward == 0.5


@pytest.mark.parametrize(
    ("output", "expected", "same"),
    [
        ("1 2\n3", " 1 2 \n3\n\n", True),
        ("1.0", "1", True),
        ("1e1 2", "10.0 2.00", True),
        ("0.1", "0.10000001", False),
        ("1 2", "1\n2", False),
        ("yes", "Yes", False),
        ("nan", "NaN", False),
        ("sNaN", "sNaN 1", False),
        ("", "1", False),
    ],
)
def test_outputs_are_compared_by_lines_and_numbers(output: str, expected: str, same: bool) -> None:
    assert same_output(output, expected) is same


@needs_human_eval
@pytest.mark.parametrize("number", [0, 32, 33, 38, 53, 163])
def test_solutions_of_humaneval_are_right_in_each_layout(number: int) -> None:
    question = human_eval()[number]
    with gzip.open(HUMAN_EVAL, "rt") as file:
        row = json.loads(file.read().splitlines()[number])
    assert question.prompt_id == f"HumanEval-{number}"
    whole = row["prompt"] + row["canonical_solution"]
    # A completion alone; the function without imports and helpers, which the prompt has.
    alone = whole[whole.index(f"def {row['entry_point']}(") :]
    for response in (question.solution, whole, row["canonical_solution"], f"```\n{alone}```"):
        assert response is not None
        assert code.verify(response, question.reference) == Verdict(
            1.0, True, code_of(response, [row["entry_point"]], row["prompt"])
        )
    assert row["prompt"].strip("\n") in question.messages[0].content


@needs_human_eval
@pytest.mark.slow
def test_all_solutions_of_humaneval_are_right() -> None:
    questions = human_eval()
    pairs = [(str(question.solution), question.reference) for question in questions]
    with VerifierPool(judge, "code", 2, 10.0, 2048, prepare=open_task) as pool:
        verdicts = pool.verify(pairs)
        # Each one's solution says nothing about the next one's tests.
        others = [pairs[(i + 1) % 164][0] for i in range(164)]
        wrong = pool.verify([(o, r) for o, (_, r) in zip(others, pairs, strict=True)])
    assert [verdict.reward for verdict in verdicts] == [1.0] * 164
    assert {(verdict.reward, verdict.error) for verdict in wrong} == {(0.0, None)}


SURVIVORS = {("HumanEval-88", "operator"), ("HumanEval-124", "operator")} | {
    ("HumanEval-140", "operator"),
    ("HumanEval-157", "operator"),
}
"""Mutants that pass all tests of their problem."""


def surviving(questions: Sequence[Question]) -> tuple[set[tuple[str, str]], int]:
    """The mutants that don't fail with feedback that names the call, and the number of all."""
    survivors, number = set(), 0
    for question in questions:
        (name,) = json.loads(question.reference)["functions"]
        solution = last_block(str(question.solution))
        mutants = {
            "operator": operator_changed(solution, name, question.prompt_id),
            "return": return_removed(solution, name),
            "loop": endless(solution, name),
        }
        for kind, mutant in mutants.items():
            if mutant is None:
                continue
            verdict = code.verify(f"```python\n{mutant}\n```", question.reference)
            number += 1
            assert (verdict.error, verdict.format_ok) == (None, True)
            if verdict.reward > 0 or not str(verdict.feedback).startswith(f"{name}("):
                survivors.add((question.prompt_id, kind))
    return survivors, number


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits for loops that never end; solutions take some hundredths of a second."""
    monkeypatch.setattr(process, "PROCESSOR_SECONDS", 1)
    monkeypatch.setattr("data.code_tests.judging.VERDICT_SECONDS", 3.0)


@needs_human_eval
@pytest.mark.usefixtures("short")
def test_some_mutants_of_humaneval_are_wrong() -> None:
    assert surviving(human_eval()[5:160:60]) == (set(), 8)


@needs_human_eval
@pytest.mark.campaign
@pytest.mark.usefixtures("short")
def test_nearly_all_mutants_of_humaneval_are_wrong() -> None:
    survivors, number = surviving(human_eval())
    assert (survivors, number) == (SURVIVORS, 473)
    assert len(survivors) < 0.05 * number
