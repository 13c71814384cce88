"""`srpo compare`, as typed."""

import json
import sys
from pathlib import Path

import pytest

from flows.cli import main
from tests.builders.accuracy_runs import make_run


def srpo(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["srpo", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code if isinstance(end.value.code, int) else 0


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    make_run(tmp_path / "srpo-0", {0: 0.2, 4: 0.9}, seconds=360.0)
    make_run(tmp_path / "srpo-1", {0: 0.2, 4: 0.7}, seconds=360.0, run={"seed": 1})
    make_run(tmp_path / "grpo-0", {0: 0.2, 4: 0.5}, seconds=360.0, route={"method": "grpo"})
    return [tmp_path / name for name in ("srpo-0", "srpo-1", "grpo-0")]


def test_the_table_has_a_row_per_method(
    runs: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert srpo(monkeypatch, "compare", *runs, "--hours", "0.1,0.4", "--steps", "4") == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert "best avg@2 within training wall clock" in shown.out
    lines = [line for line in shown.out.splitlines() if "srpo" in line or "grpo" in line]
    assert "20.0 (20.0-20.0)" in lines[0] and "80.0 (0.0-100.0)" in lines[0]
    assert lines[1].split("│")[2].strip() == "1" and "50.0 (" in lines[1]
    assert "│ srpo │ +60.0 │" in shown.out and "│ grpo │ +30.0 │" in shown.out
    assert "grpo, after 4 steps: shows no clear change at k = 1 (+0.0 to +60.0)" in shown.out
    assert "Student's t over seeds" in shown.out and "bootstrap over questions" in shown.out


def test_long_labels_stand_above_the_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for beta in (0.5, 2.0):
        make_run(tmp_path / f"{beta}", {0: 0.2, 4: 0.9}, weigh={"beta": beta})
    assert srpo(monkeypatch, "compare", tmp_path / "0.5", tmp_path / "2.0") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["row 1: srpo, weigh.beta=0.5", "row 2: srpo, weigh.beta=2"]
    assert max(map(len, lines)) <= 80 and "row 2" in "".join(lines[2:])


def test_json_is_one_record(
    runs: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert srpo(monkeypatch, "compare", *runs, "--tokens", "400", "--format", "json") == 0
    record = json.loads(capsys.readouterr().out)
    assert [row["label"] for row in record["rows"]] == ["srpo", "grpo"]
    assert {"axis": "tokens", "limit": 400.0} in record["budgets"]
    assert record["rows"][1]["pass_at_k"]["at"]["1"]["change"]["mean"] == pytest.approx(0.3)


@pytest.mark.slow
def test_a_folder_is_written_and_warnings_come_first(
    runs: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_run(tmp_path / "other", {0: 0.2, 4: 0.5}, evaluate={"temperature": 1.0})
    out = tmp_path / "out"
    assert srpo(monkeypatch, "compare", *runs, tmp_path / "other", "--out", out) == 0
    shown = capsys.readouterr().err.splitlines()
    assert shown[0].startswith("warning: not like with like: runs differ in evaluation")
    assert (out / "index.html").exists() and shown[-1].endswith(str(out / "index.html"))


@pytest.mark.parametrize("budget", ["", "1,", "0", "-1", "x", "nan", "inf"])
def test_a_budget_is_a_number_above_0(
    budget: str,
    runs: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert srpo(monkeypatch, "compare", *runs, f"--hours={budget}") == 2
    assert "expected numbers above 0" in capsys.readouterr().err


def test_what_is_no_run_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert srpo(monkeypatch, "compare", tmp_path) == 2
    assert capsys.readouterr().err == f"error: {tmp_path}: no run here (run.json is missing)\n"
