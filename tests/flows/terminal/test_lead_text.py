"""What a person is told of a teacher's lead."""

from typing import Any

import pytest

from flows.terminal.lead_text import lead_sentences


def accuracy(mean: float, half: float = 0.05) -> dict[str, float]:
    return {"mean": mean, "low": mean - half, "high": mean + half}


def figures(
    alone: float, taught: float, half: float = 0.05, right: int = 1, missing: int = 2
) -> dict[str, Any]:
    found = {
        "questions": 20,
        "alone": accuracy(alone),
        "taught": accuracy(taught),
        "difference": accuracy(taught - alone, half),
    }
    return {
        "questions": 32,
        "all_right": right,
        "without_source": missing,
        "sources": {"sibling": found},
    }


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (figures(0.11, 0.98), "lifts accuracy from 11.0% to 98.0%: the teacher has a lead"),
        (figures(0.30, 0.34), "NO LEAD beyond chance: on 20 questions a teacher prompt"),
        (figures(0.00, 0.00, 0.0), "the policy can't use a demonstration"),
        (figures(0.30, 0.10), "NO LEAD: a teacher prompt (sibling) moves accuracy from 30.0% to"),
        (figures(0.99, 0.98), "the policy is right without one"),
    ],
)
def test_the_first_sentence_is_the_verdict(found: dict[str, Any], words: str) -> None:
    first, second = lead_sentences(found, 8)
    assert words in first
    assert ("srpo warmstart" in first) == ("can't use" in first)
    assert "Of 32 questions 1 had no wrong answer, and 2 a wrong one and nothing to show" in second


def test_the_verdict_names_what_is_shown() -> None:
    found = figures(0.0, 0.0, 0.0)
    found["sources"] = {"feedback": found["sources"]["sibling"]}
    assert "the policy can't use feedback, so" in next(lead_sentences(found, 8))


def test_a_single_question_shows_no_lead() -> None:
    found = figures(0.0, 1.0, 0.0)
    found["sources"]["sibling"]["questions"] = 1
    words = "NO LEAD beyond chance: on 1 question a teacher prompt (sibling)"
    assert next(lead_sentences(found, 8)).startswith(words)


def test_where_nothing_can_be_shown_a_supervised_start_may_help() -> None:
    (only,) = lead_sentences({**figures(0, 0), "sources": {}}, 8)
    assert "NO LEAD: of 31 questions with a wrong answer none has anything to show" in only
    assert "srpo warmstart" in only


def test_where_all_is_right_there_is_nothing_to_teach() -> None:
    (only,) = lead_sentences({**figures(0, 0, right=32), "sources": {}}, 8)
    assert only == "Nothing to teach: all answers to all 32 questions are right."
