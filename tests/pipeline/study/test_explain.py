"""Why accuracy fell: windows, shares and links, worked out by hand."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.audit.token_texts import TokenTexts
from pipeline.run.run import Run
from pipeline.study.alarm_study import Loss
from pipeline.study.explain import (
    Moved,
    Rollout,
    divergences,
    explain,
    heard_in,
    largest_fall,
    row_series,
)
from pipeline.study.study_row import Row
from tests.builders.step_runs import make_run
from tests.builders.study_rows import study_row
from tests.builders.tables import IDS, STEP, tables, with_column

QUESTIONS = 1000
FALLS = {0: 0.3, 20: 0.5, 40: 0.5, 60: 0.3, 80: 0.3, 100: 0.3}


def shrinking() -> Row:
    """Return a row whose responses have 60 tokens, from step 45 on 30."""
    alarms = [("length_shrinks", 47), ("duplicate_responses", 70)]
    row = study_row(
        evaluations=FALLS,
        questions=QUESTIONS,
        alarms=[{"rule": r, "step": 45, "healthy": 44, "severe": True, "raised": done}
                for r, done in alarms],
    )  # fmt: skip
    lengths = [60.0] * 45 + [30.0] * 55
    return row.model_copy(update={"series": {**row.series, "response_tokens_mean": lengths}})


def taught(folder: Path, tokenizer: Path) -> Run:
    """Write a step whose rollouts 0, right, and 1, wrong, are both taught.

    The weighted divergence is 0.1, 0.2, 0.3 and 0.1, 0.5. The teacher would not have come behind
    the first token of rollout 0.
    """
    found = tables()
    rows = [0, 0, 0, 1, 1]
    changes: dict[str, list[Any]] = {
        "rollout_id": [IDS[row] for row in rows],
        "position": [0, 1, 2, 0, 1],
        "jsd": [0.1, 0.2, 0.3, 0.1, 0.5],
        "entropy": [1.0, 1.0, 4.0, 0.5, 1.5],
        "teacher_logprob": [-4.0, -1.0, -1.0, -1.0, -1.0],
        "student_logprob": [-1.0, -1.0, -1.0, -1.0, -1.0],
        "weight": [1.0] * 5,
        "raw_weight": [1.0] * 5,
    }
    for name in ("teacher", "weights"):
        table = found[name].take([0, 1, 1, 0, 1])
        for column in set(table.column_names) & set(changes):
            table = with_column(table, column, changes[column])
        found[name] = table
    run = make_run(folder / "run", found)
    (run.root / "tokenizer").mkdir()
    shutil.copy(tokenizer / "tokenizer.json", run.root / "tokenizer")
    return run


def test_numbers_around_a_loss() -> None:
    """The fall took 20 steps, 40 to 60: 5 steps of 60 tokens and 15 of 30, 37.5 in the mean."""
    found = explain(shrinking())
    assert found.fall == Loss(0, 40, 60, 0.5, 0.3)
    assert found.lost
    assert found.alarms == [("length_shrinks", 47, "precedes"), ("duplicate_responses", 70, "late")]
    moved = {number.name: number for number in found.moved}
    assert moved["response_tokens_mean"] == Moved(
        "response_tokens_mean", 60.0, 60.0, 37.5, 30.0, at=45
    )
    assert moved["off_path_share"][1:] == (*[pytest.approx(0.3)] * 4, None)
    assert moved["duplicate_share"].at is None  # always 0
    assert found.heard == []


def test_without_a_loss_the_largest_fall_is_explained() -> None:
    row = study_row(evaluations={0: 0.5, 20: 0.45, 40: 0.47, 60: 0.5}, questions=QUESTIONS)
    assert largest_fall(row) == pytest.approx(Loss(0, 0, 20, 0.5, 0.45))
    assert not explain(row).lost
    growing = study_row(evaluations={0: 0.4, 20: 0.5}, questions=QUESTIONS)
    assert explain(growing).fall is None and explain(growing).moved == []


def test_a_mean_over_steps_stands_for_each_of_them() -> None:
    row = study_row(evaluations={0: 0.5, 15: 0.5})
    row = row.model_copy(update={"means": {**row.means, "jsd_mean": [0.1, None]}})
    assert row_series(row)["jsd_mean"] == [0.1] * 10 + [None] * 5


def test_right_and_wrong_rollouts_are_told_apart(tmp_path: Path, tiny_folder: Path) -> None:
    """0.6 of 1.2 stands on the right one; steps without tables have no numbers."""
    found = divergences(taught(tmp_path, tiny_folder), STEP + 2, range(STEP + 2))
    expected = {
        "jsd correct": 0.2,
        "jsd wrong": 0.3,
        "entropy correct": 2.0,
        "entropy wrong": 1.0,
        "heard correct": 0.5,
    }
    assert {name: values[STEP] for name, values in found.items()} == pytest.approx(expected)
    for values in found.values():
        assert [step for step, value in enumerate(values) if value is not None] == [STEP]


def test_tokens_and_rollouts_that_teachers_wanted_otherwise(
    tmp_path: Path, tiny_folder: Path
) -> None:
    """Responses have the ids 10, 11, 12 and 10, 11."""
    run = taught(tmp_path, tiny_folder)
    texts = TokenTexts(tiny_folder)
    right, wrong = heard_in(run, range(STEP + 2))
    assert (right.correct, wrong.correct) == (True, False)
    assert [t.text for t in right.tokens] == [texts(12), texts(11), texts(10)]
    assert [t.share for t in right.tokens] == pytest.approx([1 / 2, 1 / 3, 1 / 6])
    assert [(t.times, t.off_path) for t in right.tokens] == [(1, 1.0), (1, 1.0), (1, 0.0)]
    assert [(t.text, t.off_path) for t in wrong.tokens] == [(texts(11), 0.0), (texts(10), 0.0)]
    (rollout,) = right.rollouts
    assert rollout.share == pytest.approx(0.5)
    shown = f"srpo audit {run.root} --rollout {IDS[0]}"
    assert rollout == Rollout(IDS[0], rollout.share, 2, texts(12), shown)


def test_a_run_is_explained_with_its_tables(tmp_path: Path, tiny_folder: Path) -> None:
    row = study_row(evaluations={0: 0.5, 2: 0.6, 4: 0.3, 6: 0.3}, questions=QUESTIONS)
    found = explain(row, taught(tmp_path, tiny_folder))
    assert found.fall == pytest.approx(Loss(0, 2, 4, 0.6, 0.3))
    moved = {number.name: number for number in found.moved}
    assert moved["jsd correct"].during == pytest.approx(0.2)  # step 3 alone has tables
    assert moved["jsd correct"].before is None
    assert [part.correct for part in found.heard] == [True, False]


def test_steps_where_nothing_was_taught_say_nothing(tmp_path: Path) -> None:
    found = tables()
    empty = {name: found[name].slice(0, 0) for name in ("teacher", "weights")}
    run = make_run(tmp_path / "run", {**found, **empty})
    assert divergences(run, STEP + 1, [STEP])["jsd wrong"] == [None] * (STEP + 1)
    assert heard_in(run, range(STEP + 1)) == []
