"""`srpo runs`, as typed."""

import json
import sys
from pathlib import Path

import pytest

from flows.cli import main
from flows.session.fork_run import fork_run
from flows.session.session import Session
from pipeline.run.step_layout import STEP_STAGES
from tests.golden.golden_run import golden_config


def runs(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["srpo", "runs", *map(str, arguments)])
    monkeypatch.delitem(sys.modules, "prefect.events.worker", raising=False)  # other tests' events
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code


def test_runs_are_listed_with_what_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "runs"
    (tmp_path / "input").mkdir()
    config = golden_config(tmp_path / "input", {"generate": {"questions": 2}, "run": {"steps": 2}})
    session = Session.create(folder / "first", config)
    session.run_stage("evaluate", 0)
    for name in STEP_STAGES:
        session.run_stage(name, 0)
    session.finish_step(0)
    session.close()
    fork_run(session.run, folder / "sweep" / "[bold]", "weigh", 0, 1, ["weigh.beta=2"])
    (folder / "broken").mkdir()
    (folder / "broken" / "run.json").write_text("{")
    (folder / ".prefect").mkdir()
    monkeypatch.setenv("COLUMNS", "160")
    runs(monkeypatch, folder)
    out, err = capsys.readouterr()
    assert "warning: " in err and "run.json: not valid JSON" in err
    assert "1 of 2" in out
    assert "sweep/[bold]" in out
    assert "first@0 weigh" in out
    runs(monkeypatch, folder, "--json")
    found = {Path(row["run"]).name: row for row in json.loads(capsys.readouterr().out)}
    assert set(found) == {"first", "[bold]"}
    assert found["first"]["steps_done"] == 1
    own = sum(p.stat().st_size for p in (folder / "first").rglob("*") if p.is_file())
    assert found["first"]["bytes"] == own
    assert found["first"]["accuracy_after"] == 0
    runs(monkeypatch, tmp_path / "nowhere")
    assert "no runs in" in capsys.readouterr().out
