"""`srpo check` and `srpo diff` as commands: what they print, and their exit codes."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flows.cli import main
from flows.reruns.replay import Plan, replay
from pipeline.run.run import Run
from tests.golden.golden_run import make_run
from tests.pipeline.check.damage import flip, set_value

Srpo = Callable[..., int]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    session = make_run(tmp_path_factory.mktemp("sound"), {"generate": {"questions": 3}})
    session.run_stage("evaluate", 0)
    session.close()
    yield session.run.root


@pytest.fixture
def run(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "run"))


@pytest.fixture
def srpo(monkeypatch: pytest.MonkeyPatch) -> Srpo:
    def call(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["srpo", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code if isinstance(end.value.code, int) else 0

    return call


@pytest.mark.parametrize("command", ["check", "diff"])
def test_help_has_an_example_and_the_exit_codes(
    command: str, srpo: Srpo, capsys: pytest.CaptureFixture[str]
) -> None:
    assert srpo(command, "--help") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"Example: srpo {command}" in shown and "Exit code 0:" in shown


def test_a_sound_run(sound: Path, srpo: Srpo, capsys: pytest.CaptureFixture[str]) -> None:
    assert srpo("check", sound) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("17 tables, ") and line.endswith(": no findings")


def test_a_broken_run(run: Path, srpo: Srpo, capsys: pytest.CaptureFixture[str]) -> None:
    flip(run / "steps/000000/weights.arrow")
    (run / "steps/000001/scores.json").unlink()
    assert srpo("check", run) == 1
    broken = [line for line in capsys.readouterr().out.splitlines() if line.startswith("broken:")]
    assert sorted(line.split(": ")[1] for line in broken) == [
        str(run / "steps/000000/weights.arrow"),
        str(run / "steps/000001/scores.json"),
    ]
    assert f"run: srpo stage weigh --run {run} --step 0" in "".join(broken)


def test_what_can_not_be_checked(
    tmp_path: Path, sound: Path, srpo: Srpo, capsys: pytest.CaptureFixture[str]
) -> None:
    assert srpo("check", tmp_path / "nowhere") == 2
    assert "no run here" in capsys.readouterr().err
    assert srpo("check", sound, "--deep") == 2
    assert "give both --deep and --step N" in capsys.readouterr().err
    assert srpo("check", sound, "--deep", "--step", 9) == 2
    assert "never committed" in capsys.readouterr().err


def test_deep(run: Path, srpo: Srpo, capsys: pytest.CaptureFixture[str]) -> None:
    assert srpo("check", run, "--deep", "--step", 1) == 0
    assert capsys.readouterr().out.rstrip().endswith("no disagreements")
    set_value(run / "steps/000001/weights.arrow", "weight", 0, lambda old: old * 1.01)
    assert srpo("check", run, "--deep", "--step", 1) == 1
    out = capsys.readouterr().out
    assert "differs: weight 000001-" in out and "disagreements" in out


def test_diff(sound: Path, tmp_path: Path, srpo: Srpo, capsys: pytest.CaptureFixture[str]) -> None:
    assert srpo("diff", sound, sound) == 0
    assert capsys.readouterr().out.startswith("no difference: all 17 tables")
    fork = tmp_path / "fork"
    parent = Run.open(sound)
    replay(parent, fork, Plan.of(parent, "weigh", "update", None), ["weigh.beta=2"]).close()
    assert srpo("diff", sound, fork) == 1
    out = capsys.readouterr().out
    first = "first difference: step 0, table weights (stage weigh): raw_weight, weight in "
    assert out.startswith(first)
    assert "weigh.beta: 1, 2" in out and "changed verdicts" not in out


def test_diff_bounds_what_it_lists(
    run: Path, sound: Path, srpo: Srpo, capsys: pytest.CaptureFixture[str]
) -> None:
    for row in range(3):
        path = run / "steps/000000/verdicts.arrow"
        set_value(path, "prediction", row, "\x1b[31m\u202e" + "x" * 100)
    assert srpo("diff", sound, run, "--limit", 2) == 1
    out = capsys.readouterr().out
    assert "3 changed verdicts:" in out and "… and 1 more" in out
    assert "\x1b" not in out and "\u202e" not in out and "x" * 70 not in out
    assert srpo("diff", sound, run, "--limit", 2, "--format", "json") == 1
    record = json.loads(capsys.readouterr().out)
    assert record["equal"] is False and record["changed_verdicts"] == 3
    assert len(record["verdicts"]) == 2
    assert record["tables"][0]["columns"] == ["prediction"]
