"""Hints: what they say of a response, and that they never tell the gold answer."""

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import arithmetic, chains, registry, science_qa, tool_use, word_problems
from data.code_tests import judging
from data.demo.make_policy import worked
from data.hints.calculations import MOST_TERMS, calculations
from pipeline.gold_share import gold_share
from pipeline.task import Verdict
from tests.paths import DATASETS, PROJECT


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("30 - 19 = 5", [False]),
        ("30 - 19 = 11", [True]),
        ("31 - 58 = -27", [True]),
        ("31 - 58 = 27", [False]),
        ("tens 4 + 3 + 1 = 8, so 85", [True]),
        ("- 5 + 3 = 9", [False]),  # an item of a list
        ("Plants: $5 * 9 = $45\nLeft: 100 - 45 = 65 dollars.", [True, False]),
        ("2 + 3 * 4 = 14", [True]),
        ("2 × 3 = 6 ÷ 2", [False]),
        ("2 * 3 = 6 = 7 - 1", [True]),
        ("1,200 / 4 = 300.", [True]),
        ("10 / 3 = 3.33", [True]),  # rounded
        ("10 / 3 = 3.43", [False]),
        ("(5 + 3 = 8)", [True]),
        # What is not plain, or a part of something longer.
        ("x + 3 = 7", []),
        ("2x + 3 = 7 - 1", []),
        ("5 dollars * 3 = 15 - 1", []),
        ("2 * (3 + 4) = 14", []),
        ("5^2 + 3 = 28", []),
        ("3:40 + 20 = 4", []),
        ("20 / 3 = 6 remainder 2", []),
        ("5 / 0 = 0", []),
        ("5 = 5", []),
        ("7 + 8\n= 15", []),
        (" + ".join(["1"] * (MOST_TERMS + 1)) + " = 1", []),
    ],
)
def test_calculations_that_are_read(text: str, expected: list[bool]) -> None:
    assert [made.holds for made in calculations(text)] == expected


@given(st.text(st.sampled_from("0123456789+-*/=x., \n"), max_size=200))
def test_calculations_of_any_text(text: str) -> None:
    assert all(made.text in text for made in calculations(text))


GOLD_CALLS = json.dumps([{"Action": "find", "Action_Input": {"city": "Oslo", "days": 3}}] * 2)


def _calls(*calls: tuple[str, str]) -> str:
    return "".join(f"Action: {name}\nAction Input: {given}\n" for name, given in calls)


RIGHT_CALL = ("find", '{"city": "Oslo", "days": 3}')


def _tests(code: str) -> str:
    """Return a reference of tasks code and code_share: tests of a function f."""
    return json.dumps({"functions": ["f"], "tests": code, "setup": "", "names": {"f": "f"}})


