"""`python -m flows.study explain` and `tune`: from rows and from a run's folder."""

from pathlib import Path
from types import SimpleNamespace

from tests.builders.study_rows import study_row
from tests.conftest import Srpo


def test_a_row_is_explained(study: Srpo, tmp_path: Path) -> None:
    path = study_row(evaluations={0: 0.5, 20: 0.2, 40: 0.2}, questions=1000).write(tmp_path)
    code, out, errors = study("explain", path)
    assert code == 0, errors
    assert "a loss: accuracy 20.0% after 20 steps, at best 50.0% before" in out


def test_a_run_is_explained(study: Srpo, made: SimpleNamespace, tmp_path: Path) -> None:
    code, out, errors = study("explain", made.run)
    assert code == 0, errors
    assert out.startswith(f"{made.run}") or str(made.run.name) in out
    assert "accuracy" in out
    code, _, errors = study("explain", tmp_path / "none")
    assert code == 2 and "none" in errors


def test_thresholds_are_tuned_on_rows_but_those_of_pilots(study: Srpo, tmp_path: Path) -> None:
    study_row("pilot/level-1/srpo/1").write(tmp_path)
    code, _, errors = study("tune", tmp_path)
    assert code == 2 and "no rows there but those of pilots" in errors
    for seed in (1, 2):
        study_row(f"main/level-1/srpo/{seed}").write(tmp_path)
    code, out, errors = study("tune", tmp_path)
    assert code == 0, errors
    assert "| off path | 0.5, 0.05 | OFF_PATH_SHARE 0.5, OFF_PATH_FALL 0.05 |" in out
