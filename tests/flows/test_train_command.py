"""The command itself, in a process of its own: interrupted, killed, resumed; on real datasets."""

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from flows.session.session import Session
from flows.training.loop import train
from pipeline.config.load import load_config
from pipeline.run.step_layout import STEP_TABLES
from tests.conftest import OwnServer, Srpo
from tests.paths import PROJECT

pytestmark = pytest.mark.slow

DATASETS = PROJECT.parent / "shared" / "datasets"
SMALL = [
    "run.steps=4",
    "run.snapshot_every=3",
    "generate.questions=8",
    "evaluate.questions=4",
    "evaluate.rollouts=2",
    "verify.workers=1",
]
LIMIT_SECONDS = 240


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "flows.cli", *arguments]


def train_demo(run: Path) -> list[str]:
    settings = [part for setting in SMALL for part in ("--set", setting)]
    return command("train", "demo", "--run", str(run), *settings)


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + LIMIT_SECONDS
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.01)


def digests(run: Path) -> dict[str, str]:
    return {
        str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(run.rglob("*.arrow"))
    }


def processes_about(folder: Path) -> list[psutil.Process]:
    """Return living processes whose command line or working folder lies in `folder`."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd", "status"]):
        facts = process.info
        named = any(str(folder) in part for part in facts["cmdline"] or [])
        inside = str(facts["cwd"] or "").startswith(str(folder))
        if (named or inside) and facts["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    with contextlib.closing(Session.create(run, load_config("demo", SMALL))) as session:
        train(session, session.run_stage, [], lambda: False)
    return digests(run)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)], ids=["SIGINT", "SIGKILL"]
)
def test_a_run_that_was_ended_goes_on_to_the_same_tables(
    number: signal.Signals,
    code: int,
    tmp_path: Path,
    own_server: OwnServer,
    srpo: Srpo,
    undisturbed: dict[str, str],
) -> None:
    values = {k: v for k, v in os.environ.items() if k != "PREFECT_API_URL"}
    environment = {**values, "PYTHONPATH": str(PROJECT)}
    own_server(tmp_path)
    run = tmp_path / "run"
    process = subprocess.Popen(
        train_demo(run), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for(run / "steps" / "000001" / "rollouts.json")
    process.send_signal(number)
    out, _ = process.communicate(timeout=LIMIT_SECONDS)
    assert process.returncode == code
    if number == signal.SIGINT:
        assert f"srpo train --resume --run {run}" in out
        # The step in hand may have ended before the signal came.
        kept = [run / "policy" / f"{done:06d}" / "state.json" for done in (1, 2)]
        assert any(file.exists() for file in kept)
    deadline = time.monotonic() + 30
    while left := processes_about(tmp_path):
        assert time.monotonic() < deadline, f"still there: {left}"
        time.sleep(0.2)
    said = srpo("train", "--resume", "--run", run)
    assert said[0] == 0, said
    assert digests(run) == undisturbed


@pytest.mark.parametrize(
    ("preset", "path"),
    [
        ("smoke-science-qa", DATASETS / "sciknoweval" / "chemistry"),
        ("smoke-tool-use", DATASETS / "toolalpaca" / "test.json"),
    ],
)
def test_real_prompts_pass_every_stage(preset: str, path: Path, tmp_path: Path, srpo: Srpo) -> None:
    if not path.exists():
        pytest.skip(f"the dataset {path} is not on this machine")
    run = tmp_path / "run"
    changes = [f"data.path={path}", "run.steps=1", "evaluate.questions=1"]
    settings = [part for change in changes for part in ("--set", change)]
    code, _, error = srpo("train", preset, "--run", run, *settings)
    assert code == 0, error
    found = {p.stem for p in (run / "steps" / "000000").glob("*.arrow")}
    assert found == set(STEP_TABLES)
    assert sorted(p.stem for p in (run / "evaluations").glob("*.arrow")) == ["000000", "000001"]
