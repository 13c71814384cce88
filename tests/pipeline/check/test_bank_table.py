"""Banks that hold what they must not, or lack what they must have, are found and named."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from flows.session.session import Session
from pipeline.check.check_report import Finding
from pipeline.check.check_run import check_run, check_steps
from pipeline.run.run import Run
from tests.builders.bank_runs import STEPS, bank_run
from tests.pipeline.check.damage import edit_json, flip, rewrite, set_value

STEP = 5
OWN = "its steps are earlier ones"
OTHERS = "it has no others"
NEWEST = "it has the correct answers of the newest step before that has any to the same question"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of six steps with a bank; never write to it."""
    return bank_run(tmp_path_factory.mktemp("sound"))


@pytest.fixture
def run(sound: Run, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound.root, tmp_path / "run"))


def of_bank(run: Path) -> list[Finding]:
    """Return what is said of the bank; that later tables name another digest is said, too."""
    found = check_run(Run.open(run)).findings
    return about(found, run / f"steps/{STEP:06d}/bank.arrow")


def about(found: list[Finding], path: Path) -> list[Finding]:
    """Return the findings of a table, but for the number of rows that its manifest has."""
    rows = "rows, as its manifest says"
    return [f for f in found if f.path == f"{path}" and rows not in f.expected]


def expected_in(run: Path) -> set[str]:
    return {finding.expected for finding in of_bank(run)}


def change(run: Path, how: Callable[[pa.Table], pa.Table]) -> None:
    rewrite(run / f"steps/{STEP:06d}/bank.arrow", how)


def row_of(run: Path, step: int, row: int) -> dict[str, object]:
    """Return a rollout as a row of a bank."""
    rollout = Run.open(run).read("rollouts", step).slice(row, 1).to_pylist()[0]
    names = ("rollout_id", "task", "prompt_id", "step", "response_text")
    return {**{n: rollout[n] for n in names}, "response_tokens": len(rollout["response_ids"])}


def with_row(table: pa.Table, row: dict[str, object]) -> pa.Table:
    return pa.concat_tables([table, pa.Table.from_pylist([row], schema=table.schema)])


def test_a_sound_bank_is_not_noted(sound: Run) -> None:
    report = check_run(sound)
    assert report.findings == [] and report.notes == []
    alone = check_steps(sound, [STEP])  # as a worker does
    assert alone.findings == [] and alone.notes == []
    assert sound.manifest("bank", STEP).rows > 2


def test_the_own_rollout_of_a_step(run: Path) -> None:
    own = row_of(run, STEP, 0)
    change(run, lambda table: with_row(table, own))
    assert {OWN, OTHERS} <= expected_in(run)
    (finding,) = [f for f in of_bank(run) if f.expected == OTHERS]
    assert "000005-0000-00" in finding.found


def test_a_rollout_of_a_later_step_that_says_it_is_earlier(run: Path) -> None:
    """Its step is made to fit; its id tells."""
    later = {**row_of(run, STEP, 0), "rollout_id": "000006-0000-00", "step": 1}
    change(run, lambda table: with_row(table, later))
    assert expected_in(run) == {OTHERS}


def test_a_rollout_of_a_later_step(sound: Run, run: Path) -> None:
    later = row_of(sound.root, STEP, 1)
    path = run / "steps/000003/bank.arrow"
    asked = sound.read("rollouts", 3).slice(0, 1).to_pylist()[0]
    rewrite(path, lambda t: with_row(t, {**later, "prompt_id": asked["prompt_id"]}))
    found = about(check_run(Run.open(run)).findings, path)
    assert {f.expected for f in found} == {OWN, OTHERS}
    assert all("000005-0000-01" in f.found for f in found)


def test_a_rollout_of_another_question(sound: Run, run: Path) -> None:
    asked = set(sound.read("rollouts", STEP)["prompt_id"].to_pylist())
    rows = [(s, r) for s in range(STEP) for r in range(6)]
    other = next(row for s, r in rows if (row := row_of(run, s, r))["prompt_id"] not in asked)
    change(run, lambda table: with_row(table, other))
    assert {"its questions are the step's", OTHERS} == expected_in(run)


