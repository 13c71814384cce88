"""Questions with worked solutions: no table holds these, and a check needs none of them."""

import shutil
from pathlib import Path

import pytest

from flows.session.session import Session
from pipeline.check.check_run import check_run
from pipeline.run.run import Run
from tests.builders.tables import with_column
from tests.golden.golden_run import golden_config
from tests.pipeline.check.damage import edit_json, rewrite


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run that has sampled and evaluated; never write to it."""
    folder = tmp_path_factory.mktemp("input")
    config = golden_config(folder, {"generate": {"questions": 2}, "evaluate": {"questions": 2}})
    task = folder / "parity.py"
    task.write_text(task.read_text().replace("'\"\"')", "'\"\"', solution='b' + w)"))
    with Session.create(tmp_path_factory.mktemp("runs") / "run", config) as session:
        session.run_stage("evaluate", 0)
        session.run_stage("generate", 0)
        return session.run.root


TABLES = ["steps/000000/rollouts", "evaluations/000000"]


def findings(run: Path) -> list[str]:
    return [finding.expected for finding in check_run(Run.open(run)).findings]


def test_a_sound_run_has_no_findings(sound: Path) -> None:
    assert findings(sound) == []


@pytest.mark.parametrize("table", TABLES)
def test_other_questions_than_were_asked_are_found(sound: Path, table: str, tmp_path: Path) -> None:
    run = Path(shutil.copytree(sound, tmp_path / "run"))
    rewrite(
        run / f"{table}.arrow",
        lambda data: with_column(data, "reference", ['"x"'] * data.num_rows),
    )
    assert findings(run) == ["its questions are not those of its manifest"]


@pytest.mark.parametrize("table", TABLES)
def test_only_one_task_had_solutions_before_that_digest(
    sound: Path, table: str, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(sound, tmp_path / "run"))
    edit_json(run / f"{table}.json", lambda record: record["facts"].pop("asked"))
    assert findings(run) == ["its questions are not those of its manifest"]
