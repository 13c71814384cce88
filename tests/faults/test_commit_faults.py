"""Whatever call of a commit fails, and wherever the power goes: the old state or the new one."""

import os
from pathlib import Path

import pytest

from pipeline.files.durable import write_json
from tests.conftest import OpenPolicy
from tests.faults.broken_disk import BrokenDisk
from tests.faults.commit_operations import campaign, operations

NAMES = list(operations(lambda: None))  # type: ignore[arg-type, return-value]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_no_failing_call_leaves_a_third_state(
    name: str, tmp_path: Path, tiny_policy: OpenPolicy
) -> None:
    policy = tiny_policy()
    calls, attempts, wrong = campaign(operations(lambda: policy)[name], tmp_path / "run")
    assert not wrong
    assert attempts >= 4 * len(calls) >= 4


def test_contents_reach_the_disk_before_their_name_and_the_name_before_the_next(
    tmp_path: Path,
) -> None:
    disk = BrokenDisk(tmp_path)
    with disk.in_place():
        write_json(tmp_path / "a.json", [1])
    assert disk.calls == ["open", "write", "fsync", "replace", "fsync of a folder"]


def test_the_broken_disk_loses_what_nobody_synced(tmp_path: Path) -> None:
    """The instrument itself: a naive writer is found out."""
    for fault, left in (("cut, names kept", b""), ("cut", None)):
        folder = tmp_path / fault
        folder.mkdir()
        disk = BrokenDisk(folder, at=3, fault=fault)  # type: ignore[arg-type]
        with disk.in_place():
            with (folder / "new").open("wb") as file:
                file.write(b"contents")
            (folder / "new").replace(folder / "final")
            os.mkdir(folder / "later")
        final = folder / "final"
        assert (final.read_bytes() if final.exists() else None) == left
        assert not (folder / "later").exists()
