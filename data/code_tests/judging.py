"""The verdict on a response by its tests, and the words of its feedback."""

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import Any

from data.code_tests.assertions import LONGEST_VALUE, Failure, Tests
from data.code_tests.extraction import NoCode, code_of
from data.code_tests.plain_data import shown
from data.code_tests.process import VERDICT_SECONDS, Failed, Killed, Program, printed
from pipeline.task import Verdict


def judge(response: str, reference: str, share: bool) -> Verdict:
    """Return the verdict on a response.

    Args:
        response: what the policy wrote; any text at all.
        reference: tests, as `data/code_layouts.py` writes them.
        share: the reward is the share of tests that pass; else 1.0 if all do, and the tests end
            with the first that fails.

    Raises:
        RuntimeError, TimeoutError: the response could not be judged.
    """
    return _judged(response, reference, share)[0]


def hint(response: str, reference: str, share: bool) -> str | None:
    """Return the feedback on a response without what was expected; None: all tests pass.

    Arguments and errors are those of `judge`.
    """
    return _judged(response, reference, share)[1]


@lru_cache(maxsize=1)  # the hint on a response is asked for when it has just been judged
def _judged(response: str, reference: str, share: bool) -> tuple[Verdict, str | None]:
    tests = json.loads(reference)
    try:
        code = code_of(response, tests["functions"], tests.get("prompt", ""))
    except NoCode as reason:
        return Verdict(0.0, format_ok=False, feedback=str(reason)), str(reason)
    number, failures = _outcome(tests, code, share)
    if number == 0:
        raise RuntimeError("the tests asserted nothing")
    if not failures:
        return Verdict(1.0, True, code), None
    first = failures[0]
    reward = (number - len(failures)) / number if share else 0.0
    return Verdict(reward, True, code, feedback(first)), f"{first.call} {first.happened}."


def _outcome(tests: dict[str, Any], code: str, share: bool) -> tuple[int, Sequence[Failure]]:
    """Return the number of tests that were made, and those that failed."""
    deadline = time.monotonic() + VERDICT_SECONDS
    # The system may kill a process that did nothing wrong: only a second time is it the response.
    for _ in range(2):
        with suppress(Killed):
            if "inputs" in tests:
                return _programs(tests["preamble"], code, tests["inputs"], deadline, share)
            return _functions(tests, code, deadline, share)
    return 1, [Failure("The program", "ended its process (SIGKILL)")]


def feedback(failure: Failure) -> str:
    """Return a failure in words."""
    expected = "" if failure.expected is None else f", expected {failure.expected}"
    return f"{failure.call} {failure.happened}{failure.reason}{expected}."


def _functions(
    tests: dict[str, Any], code: str, deadline: float, share: bool
) -> tuple[int, Sequence[Failure]]:
    """Return the number of assertions about a response's functions, and those that failed."""
    try:
        with Program(tests.get("preamble", ""), code, deadline) as program:
            run = Tests(program.call, share)
            if "cases" in tests:
                run.run_cases(tests["functions"][0], tests["cases"])
            else:
                run.run(tests["tests"], tests["setup"], tests["names"])
            return run.number, run.failures
    except Failed as failed:
        return 1, [Failure("The program", str(failed))]


def _programs(
    preamble: str, code: str, pairs: Sequence[tuple[str, str]], deadline: float, share: bool
) -> tuple[int, Sequence[Failure]]:
    """Return the number of inputs that a whole program was given, and where it failed."""
    failures: list[Failure] = []
    for number, (text, expected) in enumerate(pairs, start=1):
        call = f"The program, reading {shown(text, LONGEST_VALUE)},"
        wanted = shown(expected, LONGEST_VALUE)
        try:
            output = printed(preamble, code, text, deadline)
            if not same_output(output, expected):
                happened = f"printed {shown(output, LONGEST_VALUE)}"
                failures.append(Failure(call, happened, wanted))
        except Failed as failed:
            failures.append(Failure(call, str(failed), wanted))
        if failures and not share:
            return number, failures
    return len(pairs), failures


def same_output(output: str, expected: str) -> bool:
    """Say whether two outputs are the same: line by line, as texts or as lists of numbers.

    White space around lines and around the whole does not matter, nor how a number is written.
    """
    ours, theirs = output.strip().split("\n"), expected.strip().split("\n")
    return len(ours) == len(theirs) and all(map(_same_line, ours, theirs))


def _same_line(output: str, expected: str) -> bool:
    if output.strip() == expected.strip():
        return True
    numbers = _numbers(expected)
    return numbers is not None and numbers == _numbers(output)


def _numbers(line: str) -> list[Decimal] | None:
    """Return the numbers that a line consists of, or None."""
    try:
        found = [Decimal(word) for word in line.split()]
    except InvalidOperation:
        return None
    return found if all(number.is_finite() for number in found) else None
