"""A run at a URL goes on elsewhere with the banks that it would have had here."""

import shutil
from pathlib import Path

from flows.session.session import Session
from pipeline.check.check_run import check_run
from pipeline.remote.mirror_paths import run_path
from pipeline.run.run import Run
from tests.builders.bank_runs import bank_config, bank_run, train_on
from tests.pipeline.conftest import UseMachine

BEGUN, ALL = 3, 5


def test_the_bank_is_made_from_what_another_machine_stored(
    bucket: str, machine: UseMachine, tmp_path: Path
) -> None:
    """There, no table of the earlier steps is on the disk before the bank asks for it."""
    here = bank_run(tmp_path / "local", ALL)
    root = run_path(f"{bucket}/first")
    train_on(Session.create(root, bank_config(tmp_path / "local")), BEGUN)
    machine("there")
    shutil.rmtree(tmp_path / "here", ignore_errors=True)
    there = train_on(Session.resume(run_path(f"{bucket}/first")), ALL)
    for step in range(ALL):
        assert there.manifest("bank", step).sha256 == here.manifest("bank", step).sha256
    assert sum(there.manifest("bank", step).rows for step in range(BEGUN, ALL)) > 0
    assert not check_run(Run.open(there.root)).findings
