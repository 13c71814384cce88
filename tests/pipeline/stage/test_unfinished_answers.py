"""Answers that end inside their think block: wrong where the template thinks, unasked."""

from collections.abc import Sequence

import pyarrow as pa
import pytest

from pipeline.config.sections import VerifySection
from pipeline.stage.answer_columns import unfinished, verdict_columns
from pipeline.stage.contract import Handles
from pipeline.task import Verdict, Verifier

ANSWERS = [
    "<think>so <answer>A</answer>",
    "<think>so</think><answer>A</answer>",
    "<answer>A</answer>",
]
OPEN = [True, False, False]


class Judge:
    """Finds everything right, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def verify(self, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        self.asked += [response for response, _ in pairs]
        return [Verdict(1.0, True, "A", "well done") for _ in pairs]


def judged(open_: list[bool] | None, **settings: str) -> tuple[list[bool], list[str]]:
    judge = Judge()
    handles = Handles(0, 0, verifiers={"t": Verifier("t/1", judge)})
    section = VerifySection.model_validate(settings)
    found = verdict_columns(["t"] * 3, ANSWERS, ['"A"'] * 3, open_, section, handles)
    assert found["verifier"] == ["t/1"] * 3 and found["error"] == [None] * 3
    wrong = [i for i, correct in enumerate(found["correct"]) if not correct]
    assert all(found["prediction"][i] == "" and found["feedback"][i] is None for i in wrong)
    return found["correct"], judge.asked


def test_wrong_where_the_template_thinks() -> None:
    assert judged(OPEN) == ([False, True, True], ANSWERS[1:])
    assert judged([True] * 3) == ([False] * 3, [])


def test_judged_by_a_setting_or_where_it_does_not_think() -> None:
    assert judged(OPEN, unfinished_thinking="judge") == ([True] * 3, ANSWERS)
    assert judged(None) == ([True] * 3, ANSWERS)


@pytest.mark.parametrize("recorded", [[False, True, True], None])
def test_which_are_unfinished(recorded: list[bool] | None) -> None:
    """As generate recorded it, which knows the prompt; in tables without, as the texts say."""
    columns = {"response_text": pa.array(ANSWERS)}
    if recorded is not None:
        columns["unclosed_thinking"] = pa.array(recorded)
    assert unfinished(pa.table(columns)) == (recorded or OPEN)
