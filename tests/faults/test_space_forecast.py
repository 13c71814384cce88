"""The projected need against real runs and real disks."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.session.session import Session
from flows.training.disk_watch import DiskSpaceWatcher, disk_space_line, disk_space_warnings
from pipeline.config.sections import Config
from pipeline.errors import StoreError
from pipeline.housekeeping.space_forecast import needed
from tests.faults.small_disk import SmallDisk, mounted
from tests.faults.test_disk import At, go_on
from tests.golden.golden_run import golden_config

STEPS = 4


def settings(folder: Path, **run: object) -> Config:
    values = {"steps": STEPS, "snapshot_every": 2, **run}
    return golden_config(folder, {"run": values, "generate": {"questions": 4, "rollouts": 4}})


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return settings(tmp_path_factory.mktemp("input"))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    found = mounted(tmp_path / "disk", 20)
    yield found
    found.unmount()


def size(root: Path) -> int:
    return sum(path.stat().st_size for path in root.rglob("*") if path.is_file())


def test_the_projection_of_a_real_run(config: Config, tmp_path: Path) -> None:
    """Nothing seen: never too low at most, within a factor of 2 likely; then within a fifth."""
    session = Session.create(tmp_path / "run", config)
    root, facts = session.run.root, session.space_facts()
    before = needed(config, facts).total
    begun = size(root)
    left = {}

    def look() -> None:
        left[size(root)] = needed(config, facts, session.run).total

    go_on(session, At("snapshot", 2, look))
    made = size(root)
    assert made <= before.most
    assert made / 2 <= before.likely <= 2 * made
    ((halfway, need),) = left.items()
    assert begun < halfway < made
    assert need.likely == pytest.approx(made - halfway, rel=0.2)
    assert need.most >= made - halfway
    assert needed(config, facts, session.run).total.likely == 0


def test_a_run_that_will_not_fit_is_refused_before_anything_is_written(
    disk: SmallDisk, config: Config
) -> None:
    disk.fill(400_000)
    root = disk.root / "run"
    with pytest.raises(StoreError, match=r"likely needs .* more") as caught:
        Session.create(root, config)
    line = str(caught.value)
    assert "\n" not in line
    for part in (
        "snapshots ",
        "its disk has ",
        "run.keep_teacher_tables=1 saves ",
        "route.top_k=8 saves ",
        "route.kept_dtype=float16 saves ",
        "run.steps=1 saves ",
    ):
        assert part in line
    assert not root.exists()
    disk.free()
    Session.create(root, config).close()


def test_a_run_that_may_not_fit_is_warned_of(disk: SmallDisk, config: Config) -> None:
    session = Session.create(disk.root / "run", config)
    need = needed(config, session.space_facts(), session.run).total
    assert disk_space_warnings(session) == []
    assert "free" in disk_space_line(session)
    disk.fill(int((need.most + need.likely) / 2))
    (warning,) = disk_space_warnings(session)
    assert "may fill its disk: needs at most" in warning
    disk.free()
    disk.fill(int(need.likely / 2))
    with pytest.raises(StoreError, match=r"run\.keep_teacher_tables=.*; srpo prune"):
        disk_space_warnings(session)
    session.close()


def test_it_is_said_once_that_the_disk_will_be_full(
    disk: SmallDisk, config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    session = Session.create(disk.root / "run", config)
    watcher = DiskSpaceWatcher(session)
    watcher.step_ended(1, {})
    assert not capsys.readouterr().err
    disk.fill(100_000)
    for done in (2, 3):
        watcher.step_ended(done, {})
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "will be full before the end" in said and "srpo prune --dry-run" in said
    session.close()
