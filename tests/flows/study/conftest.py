"""A study of two-step runs: one is really made, and stand-ins for `srpo` copy it.

study       study("run", PLAN, "--runs", FOLDER, …): a command in this process
made        a finished run of the plan's world, with its plan
stand_in    stand_in(mode): have children be a script instead of `srpo`
"""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from flows import cli
from flows.study import children
from flows.study.__main__ import app
from pipeline.study.study_plan import World
from tests.builders.study_plans import write_plan
from tests.conftest import Srpo

StandIn = Callable[[str], None]
MADE = "main/sums/srpo/1"
SETTINGS = ("update.learning_rate=2e-4", "generate.temperature=0.9", "run.steps=2", "run.seed=1")

REAL = children.SRPO

SCRIPT = '''
"""Stands in for srpo: MADE MODE train CONFIG --run FOLDER …"""
import shutil, signal, sys, time
from pathlib import Path

made, mode, *words = sys.argv[1:]
folder = Path(words[words.index("--run" if "--run" in words else "--out") + 1])
print(*words, flush=True)
if words[0] == "warmstart":
    folder.mkdir(parents=True)
elif mode == "wait":
    def stopped(number, frame):
        print("interrupted", flush=True)
        sys.exit(130)
    signal.signal(signal.SIGINT, stopped)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").touch()
    time.sleep(60)
elif mode == "fail" and "grpo" in str(folder):
    print("error: no luck\\nno luck at all", file=sys.stderr)
    sys.exit(2)
else:
    shutil.copytree(made, folder, dirs_exist_ok=True)
    if mode == "cut":
        [path] = folder.glob("steps/000001/metrics.json")
        path.unlink()
'''


@pytest.fixture
def study(srpo: Srpo, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Srpo:
    """Return a function that runs a command of the study: exit code, output, errors."""

    def called(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["study", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.run_command(app, "study")
        printed = capsys.readouterr()
        return int(end.value.code or 0), printed.out, printed.err

    return called


def policy_in(runs: Path) -> str:
    """Return the override that names the demo policy's copy in a folder of runs."""
    world = World(title="", config=Path(), policy="data/demo/policy")
    return children.places(world, runs)[0]


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Return where the finished run will be; `made` makes it when it is first needed."""
    root = tmp_path_factory.mktemp("study")
    return SimpleNamespace(plan=write_plan(root / "plan"), run=root / "runs" / MADE)


@pytest.fixture
def made(finished: SimpleNamespace, srpo: Srpo) -> SimpleNamespace:
    """Return a finished run of the plan, and the plan's path."""
    if not finished.run.exists():
        sets = [
            word
            for setting in (policy_in(finished.run.parents[3]), *SETTINGS)
            for word in ("--set", setting)
        ]
        config = finished.plan.with_name("sums.toml")
        code, _, errors = srpo("train", config, "--run", finished.run, *sets)
        assert code == 0, errors
    return finished


@pytest.fixture
def stand_in(made: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """Return a function that has children copy the finished run, fail, or wait to be stopped."""
    script = tmp_path / "stand_in.py"
    script.write_text(SCRIPT, encoding="utf-8")

    def use(mode: str) -> None:
        words = (sys.executable, str(script), str(made.run), mode)
        monkeypatch.setattr(children, "SRPO", REAL if mode == "real" else words)

    return use


@pytest.fixture
def rows_with_one(made: SimpleNamespace, study: Srpo, stand_in: StandIn, tmp_path: Path) -> Path:
    """Return a folder of rows that has the finished run's."""
    stand_in("copy")
    rows = tmp_path / "rows"
    runs = tmp_path / "first"
    code, _, _ = study("run", made.plan, "--runs", runs, "--rows", rows, "--only", MADE)
    assert code == 0
    shutil.rmtree(runs)
    return rows