SAID: list[tuple[str, str, str, str]] = [
    ("arithmetic", "85", '"85"', "There is no <answer>…</answer>."),
    ("arithmetic", "<answer>x</answer>", '"85"', "The answer is not a whole number."),
    (
        "arithmetic",
        "8 + 8 = 15<answer>95</answer>",
        '"85"',
        "In `8 + 8 = 15` the two sides differ.",
    ),
    (
        "arithmetic",
        "7 + 8 = 15<answer>75</answer>",
        '"85"',
        "Each calculation is right by itself, but a step between them is missing or wrong.",
    ),
    (
        "arithmetic",
        "<answer>75</answer>",
        '"85"',
        "The answer is wrong, and no calculation is written down.",
    ),
    (
        "word_problems",
        "30 - 19 = 5\n<answer>5</answer>",
        '"11"',
        "In `30 - 19 = 5` the two sides differ.",
    ),
    (
        "word_problems",
        "30 - 19 = 11\n<answer>12</answer>",
        '"11"',
        "The answer is not the result of the last calculation.",
    ),
    (
        "word_problems",
        "30 + 19 = 49\n<answer>49</answer>",
        '"11"',
        "Each calculation is right by itself, but they don't answer the question.",
    ),
    (
        "word_problems",
        "<answer>49</answer>",
        '"11"',
        "The answer is wrong, and no calculation is written down.",
    ),
    ("science_qa", "B", '"B"', "There is no <answer>…</answer>."),
    (
        "science_qa",
        "<answer>A, B</answer>",
        '"B"',
        "The answer must be the letter of one option and nothing else.",
    ),
    ("science_qa", "<answer>A</answer>", '"B"', "The chosen option is wrong."),
    ("mathematics", "5", '"5"', "There is no answer in \\boxed{…} or <answer>…</answer>."),
    ("mathematics", "\\boxed{5 +}", '"5"', "The answer can't be read as mathematics."),
    (
        "mathematics",
        "\\boxed{[0, 1]}",
        '"5"',
        "The answer is an interval, a list or a set, but a number or a formula is asked for.",
    ),
    (
        "mathematics",
        "\\boxed{\\text{never}}",
        '"(0, 1)"',
        "The answer is text, but an interval, a list or a set is asked for.",
    ),
    (
        "mathematics",
        "2 + 2 = 5, so \\boxed{x = 5}",
        '"4"',
        "In `2 + 2 = 5` the two sides differ.",
    ),
    ("mathematics", "\\boxed{6}", '"5"', "The answer is wrong."),
    ("mathematics", "\\boxed{6}", '"\\\\int_0^1 x dx"', "The answer is wrong."),
    ("tool_use", "find Oslo", GOLD_CALLS, "There is no Action."),
    (
        "tool_use",
        "Action: find",
        GOLD_CALLS,
        "Every Action needs an Action Input, an object in braces.",
    ),
    ("tool_use", _calls(RIGHT_CALL), GOLD_CALLS, "All calls are right, but more are needed."),
    (
        "tool_use",
        _calls(*[RIGHT_CALL] * 3),
        GOLD_CALLS,
        "There is a call too many, of `find`.",
    ),
    (
        "tool_use",
        _calls(RIGHT_CALL, ("look", "{}")),
        GOLD_CALLS,
        "`look` is not the tool to call there.",
    ),
    (
        "tool_use",
        _calls(RIGHT_CALL, ("find", '{"city": "Oslo"}')),
        GOLD_CALLS,
        "In the call of `find` an argument is missing.",
    ),
    (
        "tool_use",
        _calls(RIGHT_CALL, ("find", '{"city": "Oslo", "when": 3}')),
        GOLD_CALLS,
        "In the call of `find` the argument `when` is not needed.",
    ),
    ("code", "def f(x): return x + 1", _tests("assert f(1) == 37"), "f(1) returned 2."),
    (
        "code_share",
        "def f(x): return x + 1",
        _tests("assert f(1) == 2\nassert f(5) == 37"),
        "f(5) returned 6.",
    ),
    (
        "code",
        "def f(x): return None",
        _tests("assert sorted(f(2)) == [2]"),
        "f(2) returned None, on which its test raises TypeError.",
    ),
    (
        "code",
        "def f(x): return 1 // x",
        _tests("assert f(0) == 37"),
        "f(0) raised ZeroDivisionError: integer division or modulo by zero (line 1: def f(x): "
        "return 1 // x).",
    ),
    ("code", "nothing", _tests("assert f(0) == 37"), "The code does not define f."),
    (
        "tool_use",
        _calls(RIGHT_CALL, ("find", '{"days": 3.0, "city": "Rome"}')),
        GOLD_CALLS,
        "In the call of `find` the argument `city` is wrong.",
    ),
]


@pytest.mark.parametrize(("task", "response", "reference", "expected"), SAID)
def test_what_hints_say(task: str, response: str, reference: str, expected: str) -> None:
    verdict = registry.judge_with_hint(task, response, reference)
    assert verdict == replace(registry.judge(task, response, reference), feedback=expected)


