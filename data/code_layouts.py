"""Rows of the three usual benchmarks of code, and what their tests become.

    HumanEval       task_id, prompt (signature and docstring), entry_point, canonical_solution, test
    MBPP            task_id, text or prompt, code, test_list, test_setup_code or test_imports
    LiveCodeBench   question_id, question_content, starter_code, public_test_cases,
                    private_test_cases, metadata

A row's tests are the reference that `judging.py` reads: a JSON object with `functions`, the names
that a response must define, and one of

    tests    code with assertions, `names` in it that stand for the response's functions, `setup`
             that runs before it where the tests run, `preamble` that runs before the response
    cases    lists of arguments and a value
    inputs   texts that a whole program reads, and what it has to print

Nothing of a row runs here.
"""

import ast
import base64
import binascii
import builtins
import json
import pickletools
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

from data.code_tests.assertions import names_called
from data.code_tests.extraction import before
from data.row import Row
from pipeline.errors import RowError

MOST_TESTS_MB = 64
"""All tests of a row, unpacked."""

_TESTS = "public_test_cases"
_ANSWER = "Answer with the code in one block: ```python … ```"
# What the benchmark's judge imports before a solution; builtins last, since math has a pow.
_LIVE_PREAMBLE = "\n".join(
    f"from {module} import *"
    for module in (
        *("typing", "collections", "itertools", "functools", "heapq", "bisect", "string", "math"),
        *("operator", "random", "re", "builtins"),
    )
)
_LIVE_PREAMBLE += "\nimport collections, itertools, functools, heapq, bisect, string, math"
_LIVE_PREAMBLE += "\nimport operator, random, re, sys\n"
_TEXT_OPCODES = {"BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE"}
_OTHER_OPCODES = {"PROTO", "FRAME", "MEMOIZE", "BINPUT", "LONG_BINPUT", "PUT", "STOP"}


def usual_fields(row: Row) -> Row:
    """Return a row with dataset, idx and prompt, its tests as `answer`, and its `solution`.

    Raises:
        RowError: it is of no layout that is known, or can't be used.
    """
    fields = row.fields
    if "canonical_solution" in fields:
        own = _human_eval(row)
    elif "test_list" in fields:
        own = _mbpp(row)
    elif _TESTS in fields:
        own = _live_code_bench(row)
    else:
        raise RowError(
            f"{row.place}: expected a row of HumanEval (canonical_solution), MBPP (test_list) or "
            f"LiveCodeBench ({_TESTS}); its fields are {', '.join(map(str, fields)) or 'none'}"
        )
    return replace(row, fields=own)


def _human_eval(row: Row) -> dict[str, object]:
    prompt, solution = _text(row, "prompt"), _text(row, "canonical_solution")
    entry, tests = _text(row, "entry_point"), f"{_text(row, 'test')}\n\ncheck(candidate)\n"
    gold = prompt + solution
    _expect_code(row, "prompt and canonical_solution are", gold)
    _expect_asserts(row, tests)
    try:
        preamble = before(gold, entry)
    except ValueError as error:
        raise RowError(f"{row.place}: {error}") from error
    dataset, _, index = _text(row, "task_id").rpartition("/")
    return {
        "dataset": dataset or "HumanEval",
        "idx": index,
        "prompt": f"Complete this Python function. {_ANSWER}\n\n{_block(prompt)}",
        "solution": _block(gold),
        "answer": {
            "functions": [entry],
            "prompt": prompt,
            "preamble": preamble,
            "setup": gold,  # its helpers, and the function that some tests compare with
            "names": {"candidate": entry},
            "tests": tests,
        },
    }


def _mbpp(row: Row) -> dict[str, object]:
    task = _text(row, "text" if "text" in row.fields else "prompt")
    gold, lines = _text(row, "code"), row.fields["test_list"]
    if not (isinstance(lines, list) and lines and all(isinstance(line, str) for line in lines)):
        raise RowError(f"{row.place}: test_list is not a list of texts")
    setup = "\n".join(_setup(row))
    tests = "\n".join(lines)
    _expect_asserts(row, tests)
    _expect_code(row, "its setup is", setup)
    body = _expect_code(row, "code is", gold)
    functions = {node.name for node in body if isinstance(node, ast.FunctionDef)}
    called = names_called(f"{setup}\n{tests}")
    others = (called - functions | names_called(setup)) - set(vars(builtins))
    called &= functions
    if others or not called:
        raise RowError(
            f"{row.place}: its tests use {', '.join(sorted(others)) or 'nothing'} of the code, "
            "expected functions that take and return plain data: objects of its classes don't "
            "leave its process"
        )
    return {
        "dataset": "mbpp",
        "idx": row.fields.get("task_id"),
        "prompt": f"{task}\n\nThe code must pass these tests:\n\n{_block(tests)}\n\n{_ANSWER}",
        "solution": _block(gold),
        "answer": {
            "functions": sorted(called),
            "setup": setup,
            "names": {name: name for name in sorted(called)},
            "tests": tests,
        },
    }


