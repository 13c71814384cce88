"""The task `word_problems`: its stories, their solutions and its verifier."""

import json
import re
import time
from collections import Counter
from itertools import islice

import pytest

from data.word_problems import LEVELS, SYSTEM, Problem, candidate, load, problems, verify, worked
from data.word_stories.stories import STORIES
from data.word_stories.tale import LARGEST, Draws, Unfit
from pipeline.errors import DataError
from pipeline.task import Question

CALCULATION = re.compile(r"(\d+) ([-+*/]) (\d+) = (\d+)")
PINNED = ["level-1-1", "level-1-16", "level-1-41", "level-1-55"]
READ = {
    "level-1-0": 18 - 15 + 22,
    "level-1-2": 10 + 10 + 7,
    "level-1-4": 17 + 4 * 6,
    "level-1-5": 18 - 2 * 2,
    "level-1-8": 12 - 2 * 4,
    "level-1-12": 20 - 2 * 2,
    "level-1-14": 4 * 7 - 15,
    "level-2-0": 26 + 6 + 4 * 7,
    "level-2-2": 4 * 5 - 8 - 10,
    "level-2-5": 78 - 5 * 8 - 26,
    "level-2-6": 100 - 5 * 9 - 20,
    "level-2-7": (5 * 3 + 27) // 2,
    "level-2-14": 51 - 2 * 3 - 17,
    "level-2-16": 30 - 12 + 22 - 13,
    "level-3-1": 60 + (60 + 65) + 2 * (60 + 65),
    "level-3-3": 7 * 11 + 3 * 8 - 93,
    "level-3-6": 54 - 3 * 10 - 12 + 24,
    "level-3-9": (3 * 8 - 12 - 10) * 6,
    "level-3-10": 100 - 4 * 10 - 6 * 9,
    "level-3-11": 21 - 8 + 62 + 55 + 79,
    "level-3-13": 77 - 7 * 9 - 4 + 56,
    "level-3-17": 48 + 54 - 7 * 4 + 48,
}
"""What a reader of these stories calculates."""


def problems_of(level: str, count: int) -> list[Problem]:
    return list(islice(problems(level), count))


def recomputed(solution: str) -> int:
    """Calculate every line of a solution anew; return what the last one says.

    Integers only, and none of the task's code: a wrong result, a negative one or a fraction fails.
    """
    *lines, answer = solution.split("\n")
    result = None
    for line in lines:
        found = CALCULATION.search(line)
        assert found is not None, line
        left, right, said = (int(found[place]) for place in (1, 3, 4))
        if found[2] == "/":
            assert left % right == 0, line
        result = {"+": left + right, "-": left - right, "*": left * right}.get(
            found[2], left // right
        )
        assert 0 < result == said <= LARGEST, line
    assert result is not None and answer == f"<answer>{result}</answer>"
    return result


@pytest.fixture(scope="module", params=LEVELS)
def splits(request: pytest.FixtureRequest) -> tuple[list[Question], list[Question]]:
    return load(request.param, "train"), load(request.param, "test")


def test_sizes_names_and_texts(splits: tuple[list[Question], list[Question]]) -> None:
    train, test = splits
    assert (len(train), len(test)) == (4096, 256)
    assert len({q.prompt_id for q in train + test}) == 4096 + 256
    assert len({q.messages for q in train + test}) == 4096 + 256
    for asked in train[:500] + test:
        assert [m.role for m in asked.messages] == ["system", "user"]
        assert asked.messages[0].content == SYSTEM
        story = asked.messages[1].content
        assert re.fullmatch(r"[A-Za-zé0-9 .,?']+\?", story) and "  " not in story


def test_no_test_problem_is_a_training_problem_retold(
    splits: tuple[list[Question], list[Question]],
) -> None:
    def calculated(asked: Question) -> tuple[str, ...]:
        return tuple(found[0] for found in CALCULATION.finditer(asked.solution or ""))

    train, test = ([calculated(asked) for asked in split] for split in splits)
    assert len(set(train)) == len(train) and len(set(test)) == len(test)
    assert set(train).isdisjoint(test)


def test_every_solution_is_right_and_in_form(
    splits: tuple[list[Question], list[Question]],
) -> None:
    for asked in splits[0] + splits[1]:
        for solution in (asked.solution, asked.demonstration):
            assert solution is not None
            assert recomputed(solution) == int(json.loads(asked.reference))
            verdict = verify(solution, asked.reference)
            assert (verdict.reward, verdict.format_ok) == (1.0, True)


def test_what_is_calculated_is_what_is_told(
    splits: tuple[list[Question], list[Question]],
) -> None:
    """A step takes numbers of the story and earlier results; none of either is left over."""
    for asked in splits[0][:1000] + splits[1]:
        story = asked.messages[1].content.replace("twice", "2")
        told, known, used = set(map(int, re.findall(r"\d+", story))), set[int](), set[int]()
        for found in CALCULATION.finditer(asked.solution or ""):
            operands = {int(found[1]), int(found[3])}
            assert operands <= told | known, (story, found[0])
            used |= operands
            known.add(int(found[4]))
        assert told | known - {int(json.loads(asked.reference))} <= used, story


