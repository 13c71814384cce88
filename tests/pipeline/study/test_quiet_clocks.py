"""The clocks of a study's variants, from runs that had the machine to themselves."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import StoreError
from pipeline.study.quiet_clocks import read_clocks

SECONDS = {"generate": [1.0, 2.0], "update": [0.5, 0.5], "bank": [None, None]}


def write(folder: Path, name: str, seconds: dict[str, list[Any]]) -> None:
    path = folder / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    made = {"commit": "0123abc", "processor": "any", "load": 0.9}
    path.write_text(json.dumps({"name": name, "seconds": seconds, **made}))


def test_a_clock_has_the_seconds_of_each_step_as_means_over_runs(tmp_path: Path) -> None:
    write(tmp_path, "main/level-1/srpo/0", SECONDS)
    write(tmp_path, "main/level-1/srpo/1", {**SECONDS, "generate": [2.0, 4.0]})
    write(tmp_path, "stress/level-1/srpo/0", {"generate": [5.0]})
    assert read_clocks(tmp_path) == {
        "main/level-1/srpo": {"generate": [1.5] * 10 + [3.0] * 10, "update": [0.5] * 20},
        "stress/level-1/srpo": {"generate": [5.0] * 10},
    }


def test_without_quiet_runs_there_are_no_clocks(tmp_path: Path) -> None:
    assert read_clocks(tmp_path / "none") == {}


def test_runs_of_different_length_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "main/level-1/srpo/0", SECONDS)
    write(tmp_path, "main/level-1/srpo/1", {"generate": [2.0]})
    with pytest.raises(StoreError, match=r"srpo/0: expected quiet runs of equal length.*\[1, 2\]"):
        read_clocks(tmp_path)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    write(tmp_path, "main/level-1/srpo/0", {"generate": ["soon"]})
    with pytest.raises(StoreError, match=r"0\.json: no quiet run"):
        read_clocks(tmp_path)
