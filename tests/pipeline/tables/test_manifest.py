"""Manifests seal themselves and say in words what differs."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.errors import StoreError
from pipeline.tables.manifest import Manifest
from tests.builders.tables import COST, origin

OLD_DIGEST = "1bad0b4d8ee80a701be6f0a2f184bda7dd4a5fabfc757a7d99a3e79f73d9410f"
"""Of `manifest()`, by the code before manifests had `write_seconds`."""


def manifest(**changes: Any) -> Manifest:
    parts: dict[str, Any] = {
        "origin": origin("teacher"),
        "rows": 2,
        "bytes": 100,
        "sha256": "ab" * 32,
        "facts": {"loss": [0.1, 1e-12], "note": None},
        "index": {"000003-0000-01": (0, 2)},
        "cost": COST,
    }
    return Manifest(**{**parts, **changes})


def test_a_round_trip(tmp_path: Path) -> None:
    sealed = manifest().sealed()
    sealed.write(tmp_path / "teacher.json")
    assert Manifest.read(tmp_path / "teacher.json") == sealed


@pytest.mark.parametrize(
    "change",
    [
        {"rows": 3},
        {"bytes": 101},
        {"sha256": "cd" * 32},
        {"facts": {}},
        {"index": None},
        {"origin": origin("teacher", stage_version=2)},
        {"cost": COST.model_copy(update={"seconds": 2.0})},
    ],
)
def test_the_digest_covers_everything(change: dict[str, Any]) -> None:
    assert manifest(**change).sealed().digest != manifest().sealed().digest


def test_a_manifest_from_before_writing_was_timed_is_read_as_it_is(tmp_path: Path) -> None:
    """Its digest covers what it has, and it has no `write_seconds`."""
    old = origin("teacher").model_copy(update={"schema_version": 1})
    sealed = manifest(origin=old).sealed()
    sealed.write(tmp_path / "old.json")
    assert "write_seconds" not in (tmp_path / "old.json").read_text()
    assert sealed.digest == OLD_DIGEST
    timed = manifest(origin=old, cost=COST.model_copy(update={"write_seconds": 0.5})).sealed()
    timed.write(tmp_path / "new.json")
    assert Manifest.read(tmp_path / "new.json").cost.write_seconds == 0.5
    assert timed.digest != sealed.digest


def test_an_unsealed_manifest_is_not_read(tmp_path: Path) -> None:
    manifest().write(tmp_path / "x.json")
    with pytest.raises(StoreError, match=r"x\.json: changed since it was written"):
        Manifest.read(tmp_path / "x.json")


def test_a_missing_manifest(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="never committed"):
        Manifest.read(tmp_path / "x.json")


def test_manifests_are_frozen_and_closed() -> None:
    with pytest.raises(ValidationError):
        manifest().rows = 3
    with pytest.raises(ValidationError):
        manifest(more=1)


def test_equal_origins_have_no_differences() -> None:
    assert origin("teacher").differences(origin("teacher")) == []


def test_differences_are_named_with_their_path() -> None:
    mine = origin("teacher", settings={"route": {"top_k": 100, "teacher": "ema"}})
    theirs = origin("teacher", settings={"route": {"top_k": 50, "teacher": "ema"}}, stage_version=2)
    assert mine.differences(theirs) == [
        "settings.route.top_k: 100, not 50",
        "stage_version: 1, not 2",
    ]


def test_a_missing_input_is_a_difference() -> None:
    mine = origin("teacher", inputs={"routes": "aa", "rollouts": "bb"})
    theirs = origin("teacher", inputs={"routes": "aa"})
    assert mine.differences(theirs) == ["inputs.rollouts: bb, not None"]
