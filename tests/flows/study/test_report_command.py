"""The command that writes what a study's rows say into a page."""

import json
from pathlib import Path

from pipeline.study.study_plan import Plan
from tests.builders.study_plans import write_plan
from tests.builders.study_rows import study_row
from tests.conftest import Srpo


def write_rows(plan: Path, questions: int = 10) -> None:
    """Write rows of the plan's main runs, beside it; the last one with so many questions."""
    runs = [run for run in Plan.read(plan).runs() if run.group == "main"]
    for run in runs:
        curve = {0: 0.2, 2: 0.4}
        row = study_row(run.name, curve, questions=questions if run is runs[-1] else 10)
        row.model_copy(update={"settings": run.settings}).write(plan.parent / "rows")


def test_a_page_is_written_with_figures_beside_it(study: Srpo, tmp_path: Path) -> None:
    plan = write_plan(tmp_path / "plan")
    write_rows(plan)
    quiet = tmp_path / "plan/quiet/main/sums/grpo/1.json"
    quiet.parent.mkdir(parents=True)
    made = {"commit": "0123abc", "processor": "any", "load": 0.9}
    seconds = {"seconds": {"generate": [1.5]}}
    quiet.write_text(json.dumps({"name": "main/sums/grpo/1", **seconds, **made}))
    page = tmp_path / "pages/STUDY.md"
    page.parent.mkdir()
    page.write_text("# By hand\n")
    code, output, errors = study("report", plan, "--out", page)
    assert (code, errors) == (0, "")
    assert output == f"{page}: 4 of 8 runs\n"
    assert page.read_text().startswith("# By hand\n")
    assert "4 of 8 runs are finished." in page.read_text()
    figures = sorted(path.name for path in page.parent.glob("study/figures/*"))
    assert figures == ["readme.svg", "sums-accuracy.svg", "sums-behaviour.svg", "sums-budgets.svg"]
    assert "seconds per step" in (page.parent / "study/figures/sums-budgets.svg").read_text()


def test_rows_that_cant_be_compared_are_one_line(study: Srpo, tmp_path: Path) -> None:
    plan = write_plan(tmp_path / "plan")
    write_rows(plan, questions=9)
    page = tmp_path / "STUDY.md"
    code, _, errors = study("report", plan, "--out", page)
    assert code == 2
    assert "expected 10 questions as in main/sums/" in errors and errors.count("\n") == 1
    assert not page.exists()


def test_rows_that_the_plan_has_no_runs_of_are_left_out(study: Srpo, tmp_path: Path) -> None:
    plan = write_plan(tmp_path / "plan")
    write_rows(plan)
    study_row("pilot/sums/srpo@2e-2/0", {0: 0.2, 2: 0.4}).write(plan.parent / "rows")
    page = tmp_path / "STUDY.md"
    code, output, errors = study("report", plan, "--out", page)
    assert (code, errors) == (0, "")
    assert output.splitlines() == [
        f"{page}: 4 of 8 runs",
        "left out, since the plan has no such runs: pilot/sums/srpo@2e-2/0",
    ]
    assert "2e-2" not in page.read_text()


def test_a_folder_of_rows_that_isnt_there_is_no_empty_study(study: Srpo, tmp_path: Path) -> None:
    plan, page = write_plan(tmp_path / "plan"), tmp_path / "STUDY.md"
    code, _, errors = study("report", plan, "--rows", tmp_path / "mistyped", "--out", page)
    assert (code, errors) == (2, f"error: {tmp_path / 'mistyped'}: no folder of rows there\n")
    assert not page.exists()
