"""Who is taught by an earlier answer: found by a filter, and shown with that answer and its age."""

import shutil
from pathlib import Path

import pytest

from pipeline.audit import listing
from pipeline.audit.rollout import rollout_record
from pipeline.run.run import Run
from tests.builders.banked_teachers import EARLIER, TAUGHT, TEACHER, banked_run
from tests.builders.step_runs import make_run
from tests.builders.tables import IDS, STEP, tables


@pytest.fixture
def run(tmp_path: Path, tiny_folder: Path) -> Run:
    made = banked_run(tmp_path / "run")
    (made.root / "tokenizer").mkdir()
    shutil.copy(tiny_folder / "tokenizer.json", made.root / "tokenizer")
    return made


def test_they_are_found_by_their_source(run: Run) -> None:
    frame = listing.samples(run, [STEP])
    names = ["rollout_id", "teacher_source", "teacher_rollout_id", "teacher_step"]
    found = listing.where(frame, "teacher_source = 'bank'").select(names).collect().rows()
    assert found == [(TAUGHT, "bank", TEACHER, EARLIER)]
    old = listing.where(frame, "step - teacher_step >= 2").collect()["rollout_id"].to_list()
    assert old == [TAUGHT]
    by_source = listing.grouped(frame, ["teacher_source"]).collect()
    assert by_source.select("teacher_source", "rollouts").rows() == [
        ("bank", 1), ("none", 2), ("sibling", 1),
    ]  # fmt: skip


def test_a_step_without_a_bank_has_no_teacher_step(tmp_path: Path) -> None:
    rows = listing.samples(make_run(tmp_path / "run", tables())).collect()
    assert rows["teacher_step"].null_count() == len(IDS)
    assert rows["teacher_source"].to_list() == ["none", "sibling", "none", "none"]


def test_the_record_has_the_earlier_answer(run: Run) -> None:
    record = rollout_record(run, TAUGHT)
    assert (record.sibling_text, record.teacher_age) == ("once right", STEP - EARLIER)
    sibling = rollout_record(run, IDS[1])
    assert (sibling.sibling_text, sibling.teacher_age) == ("a", 0)
    assert rollout_record(run, IDS[0]).teacher_age is None


def test_an_earlier_answer_that_is_not_there_is_not_shown(run: Run) -> None:
    for path in (run.root / f"steps/{EARLIER:06d}").glob("rollouts.*"):
        path.unlink()
    record = rollout_record(Run.open(run.root), TAUGHT)
    assert (record.sibling_text, record.teacher_age) == (None, None)
