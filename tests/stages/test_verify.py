"""Verdicts as a stage makes them: time-outs judged again, placeholders, nothing judged at all."""

from collections.abc import Callable, Sequence

import pyarrow as pa
import pytest

from pipeline.errors import DataError
from pipeline.stage.answer_columns import verdict_columns
from pipeline.stage.contract import Handles
from pipeline.tables.schemas import UNCLOSED_THINKING
from pipeline.task import Verdict, Verifier
from stages.verify import STAGE as VERIFY
from tests.builders.tables import tables
from tests.stages.steps import config_of

SETTINGS = config_of().verify
LATE = Verdict(0.0, False, error="time limit of 1 s exceeded")


class Judge:
    """Answers by a function of (response, whether it is judged alone); keeps the calls."""

    def __init__(self, answer: Callable[[str, bool], Verdict]) -> None:
        self.calls: list[list[str]] = []
        self._answer = answer

    def verify(self, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        self.calls.append([response for response, _ in pairs])
        return [self._answer(response, len(pairs) == 1) for response, _ in pairs]


def handles(judge: Judge, told: list[tuple[int, int]] | None = None) -> Handles:
    return Handles(
        seed=0,
        step=3,
        verifiers={"t": Verifier("t/1", judge)},
        progress=lambda done, total: (told if told is not None else []).append((done, total)),
    )


def judged(judge: Judge, *responses: str) -> dict[str, list[object]]:
    count = len(responses)
    return verdict_columns(
        ["t"] * count, list(responses), ['""'] * count, None, SETTINGS, handles(judge)
    )


def test_a_time_out_is_judged_once_more_alone() -> None:
    judge = Judge(lambda text, alone: LATE if "slow" in text and not alone else Verdict(1.0, True))
    found = judged(judge, "slow a", "b", "slow c")
    assert judge.calls == [["slow a", "b", "slow c"], ["slow a"], ["slow c"]]
    assert found["error"] == [None] * 3
    assert found["correct"] == [True] * 3


def test_a_second_time_out_leaves_a_response_unjudged() -> None:
    judge = Judge(lambda text, alone: LATE if text == "hangs" else Verdict(1.0, True))
    told: list[tuple[int, int]] = []
    pairs = (["t", "t"], ["hangs", "b"], ['""'] * 2)
    found = verdict_columns(*pairs, None, SETTINGS, handles(judge, told))
    assert judge.calls == [["hangs", "b"], ["hangs"]]  # once, not until it works
    assert found["error"] == ["time limit of 1 s exceeded, also when judged alone", None]
    assert found["reward"] == [0.0, 1.0]
    assert told == [(1, 1)]  # so that a watchdog sees that work goes on


def test_other_errors_are_not_judged_again() -> None:
    crash = Verdict(0.0, False, error="verifier raised ValueError: x")
    judge = Judge(lambda text, alone: crash if text == "a" else Verdict(0.0, True))
    assert judged(judge, "a", "b")["error"] == [crash.error, None]
    assert len(judge.calls) == 1


def test_an_error_makes_what_stands_beside_it_a_placeholder() -> None:
    odd = Verdict(1.0, True, "4", "well", "it could not be judged")
    found = judged(Judge(lambda text, alone: odd), "a", "b")
    assert found["reward"] == [0.0, 0.0]
    assert found["correct"] == found["format_ok"] == [False, False]
    assert found["prediction"] == ["4", "4"]


def run_verify(judge: Judge, unclosed: list[bool] | None = None) -> pa.Table:
    rollouts = tables()["rollouts"]
    if unclosed is not None:
        rollouts = rollouts.append_column(UNCLOSED_THINKING, pa.array(unclosed))
    task = pa.array(["t"] * rollouts.num_rows)
    place = rollouts.schema.get_field_index("task")
    rollouts = rollouts.set_column(place, rollouts.schema.field(place), task)
    output = VERIFY.run({"rollouts": rollouts}, config_of(), handles(judge))
    assert output.facts["errors"] == output.tables["verdicts"]["error"].to_pylist().count("x")
    return output.tables["verdicts"]


def test_a_step_with_one_verdict_goes_on() -> None:
    judge = Judge(lambda text, alone: Verdict(0.0, True, error=None if text == "a" else "x"))
    assert run_verify(judge)["error"].to_pylist() == [None, "x", "x", "x"]


def test_unfinished_answers_are_no_verdicts_either() -> None:
    judge = Judge(lambda text, alone: Verdict(0.0, True, error="no such gold"))
    with pytest.raises(DataError, match=r"none of 2 rollouts; the first error: no such gold\."):
        run_verify(judge, [True, False, False, True])
    unfinished = run_verify(judge, [True] * 4)  # nobody was asked, and nothing failed
    assert unfinished["error"].null_count == 4


def test_a_step_without_any_verdict_stops_the_run_and_says_why() -> None:
    judge = Judge(lambda text, alone: Verdict(0.0, True, error=f"{text}: no such gold"))
    with pytest.raises(DataError) as found:
        run_verify(judge)
    said = str(found.value)
    assert said.startswith(
        "step 3: the verifier could judge none of 4 rollouts; the first error: a: no"
    )
    assert "srpo stage verify --run RUN --step 3 --fork NEW" in said and "\n" not in said
