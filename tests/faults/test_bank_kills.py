"""A run that is killed in its bank, or between bank and route, goes on as if nothing had been."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline.check.check_run import check_run
from pipeline.run.run import Run
from tests.faults.bank_until_killed import STEP, train
from tests.faults.train_kills import fingerprint
from tests.paths import PROJECT


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return train(tmp_path_factory.mktemp("bank"), "undisturbed")


@pytest.mark.parametrize("place", ["bank", "route"])
def test_a_killed_run_has_the_files_of_an_undisturbed_one(place: str, undisturbed: Path) -> None:
    folder = undisturbed.parent
    module = "tests.faults.bank_until_killed"
    arguments = [sys.executable, "-m", module, str(folder), f"in-{place}", place]
    killed = subprocess.run(arguments, cwd=PROJECT, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    here = folder / f"in-{place}" / "steps" / f"{STEP:06d}"
    assert not (here / "routes.json").exists() and not (here / "metrics.json").exists()
    if place == "bank":
        assert (here / "bank.arrow").exists() and not (here / "bank.json").exists()
    run = train(folder, f"in-{place}")
    assert files_of(run) == files_of(undisturbed)
    assert Run.open(run).manifest("bank", STEP).rows > 0
    assert not check_run(Run.open(run)).findings


def files_of(run: Path) -> dict[str, str]:
    """Return a digest of each file but the flat records, whose alarms name the folder."""
    return {name: found for name, found in fingerprint(run).items() if "metrics" not in name}