def _setup(row: Row) -> Iterator[str]:
    """Yield what a row of MBPP has run before its tests."""
    for name in ("test_setup_code", "test_imports"):
        found = row.fields.get(name) or ""
        for line in found if isinstance(found, list) else [found]:
            if not isinstance(line, str):
                raise RowError(f"{row.place}: {name} is no code")
            yield line.replace("\r\n", "\n")


def _live_code_bench(row: Row) -> dict[str, object]:
    task, starter = _text(row, "question_content"), row.fields.get("starter_code") or ""
    cases = [*_cases(row, _TESTS), *_cases(row, "private_test_cases")]
    kinds = {case.get("testtype") for case in cases}
    answer: dict[str, object]
    if kinds == {"stdin"}:
        how = "Write a Python program that reads standard input and prints the answer."
        pairs = [[_string(row, case, "input"), _string(row, case, "output")] for case in cases]
        answer = {"functions": [], "preamble": _LIVE_PREAMBLE, "inputs": pairs}
    elif kinds == {"functional"}:
        if not isinstance(starter, str) or not starter.strip():
            raise RowError(f"{row.place}: there is no starter_code for its function")
        how = f"Complete this code:\n\n{_block(starter)}\n"
        name = _function(row)
        answer = {
            "functions": [f"Solution.{name}" if "class Solution" in starter else name],
            "preamble": _LIVE_PREAMBLE,
            "cases": [_values(row, case) for case in cases],
        }
    else:
        found = ", ".join(sorted(map(str, kinds))) or "none"
        raise RowError(f"{row.place}: its tests are {found}, expected stdin or functional ones")
    return {
        "dataset": "livecodebench",
        "idx": row.fields.get("question_id"),
        "prompt": f"{task}\n\n{how}\n{_ANSWER}",
        "solution": None,
        "answer": answer,
    }


def _cases(row: Row, field: str) -> list[dict[str, object]]:
    """Return the tests of a field: a JSON text, or one that is packed."""
    found = row.fields.get(field) or "[]"
    try:
        if isinstance(found, str):
            found = json.loads(found if found.lstrip()[:1] == "[" else _unpacked(found))
    except (ValueError, RecursionError, zlib.error) as error:
        raise RowError(f"{row.place}: {field} can't be read: {error}") from error
    if not isinstance(found, list) or not all(isinstance(case, dict) for case in found):
        raise RowError(f"{row.place}: {field} is not a list of tests")
    return found


def _unpacked(text: str) -> str:
    """Return the text in base64 of zlib of a pickle, of which nothing is run.

    Raises:
        ValueError, zlib.error: it isn't one, or too long.
    """
    try:
        packed = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"neither JSON nor base64 ({error})") from error
    stream = zlib.decompressobj()
    pickled = stream.decompress(packed, MOST_TESTS_MB << 20)
    if stream.unconsumed_tail:
        raise ValueError(f"more than {MOST_TESTS_MB} MB")
    found = []
    for opcode, argument, _ in pickletools.genops(pickled):
        if opcode.name in _TEXT_OPCODES:
            found.append(str(argument))
        elif opcode.name not in _OTHER_OPCODES:
            raise ValueError(f"its pickle does {opcode.name}, expected one text")
    if len(found) != 1:
        raise ValueError("its pickle is not one text")
    return found[0]


def _values(row: Row, case: dict[str, object]) -> list[object]:
    """Return the arguments of a functional test, a JSON value in each line, and its value."""
    try:
        arguments = [json.loads(line) for line in _string(row, case, "input").splitlines()]
        return [arguments, json.loads(_string(row, case, "output"))]
    except (ValueError, RecursionError) as error:
        raise RowError(f"{row.place}: a test is not in JSON: {error}") from error


def _function(row: Row) -> str:
    """Return the name of the function that functional tests call."""
    found = row.fields.get("metadata")
    try:
        metadata = json.loads(found) if isinstance(found, str) else found
    except (ValueError, RecursionError):
        metadata = None
    name = metadata.get("func_name") if isinstance(metadata, dict) else None
    if not isinstance(name, str) or not name.isidentifier():
        raise RowError(f"{row.place}: its metadata name no function (func_name)")
    return name


def _string(row: Row, case: dict[str, object], field: str) -> str:
    value = case.get(field)
    if not isinstance(value, str):
        raise RowError(f"{row.place}: a test has no text as its {field}")
    return value


def _text(row: Row, field: str) -> str:
    value = row.fields.get(field)
    if not isinstance(value, str) or not value.strip():
        raise RowError(f"{row.place}: {field} is missing, expected a text")
    return value.replace("\r\n", "\n")


def _expect_code(row: Row, what: str, code: str) -> Sequence[ast.stmt]:
    """Return the statements of code."""
    try:
        return ast.parse(code).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise RowError(f"{row.place}: {what} no Python: {error}") from error


def _expect_asserts(row: Row, tests: str) -> None:
    """Refuse tests that assert nothing, which any response would pass."""
    body = _expect_code(row, "its tests are", tests)
    if not any(isinstance(node, ast.Assert) for top in body for node in ast.walk(top)):
        raise RowError(f"{row.place}: its tests assert nothing")


def _block(code: str) -> str:
    return f"```python\n{code.strip(chr(10))}\n```"
