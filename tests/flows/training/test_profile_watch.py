"""`srpo train --profile`: which steps get a profile, and what the command prints."""

import contextlib
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from flows.session.session import Session
from flows.training.loop import Outcome, train
from flows.training.profile_watch import ProfileWatcher, print_profile, profiled
from pipeline.check.check_run import check_run
from pipeline.config.load import load_config
from pipeline.machine.phases import Profiler
from pipeline.run.run import Run
from pipeline.run.step_layout import STEP_STAGES
from pipeline.run.step_profiles import profile_path, read_profile
from tests.conftest import Srpo

SMALL = [
    "run.steps=2",
    "run.threads=1",
    "generate.questions=2",
    "generate.rollouts=2",
    "evaluate.questions=2",
    "evaluate.rollouts=1",
    "verify.workers=1",
]


def train_profiled(session: Session, console: Console) -> tuple[Outcome, ProfileWatcher]:
    with profiled(session, console) as (watcher,):
        outcome = train(session, session.run_stage, [watcher], lambda: False)
    assert isinstance(watcher, ProfileWatcher)
    return outcome, watcher


def test_every_step_that_was_seen_whole_has_a_profile(tmp_path: Path) -> None:
    session = Session.create(tmp_path / "run", load_config("demo", SMALL))
    for name in ("generate", "verify"):
        session.run_stage(name, 0)  # done before the training is profiled
    console = Console(record=True, width=100)
    _, watcher = train_profiled(session, console)
    session.close()
    assert Profiler.active is None
    run = Run.open(tmp_path / "run")
    assert read_profile(run, 0) is None
    found = read_profile(run, 1)
    assert found is not None and watcher.profiles == [found]
    assert found.machine == watcher.machine and found.machine.threads == 1
    seconds = found.stage_seconds()
    assert list(seconds) == [*STEP_STAGES, "between"]
    assert all(spent > 0 for spent in seconds.values())
    for table, stage in (("rollouts", "generate"), ("scores", "route"), ("updates", "update")):
        assert seconds[stage] >= run.manifest(table, 1).cost.seconds
    printed = console.export_text()
    assert "where the time of 1 step went" in printed
    whole = next(line for line in printed.splitlines() if "whole step" in line)
    assert "100.0%" in whole


def test_no_profiled_step_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    machine: Any = None
    print_profile(Console(), machine, [])
    assert "no step was profiled" in capsys.readouterr().out


@pytest.mark.slow
def test_the_command_goes_on_with_and_without_a_profile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, srpo: Srpo
) -> None:
    def said(*arguments: str) -> str:
        code, out, err = srpo(*arguments)
        assert code == 0, err
        return out

    monkeypatch.setenv("COLUMNS", "100")
    folder = tmp_path / "run"
    settings = [part for setting in SMALL for part in ("--set", setting)]
    printed = said("train", "demo", "--run", str(folder), "--profile", *settings)
    assert "where the time of 2 steps went" in printed
    again = ("train", "--resume", "--run", str(folder))
    assert "where the time" not in said(*again, "--set", "run.steps=3")
    assert "where the time of 1 step went" in said(*again, "--profile", "--set", "run.steps=4")
    run = Run.open(folder)
    assert [profile_path(run, step).exists() for step in range(4)] == [True, True, False, True]
    assert check_run(run).findings == []
    with contextlib.closing(
        Session.create(tmp_path / "plain", load_config("demo", SMALL))
    ) as plain:
        train(plain, plain.run_stage, [], lambda: False)
        for table in ("rollouts", "teacher", "updates"):  # a profile changes nothing
            assert run.manifest(table, 1).sha256 == plain.run.manifest(table, 1).sha256
