"""Measurements of the teacher's lead are checked like all else, and nothing depends on them."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from flows.reruns.measure_lead import measure_lead
from flows.session.session import Session
from pipeline.check.check_report import CheckReport
from pipeline.check.check_run import check_run
from pipeline.compare.run_diff import diff_runs
from pipeline.run.run import Run
from tests.golden.golden_run import golden_config
from tests.pipeline.check.damage import edit_json, flip


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run that has only begun, with a measurement; never write to it."""
    config = golden_config(tmp_path_factory.mktemp("input"), {})
    with Session.create(tmp_path_factory.mktemp("runs") / "run", config) as session:
        measure_lead(session, 0, questions=4)
        return session.run.root


@pytest.fixture
def run(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "run"))


def file(run: Path, suffix: str) -> Path:
    (found,) = (run / "evaluations").glob(f"taught-*{suffix}")
    return found


def checked(run: Path) -> CheckReport:
    return check_run(Run.open(run))


def test_a_sound_one_has_no_findings(sound: Path) -> None:
    report = checked(sound)
    assert report.findings == []
    assert report.notes == []


def wrong_figures(path: Path) -> None:
    edit_json(path, lambda record: record["figures"].update(all_right=99))


def no_figures(path: Path) -> None:
    edit_json(path, lambda record: record.pop("figures"))


@pytest.mark.parametrize(
    ("suffix", "damage", "expected"),
    [
        (".arrow", flip, "the SHA-256 of its record"),
        (".arrow", Path.unlink, "the answers of a measurement"),
        (".json", flip, "a measurement as it was written"),
        (".json", wrong_figures, "figures that follow from its table"),
        (".json", no_figures, "figures that follow from its table"),
    ],
)
def test_damage_is_found(
    run: Path, suffix: str, damage: Callable[[Path], None], expected: str
) -> None:
    damage(file(run, suffix))
    (finding,) = checked(run).findings
    assert finding.expected == expected
    assert "srpo evaluate --taught" in finding.advice


def test_a_table_of_another_kind_is_a_finding(run: Path) -> None:
    from pipeline.files.durable import file_digest
    from pipeline.tables.arrow_writing import write_arrow

    write_arrow(file(run, ".arrow"), pa.table({"group": [1]}))
    digest = file_digest(file(run, ".arrow"))
    edit_json(file(run, ".json"), lambda record: record.update(sha256=digest))
    (finding,) = checked(run).findings
    assert finding.expected == "answers that can be counted"


def test_a_table_without_a_record_is_no_measurement(run: Path) -> None:
    file(run, ".json").unlink()
    report = checked(run)
    assert report.findings == []
    (note,) = report.notes
    assert "not committed" in note


def test_runs_are_compared_without_it(run: Path, sound: Path) -> None:
    shutil.rmtree(run / "evaluations")
    assert diff_runs(Run.open(sound), Run.open(run)).tables == ()
