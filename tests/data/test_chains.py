"""The task `chains`: its calculations, their solutions, and whose verifier it takes."""

import hashlib
import json
import re
from collections import Counter
from itertools import islice

import pytest

from data import chains, word_problems
from data.chains import LARGEST, LEVELS, SYSTEM, Problem, Step, load, problems, worked
from data.gold_wording import GOLDS
from pipeline.errors import DataError
from pipeline.task import Message, Question
from tests.data.chain_reading import evaluated

CALCULATION = re.compile(r"([0-9]+) ([-+*]) ([0-9]+) = ([0-9]+)")
PINNED = {
    "level-1": "458de1020aa07f301dd56ca7c766fa6624d2578f36a64f8b561520333dd4f184",
    "level-1p": "e34b91c78f3385f15057fe9cd4e1a4623ceb0b8fbc70b2c9e8415ff051710605",
    "level-2": "afaaa4e67a09315f763ae62bfca1671f702a464d0abfe5335cb99f7f91645808",
}
"""SHA-256 of the first 40 test and 40 training questions, with their solutions."""


def several(level: str) -> list[Problem]:
    return list(islice(problems(level), 4400))


def checked(line: str) -> int:
    """Calculate a line of a solution anew, every part of it; return what its last one says."""
    parts = line.split(", ")
    for part in parts:
        found = CALCULATION.fullmatch(part)
        assert found is not None, line
        left, right, said = int(found[1]), int(found[3]), int(found[4])
        assert said == {"+": left + right, "-": left - right, "*": left * right}[found[2]], line
        assert 0 < said <= LARGEST, line
    return int(parts[-1].rpartition(" ")[2])


@pytest.fixture(scope="module", params=LEVELS)
def splits(request: pytest.FixtureRequest) -> tuple[list[Question], list[Question]]:
    return load(request.param, "train"), load(request.param, "test")


def test_sizes_names_and_texts(splits: tuple[list[Question], list[Question]]) -> None:
    train, test = splits
    assert (len(train), len(test)) == (4096, 256)
    assert len({q.prompt_id for q in train + test}) == 4096 + 256
    for asked in train + test:
        assert asked.messages[0] == Message("system", SYSTEM)
        assert asked.messages[1].role == "user" and len(asked.messages) == 2
        text = asked.messages[1].content
        assert re.fullmatch(r"Start with [0-9]{2}(, [-+*] [0-9]{1,2})+", text), text


def test_splits_share_no_question(splits: tuple[list[Question], list[Question]]) -> None:
    train, test = ([asked.messages[1].content for asked in split] for split in splits)
    assert len(set(train)) == len(train) and len(set(test)) == len(test)
    assert set(train).isdisjoint(test)


def test_solutions_are_what_the_question_asks(
    splits: tuple[list[Question], list[Question]],
) -> None:
    for asked in splits[0] + splits[1]:
        start, *after = evaluated(asked.messages[1].content)
        assert 11 <= start <= 99 and all(0 < value <= LARGEST for value in after)
        assert asked.reference == json.dumps(str(after[-1]))
        for solution in (asked.solution, asked.demonstration):
            assert solution is not None
            *lines, answer = solution.split("\n")
            assert [checked(line) for line in lines] == after
            assert answer == f"<answer>{after[-1]}</answer>"
            verdict = chains.verify(solution, asked.reference)
            assert (verdict.reward, verdict.format_ok) == (1.0, True)


@pytest.mark.parametrize(
    ("level", "length", "products"),
    [("level-1", 5, 1 / 11), ("level-1p", 5, 1 / 4), ("level-2", 7, 1 / 5)],
)
def test_how_many_steps_and_products_a_level_has(level: str, length: int, products: float) -> None:
    drawn = several(level)
    assert {len(problem.steps) for problem in drawn} == {length}
    counts = Counter(step.operator for problem in drawn for step in problem.steps)
    assert set(counts) == set("+-*")
    assert counts["*"] / counts.total() == pytest.approx(products, rel=0.1)


def test_numbers_stay_in_their_ranges() -> None:
    for level in LEVELS:
        for step in (step for problem in several(level) for step in problem.steps):
            low, high = (2, 9) if step.operator == "*" else (11, 99)
            assert low <= step.right <= high and 0 < step.result <= LARGEST


@pytest.mark.parametrize(
    ("step", "at_once", "in_parts"),
    [
        (Step(85, "+", 38), "85 + 38 = 123", "85 + 30 = 115, 115 + 8 = 123"),
        (Step(141, "-", 52), "141 - 52 = 89", "141 - 50 = 91, 91 - 2 = 89"),
        (Step(123, "*", 6), "123 * 6 = 738", "120 * 6 = 720, 3 * 6 = 18, 720 + 18 = 738"),
    ],
)
def test_a_step_at_once_and_in_parts(step: Step, at_once: str, in_parts: str) -> None:
    assert (step.at_once, step.in_parts, step.has_parts) == (at_once, in_parts, True)


@pytest.mark.parametrize("step", [Step(85, "+", 30), Step(7, "*", 6), Step(120, "*", 6)])
def test_a_step_without_tens_or_units_has_no_parts(step: Step) -> None:
    assert not step.has_parts


def test_parts_lead_to_the_same_result() -> None:
    for level in LEVELS:
        for step in (step for problem in several(level) for step in problem.steps):
            assert checked(step.at_once) == step.result
            if step.has_parts:
                assert checked(step.in_parts) == step.result


def test_half_of_the_steps_that_have_parts_are_taken_apart() -> None:
    taken = Counter(
        line == step.in_parts
        for problem in several("level-2")[:1000]
        for step, line in zip(problem.steps, worked(problem, 0).split("\n"), strict=False)
        if step.has_parts
    )
    assert taken[True] / taken.total() == pytest.approx(0.5, abs=0.02)


def test_wordings_are_drawn_independently() -> None:
    pairs = [(worked(p, 0), worked(p, 1)) for p in several("level-1")[:1000]]
    firsts = [[text.split("\n")[0] for text in pair] for pair in pairs]
    same = sum(first == second for first, second in firsts) / len(pairs)
    # A tenth of the steps have one wording, and half of the pairs of the others agree.
    assert same == pytest.approx(0.55, abs=0.05)


def test_questions_depend_on_level_and_number_alone() -> None:
    # Written down once: these must not depend on the machine or the version of Python.
    digests = {}
    for level in LEVELS:
        first = load(level, "test")[:40] + load(level, "train")[:40]
        texts = [
            (q.prompt_id, q.messages[1].content, q.reference, q.solution, q.demonstration)
            for q in first
        ]
        digests[level] = hashlib.sha256(json.dumps(texts).encode()).hexdigest()
    assert digests == PINNED
    assert load(None, "test") == load("level-1", "test")


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(
        DataError,
        match=r"data\.path is level-3, but task chains .* one of level-1, level-1p, level-2$",
    ):
        load("level-3", "train")


def test_the_verifier_is_that_of_word_problems() -> None:
    assert chains.verify is word_problems.verify
    assert chains.VERIFIER == "chains/1"
    assert GOLDS["chains"](load(None, "test")[0].reference) == "4"