def test_levels_have_two_three_and_four_steps() -> None:
    for level, steps in zip(LEVELS, (2, 3, 4), strict=True):
        assert {len(problem.steps) for problem in problems_of(level, 1000)} == {steps}


def test_every_kind_of_story_and_every_operation_comes() -> None:
    for level in LEVELS:
        several = problems_of(level, 1000)
        used = Counter(step.operator for problem in several for step in problem.steps)
        assert set(used) == set("+-*/") and min(used.values()) > 40, used
        kinds = ("theater", "dollars an hour", "equally among", "puzzle", "pays with")
        for kind in (*kinds, "library", "more"):
            assert any(kind in problem.story for problem in several), kind


def test_a_problem_depends_on_its_level_and_number_alone() -> None:
    # Written down once: these must not depend on the machine or the version of Python.
    assert [q.prompt_id for q in load("level-1", "test")[:4]] == PINNED
    assert load("level-1", "test")[0].solution == (
        "To begin 2 * 7 = 14.\nSo 14 - 2 = 12.\n<answer>12</answer>"
    )
    assert load("level-2", "train") == load("level-2", "train")
    assert load(None, "test") == load("level-1", "test")


@pytest.mark.parametrize(("name", "answer"), READ.items())
def test_answers_are_what_a_reader_calculates(name: str, answer: int) -> None:
    level, number = name.rsplit("-", 1)
    problem = candidate(level, int(number))
    assert problem is not None and problem.answer == answer, problem


def test_wordings_are_drawn_independently() -> None:
    several = problems_of("level-2", 400)
    pairs = [(worked(p, 0), worked(p, 1)) for p in several]
    same = sum(first.splitlines()[0] == second.splitlines()[0] for first, second in pairs)
    assert 0.1 < same / len(pairs) < 0.4
    numbers = [[CALCULATION.findall(text) for text in pair] for pair in pairs]
    assert all(first == second for first, second in numbers)


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(DataError, match=r"data\.path is hard, but .* one of level-1, level-2"):
        load("hard", "train")


def test_draws_are_uniform_and_refuse_empty_ranges() -> None:
    seen = Counter(Draws("test", n).between(3, 7) for n in range(5000))
    assert set(seen) == {3, 4, 5, 6, 7} and max(seen.values()) < 1100 and min(seen.values()) > 900
    assert all(len(set(Draws(n).two_of(STORIES[2:]))) == 2 for n in range(100))
    with pytest.raises(Unfit):
        Draws("test").between(4, 3)


GOOD = "First 3 * 7 = 21.\nSo 50 - 21 = 29.\n<answer>29</answer>"


@pytest.mark.parametrize(
    ("response", "reward", "format_ok", "prediction"),
    [
        (GOOD, 1.0, True, "29"),
        (f"\n{GOOD}\n", 1.0, True, "29"),
        (GOOD.replace(">29<", "> 29\n<"), 1.0, True, "29"),
        (GOOD.replace(">29<", ">+29<"), 1.0, True, "+29"),
        (GOOD.replace(">29<", ">31<"), 0.0, True, "31"),
        ("<answer>29</answer>", 1.0, False, "29"),
        (" \n<answer>29</answer>", 1.0, False, "29"),
        (GOOD + " dollars", 1.0, False, "29"),
        (GOOD + "<answer>31</answer>", 0.0, False, "31"),
        ("<answer>31</answer> no: <answer>29</answer>", 1.0, False, "29"),
        ("29 < 30\n<answer>29</answer>", 1.0, True, "29"),
        ("a </answer>\n<answer>29</answer>", 1.0, False, "29"),
        (GOOD.removesuffix("</answer>"), 0.0, False, None),
        ("50 - 21 = 29", 0.0, False, None),
        ("", 0.0, False, None),
        (GOOD.replace(">29<", ">29 dollars<"), 0.0, False, "29 dollars"),
        (GOOD.replace(">29<", ">29.0<"), 0.0, False, "29.0"),
        (GOOD.replace(">29<", ">\uff12\uff19<"), 0.0, False, "\uff12\uff19"),
        (GOOD.replace(">29<", ">" + "9" * 5000 + "<"), 0.0, False, "9" * 5000),
        ("<answer>\x00\ud800</answer>", 0.0, False, "\x00\ud800"),
    ],
)
def test_verdicts(response: str, reward: float, format_ok: bool, prediction: str | None) -> None:
    verdict = verify(response, '"29"')
    assert (verdict.reward, verdict.format_ok, verdict.prediction) == (
        reward,
        format_ok,
        prediction,
    )
    assert (verdict.feedback is None) == (reward == 1.0)
    assert verdict.error is None and "29" not in (verdict.feedback or "").replace(
        str(prediction), ""
    )


@pytest.mark.parametrize("piece", ["<answer>", "</answer>", "x <answer>9", " ", "\n", "9"])
def test_judging_takes_linear_time(piece: str) -> None:
    start = time.perf_counter()
    verify("x" + piece * 50_000, '"29"')
    verify(piece * 50_000 + "x", '"29"')
    assert time.perf_counter() - start < 1.0
