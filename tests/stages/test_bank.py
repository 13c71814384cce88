"""The bank of a step: whose earlier answers are in it, and in which order."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pytest

from pipeline.stage.contract import Handles
from pipeline.stage.earlier_steps import CommittedStep
from pipeline.tables.schemas import BANK, UNCLOSED_THINKING, VERDICTS, schema_with
from stages import bank
from tests.builders.tables import answer_columns, verdict_columns
from tests.stages.steps import config_of

Answer = tuple[str, str, float | None]
"""prompt_id, response, reward; None: it could not be judged."""


def rollouts_of(step: int, answers: Sequence[Answer], **others: Any) -> pa.Table:
    groups = list(dict.fromkeys(prompt for prompt, _, _ in answers))
    places = [(groups.index(prompt), row) for row, (prompt, _, _) in enumerate(answers)]
    columns = answer_columns(
        step,
        places,
        [list(range(len(text))) for _, text, _ in answers],
        prompt_id=[prompt for prompt, _, _ in answers],
        response_text=[text for _, text, _ in answers],
        prompt_ids=[[1]] * len(answers),
        **others,
    )
    columns["sampled_logprobs"] = [[-1.0] * len(text) for _, text, _ in answers]
    return pa.table(columns, schema=schema_with("rollouts", columns))


class StoredStep:
    """What `CommittedStep` asks of a run, of one step alone; notes which tables are read."""

    def __init__(self, step: int, answers: Sequence[Answer], **others: Any) -> None:
        rollouts = rollouts_of(step, answers, **others)
        rewards = [reward or 0.0 for _, _, reward in answers]
        verdicts = verdict_columns(
            [reward >= 0.5 for reward in rewards],
            reward=rewards,
            error=["crashed" if reward is None else None for _, _, reward in answers],
        )
        ids = rollouts["rollout_id"]
        judged = pa.table({"rollout_id": ids, **verdicts}, schema=VERDICTS)
        self.tables = {"rollouts": rollouts, "verdicts": judged}
        self.reads: list[str] = []

    def read(self, table: str, step: int) -> pa.Table:
        self.reads.append(table)
        return self.tables[table]


def banked(stored: Sequence[StoredStep], asked: Sequence[str]) -> pa.Table:
    """Return the bank of the step after these for the questions asked."""
    step = len(stored)
    earlier = [CommittedStep(run, number) for number, run in enumerate(stored)]  # type: ignore[arg-type]
    now = rollouts_of(step, [(prompt, "now", 1.0) for prompt in asked])
    handles = Handles(seed=0, step=step, earlier=earlier)
    return bank.run({"rollouts": now}, config_of(), handles).tables["bank"]


def ids(table: pa.Table) -> list[str]:
    found: list[str] = table["rollout_id"].to_pylist()
    return found


def test_a_bank_by_hand() -> None:
    """Of a: both right answers of step 1, none of step 0. Of b: that of step 0. Of d: nothing."""
    stored = [
        StoredStep(0, [("a", "old", 1.0), ("b", "only", 1.0), ("c", "other", 1.0)]),
        StoredStep(1, [("a", "newer", 1.0), ("b", "bad", 0.0), ("a", "as new", 1.0)]),
    ]
    table = banked(stored, ["b", "d", "a"])
    assert table.schema.equals(BANK)
    task = stored[0].tables["rollouts"]["task"][0].as_py()
    assert table.to_pylist() == [
        {"rollout_id": "000001-0000-00", "task": task, "prompt_id": "a", "step": 1,
         "response_text": "newer", "response_tokens": 5},
        {"rollout_id": "000001-0000-02", "task": task, "prompt_id": "a", "step": 1,
         "response_text": "as new", "response_tokens": 6},
        {"rollout_id": "000000-0001-01", "task": task, "prompt_id": "b", "step": 0,
         "response_text": "only", "response_tokens": 4},
    ]  # fmt: skip


def test_what_cannot_demonstrate_is_in_no_bank() -> None:
    """Wrong, not judged, ending inside its thinking: the older right answer stands in for them."""
    right, wrong, unjudged, thinking = (
        StoredStep(0, [("a", "right", 1.0)]),
        StoredStep(1, [("a", "wrong", 0.4)]),
        StoredStep(2, [("a", "unjudged", None)]),
        StoredStep(3, [("a", "<think>right", 1.0)]),
    )
    assert ids(banked([right, wrong, unjudged, thinking], ["a"])) == ["000000-0000-00"]


@pytest.mark.parametrize("unclosed", [True, False])
def test_whether_thinking_is_open_is_what_generate_recorded(unclosed: bool) -> None:
    """A prompt may have opened the block, which the text alone doesn't show."""
    stored = StoredStep(0, [("a", "draft", 1.0)], **{UNCLOSED_THINKING: [unclosed]})
    assert banked([stored], ["a"]).num_rows == (0 if unclosed else 1)


def test_a_question_of_another_task_is_another_question() -> None:
    stored = StoredStep(0, [("a", "right", 1.0)], task=["elsewhere"])
    assert banked([stored], ["a"]).num_rows == 0


def test_the_first_step_has_an_empty_bank() -> None:
    table = banked([], ["a"])
    assert table.num_rows == 0 and table.schema.equals(BANK)


def test_no_step_is_opened_before_it_is_needed_and_none_twice() -> None:
    old, new = StoredStep(0, [("a", "old", 1.0)]), StoredStep(1, [("a", "new", 1.0)])
    earlier = [CommittedStep(run, step) for step, run in enumerate([old, new])]  # type: ignore[arg-type]
    for _ in range(2):
        handles = Handles(seed=0, step=2, earlier=earlier)
        bank.run({"rollouts": rollouts_of(2, [("a", "now", 0.0)])}, config_of(), handles)
    assert old.reads == []
    assert new.reads == ["rollouts", "verdicts", "rollouts", "rollouts"]  # texts are not kept