def test_code_runs_once_for_verdict_and_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome, runs = judging._outcome, []

    def counted(*arguments: Any) -> Any:
        runs.append(arguments)
        return outcome(*arguments)

    monkeypatch.setattr(judging, "_outcome", counted)
    for expected in (41, 42):
        reference = _tests(f"assert f(1) == {expected}")
        registry.judge_with_hint("code", "def f(x): return 3", reference)
    assert len(runs) == 2


class Answered(NamedTuple):
    task: str
    reference: str
    response: str


def _numbers(rng: random.Random, gold: int) -> Iterator[str]:
    """Yield responses to a question with such a gold answer, as small policies write them."""
    for wrong in (gold + 1, -gold, gold * 10, rng.randrange(100)):
        yield f"{wrong} is what I get: <answer>{wrong}</answer>"
        yield f"first 30 - 19 = {gold}\nso {gold} + 1 = {wrong}\n<answer>{wrong}</answer>"
        yield f"- {gold} * 2 = {gold}\n<answer>{wrong} apples</answer>"


def _slipped(rng: random.Random, solution: str) -> str:
    """Return a worked solution with one digit drawn anew."""
    places = [place for place, letter in enumerate(solution) if letter.isdigit()]
    place = rng.choice(places)
    return f"{solution[:place]}{rng.randrange(10)}{solution[place + 1 :]}"


def _tools() -> list[list[dict[str, Any]]]:
    """Return gold calls: those of the data set where it is, and some of our own."""
    made: list[list[dict[str, Any]]] = [
        [
            {"Action": "getWeather", "Action_Input": {"city": "Oslo", "days": 3}},
            {"Action": "getBook", "Action_Input": {"title": "The call of the wild", "new": True}},
        ],
        [{"Action": "list", "Action_Input": {}}],
    ]
    if (DATASETS / "toolalpaca").is_dir():
        questions = tool_use.load(str(DATASETS / "toolalpaca"), "test")
        made += [json.loads(question.reference) for question in questions]
    return made


def _wrong_calls(rng: random.Random, gold: list[dict[str, Any]]) -> Iterator[str]:
    for kind in range(6):
        calls = json.loads(json.dumps(gold))
        call = rng.choice(calls)
        given = call["Action_Input"]
        name = rng.choice([*given, "extra"])
        if kind == 0:
            given.pop(name, None)
        elif kind == 1:
            given["extra"] = 3
        elif kind == 2:
            given[name] = "other"
        elif kind == 3:
            calls.append(call)
        elif kind == 4:
            call["Action"] = "other"
        else:
            calls.remove(call)
        yield _calls(*((call["Action"], json.dumps(call["Action_Input"])) for call in calls))
    yield "Action: " + gold[0]["Action"]
    yield "I need no tool."


def answered() -> Iterator[Answered]:
    """Yield responses to many questions of all tasks that have hints of their own."""
    rng = random.Random(0)
    for problem in arithmetic.split_problems("test"):
        gold = json.dumps(str(problem.answer))
        for response in (worked(problem, slip=True), *_numbers(rng, problem.answer)):
            yield Answered("arithmetic", gold, response)
    for task, load in (("chains", chains.load), ("word_problems", word_problems.load)):
        for question in load(None, "test")[:64]:
            for response in _numbers(rng, int(json.loads(question.reference))):
                yield Answered(task, question.reference, response)
            yield Answered(task, question.reference, _slipped(rng, str(question.solution)))
    for gold in science_qa.LETTERS:
        for said in ("A", "B", "C", "D", "a", "A or B", "A: 2270.7", "none"):
            for text in (said, f"<answer>{said}</answer>", f"It is {gold}.<answer>{said}</answer>"):
                yield Answered("science_qa", json.dumps(gold), text)
    answers = ("5", "-27", "\\frac{1}{2}", "[0, 1)", "x^2 + 1", "\\{1, 2\\}", "3:40", "even", "A")
    for gold in (*answers, "y = 2x + 1", "\\begin{pmatrix}1\\\\2\\end{pmatrix}", "1000"):
        for said in (*answers, "5 apples", "x" * 1200, "1.000.000", "(", "101_2"):
            for working in ("", f"2 + 2 = {said}, so ", f"2 + 2 = {gold}, so "):
                response = f"{working}\\boxed{{{said}}}"
                yield Answered("mathematics", json.dumps(gold), response)
        yield Answered("mathematics", json.dumps(gold), "I don't know.")
    for calls in _tools():
        for response in _wrong_calls(rng, calls):
            yield Answered("tool_use", json.dumps(calls), response)


