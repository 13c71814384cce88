"""A run with adapters that is killed in an update or a snapshot goes on as if nothing had been."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline.check.check_run import check_run
from pipeline.run.run import Run
from pipeline.viewer.run_settings import policies
from tests.faults.train_kills import fingerprint
from tests.faults.train_until_killed import train
from tests.paths import PROJECT


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    train(run)
    return run


@pytest.mark.parametrize(
    ("place", "left"),
    [("update", "steps/000001/weights.json"), ("snapshot", "policy/.000002.tmp/tokenizer.json")],
)
def test_a_killed_run_has_the_files_of_an_undisturbed_one(
    place: str, left: str, undisturbed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    arguments = [sys.executable, "-m", "tests.faults.train_until_killed", str(run), place]
    killed = subprocess.run(arguments, cwd=PROJECT, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (run / left).exists()
    assert Run.open(run).snapshots() == [0, 1]
    train(run)
    found = fingerprint(run)
    assert found == fingerprint(undisturbed)
    assert "policy/000003/adapter_model.safetensors" in found
    assert not check_run(Run.open(run)).findings


def test_its_page_says_what_is_trained(undisturbed: Path) -> None:
    run = Run.open(undisturbed)
    assert dict(policies(run, run.steps_of("rollouts")))["trained"].startswith(
        "adapters of rank 4: "
    )
