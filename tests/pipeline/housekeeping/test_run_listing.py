"""The runs below a folder."""

from pathlib import Path

from pipeline.housekeeping.run_listing import find_runs
from pipeline.run.run import Run
from tests.builders.tables import config


def test_runs_are_found_in_nested_folders_but_not_in_runs(tmp_path: Path) -> None:
    places = ["first", "main/level-1/srpo/3", "main/level-2/srpo/3"]
    for place in [*places, "first/inner", ".hidden/run"]:
        Run.create(tmp_path / place, config(), {})
    assert find_runs(tmp_path) == [tmp_path / place for place in places]