def telling(judge: Callable[[str, str, str], Verdict]) -> list[tuple[str, str, float]]:
    """Return the tasks, feedbacks and gold shares of all feedback that tells of the gold answer."""
    found = []
    for task, reference, response in answered():
        verdict = judge(task, response, reference)
        assert verdict.error is None
        said = verdict.feedback or ""
        share = gold_share(said, reference, verdict.prediction or "", response)
        if share:  # 0, or none
            found.append((task, said, share))
    return found


def test_no_hint_tells_the_gold_answer() -> None:
    """Planted: a hint that does, turns this red (see the next test)."""
    assert telling(registry.judge_with_hint) == []


@pytest.mark.parametrize("task", registry.HINTS)
def test_gold_leaked_into_a_hint_is_found(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def leaking(response: str, reference: str) -> str:
        return f"{registry.open_hint(task)(response, reference)} Expected: {json.loads(reference)}"

    registry._opened_hint.cache_clear()
    monkeypatch.setattr(
        registry,
        "_opened_hint",
        lambda name: leaking if name == task else registry.open_hint(name),
    )
    found = telling(registry.judge_with_hint)
    assert {name for name, _, _ in found} == {task}
    assert max(share for _, _, share in found) == 1.0


def test_only_the_full_feedback_on_tools_tells_the_gold_answer() -> None:
    by_chance = "longer than 1000 characters", "write 1000000, 1000.5"
    found = [
        entry for entry in telling(registry.judge) if not entry[1].strip(".").endswith(by_chance)
    ]
    assert {task for task, _, _ in found} == {"tool_use"}
    assert sum(share for _, _, share in found) / len(found) > 0.9


def test_every_wrong_response_gets_a_hint_and_no_right_one() -> None:
    counts = {True: 0, False: 0}
    for task, reference, response in answered():
        verdict = registry.judge_with_hint(task, response, reference)
        assert (verdict.feedback is None) == (verdict.reward == 1.0)
        counts[verdict.reward == 1.0] += 1
    assert min(counts.values()) > 20


@pytest.mark.parametrize(
    ("task", "response", "reference"),
    [
        ("arithmetic", "units 8 - 7 = 1. tens 7 - 1 = 6, so 61<answer>61</answer>", '"51"'),
        ("chains", "85 + 38 = 113\n113 - 24 = 89\n<answer>89</answer>", '"99"'),
        ("word_problems", "5 * 9 = 54\n100 - 54 = 46\n<answer>46</answer>", '"55"'),
        ("science_qa", "<answer>A</answer>", '"B"'),
        ("science_qa", "<answer>A: 2270.7</answer>", '"B"'),
        ("mathematics", "7 * 6 = 48, so \\boxed{48}", '"42"'),
        ("mathematics", "\\boxed{[2, 5]}", '"3"'),
        ("code", "def f(x): return x + 1", _tests("assert f(1) == 3")),
        (
            "tool_use",
            _calls(("getAxolotlFacts", '{"category": "habits", "limit": 3}')),
            '[{"Action":"getAxolotlFacts","Action_Input":{"category":"habitat","limit":3}}]',
        ),
    ],
)
def test_the_examples_of_the_docs(task: str, response: str, reference: str) -> None:
    text = (PROJECT / "docs/tasks.md").read_text(encoding="utf-8").replace("`", "")
    full = registry.judge(task, response, reference).feedback
    hint = registry.judge_with_hint(task, response, reference).feedback
    assert f"| {full} | {hint} |".replace("`", "") in text