def test_a_rollout_of_another_question_under_the_name_of_this_one(sound: Run, run: Path) -> None:
    asked = sound.read("rollouts", STEP)["prompt_id"].to_pylist()
    rows = [(s, r) for s in range(STEP) for r in range(6)]
    other = next(row for s, r in rows if (row := row_of(run, s, r))["prompt_id"] not in asked)
    change(run, lambda table: with_row(table, {**other, "prompt_id": asked[0]}))
    assert expected_in(run) == {OTHERS}


def test_a_row_is_missing(sound: Run, run: Path) -> None:
    gone = sound.read("bank", STEP)["rollout_id"][1].as_py()
    change(run, lambda table: pa.concat_tables([table.slice(0, 1), table.slice(2)]))
    (finding,) = of_bank(run)
    assert finding.expected == NEWEST and gone in finding.found


def test_an_older_answer_in_place_of_the_newest(sound: Run, run: Path) -> None:
    """The bank of an earlier step, of the same questions perhaps, is not this one's."""
    correct = sound.read("verdicts", 0)["correct"].to_pylist()
    banked = set(sound.read("bank", STEP)["rollout_id"].to_pylist())
    old = next(
        row
        for r in range(6)
        if correct[r] and (row := row_of(run, 0, r))["rollout_id"] not in banked
    )
    change(run, lambda table: with_row(table.slice(1), old))
    assert {NEWEST, OTHERS} <= expected_in(run)


@pytest.mark.parametrize(
    ("column", "value"),
    [("response_text", "another"), ("response_tokens", 99), ("step", 0)],
)
def test_a_row_that_is_not_the_rollouts(sound: Run, run: Path, column: str, value: object) -> None:
    rows = sound.read("bank", STEP).to_pylist()
    row = next(n for n, known in enumerate(rows) if known[column] != value)
    set_value(run / f"steps/{STEP:06d}/bank.arrow", column, row, value)
    (finding,) = of_bank(run)
    assert finding.expected == f"{column} is that of the rollout"
    assert rows[row]["rollout_id"] in finding.found


def test_rows_in_another_order(run: Path) -> None:
    change(run, lambda table: table.take(list(range(table.num_rows))[::-1]))
    (finding,) = of_bank(run)
    assert finding.expected == "its newest step stands first, each in the order of its table"


def test_a_twin_row(run: Path) -> None:
    change(run, lambda table: pa.concat_tables([table, table.slice(0, 1)]))
    assert "rollout_id is unique" in expected_in(run)


def test_a_bank_that_was_made_from_other_steps(run: Path) -> None:
    path = run / f"steps/{STEP:06d}/bank.json"

    def forget(record: dict[str, dict[str, dict[str, str]]]) -> None:
        record["origin"]["inputs"]["earlier"] = "0" * 64

    edit_json(path, forget)
    found = [f for f in check_run(Run.open(run)).findings if f.path == f"{path}"]
    assert [f.found for f in found] == ["000000000000…"]
    assert found[0].expected.endswith("the rollouts and verdicts of the steps before")


def test_without_an_earlier_table_it_says_so(run: Path) -> None:
    for path in (run / "steps/000002").glob("verdicts.*"):
        path.unlink()
    report = check_run(Run.open(run))
    notes = [note for note in report.notes if "bank" in note]
    assert notes == [
        f"{run}/steps/{step:06d}/bank.arrow: not compared with earlier steps: verdicts of step 2 "
        "missing"
        for step in range(3, STEPS)
    ]
    assert not of_bank(run)


def test_a_broken_earlier_table_stops_no_check(run: Path) -> None:
    flip(run / "steps/000001/rollouts.arrow", 0.9)
    named = {f.path for f in check_run(Run.open(run)).findings}
    assert f"{run}/steps/000001/rollouts.arrow" in named


def test_a_bank_that_is_lost_is_missed_and_can_be_made_again(sound: Run, run: Path) -> None:
    (run / f"steps/{STEP:06d}/bank.arrow").unlink()
    (finding,) = of_bank(run)
    assert f"srpo stage bank --run {run} --step {STEP}" in finding.advice
    with Session.resume(run) as session:
        session.run_stage("bank", STEP)
    assert not check_run(Run.open(run)).findings
    sha256 = sound.manifest("bank", STEP).sha256
    assert Run.open(run).manifest("bank", STEP).sha256 == sha256


def test_a_complete_step_without_its_bank(run: Path) -> None:
    for path in (run / f"steps/{STEP:06d}").glob("bank.*"):
        path.unlink()
    (finding,) = of_bank(run)
    assert finding.expected == "a table of a complete step"
