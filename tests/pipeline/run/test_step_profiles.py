"""Profiles of steps: sealed files, and the table over many of them, worked out by hand."""

import json
from pathlib import Path

import pytest

from pipeline.check.check_run import check_run
from pipeline.errors import StoreError
from pipeline.files.sealed_json import write_sealed
from pipeline.machine.phases import REST, PhaseTotal
from pipeline.run.step_profiles import (
    Machine,
    Profile,
    StageCost,
    lines_of,
    profile_path,
    read_profile,
    write_profile,
)
from tests.builders.step_runs import make_run
from tests.builders.tables import COST, STEP, tables

MACHINE = Machine(device="cpu", dtype="float32", threads=2, matmul_flops=100.0)
ROWS = [
    PhaseTotal("route", "forward", False, 2, 3.0, 30, 150.0),
    PhaseTotal("route", REST, False, 0, 1.0),
    PhaseTotal("route", "commit", True, 1, 9.0),
    PhaseTotal("update", REST, False, 0, 4.0),
    PhaseTotal("between", REST, False, 0, 2.0),
]


def test_a_profile_is_sealed_and_read_back(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", tables())
    assert read_profile(run, STEP) is None
    written = write_profile(run, STEP, MACHINE, ROWS)
    assert read_profile(run, STEP) == written
    assert written.seconds == 10.0
    sizes = [run.manifest(table, STEP).bytes for table in ("routes", "scores", "teacher")]
    assert written.stages["route"] == StageCost(
        tokens=COST.tokens, peak_memory_mb=COST.peak_memory_mb, bytes=sum(sizes)
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"tokens": 30', '"tokens": 31', "changed since it was written"),
        ('"phase": "forward"', '"phase": "<b>"', "changed since it was written"),
        ('"seconds": 3.0', '"seconds": NaN', "changed since it was written"),
        ("{", "", "not valid JSON"),
    ],
)
def test_another_profile_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    run = make_run(tmp_path / "run", tables())
    write_profile(run, STEP, MACHINE, ROWS)
    path = profile_path(run, STEP)
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(StoreError, match=message):
        read_profile(run, STEP)
    assert str(path) in {finding.path for finding in check_run(run).findings}


@pytest.mark.parametrize("change", [{"seconds": "long"}, {"stop": 1}])
def test_a_sealed_record_that_is_no_profile_is_refused(
    tmp_path: Path, change: dict[str, object]
) -> None:
    run = make_run(tmp_path / "run", tables())
    write_sealed(profile_path(run, STEP), {"step": STEP, **change})
    with pytest.raises(StoreError, match="not a profile; delete it"):
        read_profile(run, STEP)


def test_check_has_nothing_to_say_of_a_sound_profile(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", tables())
    before = check_run(run).findings
    write_profile(run, STEP, MACHINE, ROWS)
    assert json.loads(profile_path(run, STEP).read_text(encoding="utf-8"))["digest"]
    assert check_run(run).findings == before


def profile(step: int, rows: list[PhaseTotal], machine: Machine = MACHINE) -> Profile:
    cost = StageCost(tokens=40, peak_memory_mb=100.0 + step, bytes=1_000_000 * (step + 1))
    return Profile(step=step, machine=machine, rows=rows, stages={"route": cost, "update": cost})


def test_the_table_by_hand() -> None:
    second = [
        PhaseTotal("update", "step", False, 1, 6.0, 12, 60.0),
        PhaseTotal("route", REST, False, 0, 4.0),
        PhaseTotal("between", REST, False, 0, 0.0),
    ]
    faster = MACHINE.model_copy(update={"matmul_flops": 200.0})
    lines = lines_of([profile(0, ROWS), profile(1, second, faster)])  # 10 s each
    found = {(line.stage, line.phase): line for line in lines}
    assert list(found) == [
        ("route", ""), ("route", "forward"), ("route", REST), ("route", "commit"),
        ("update", ""), ("update", "step"), ("update", REST),
        ("between", ""), ("", ""),
    ]  # fmt: skip
    forward = found["route", "forward"]
    assert (forward.seconds, forward.share) == (1.5, 3 / 20)  # the second step had none
    assert (forward.tokens_per_second, forward.flops_per_second) == (10.0, 50.0)
    assert forward.of_rate == 0.5  # of 3 s at 100
    route = found["route", ""]
    assert (route.seconds, route.share, route.tokens_per_second) == (4.0, 0.4, 10.0)
    assert (route.flops_per_second, route.of_rate) == (150 / 8, 150 / (400 + 800))
    assert (route.peak_mb, route.written_mb) == (101.0, 1.5)
    commit = found["route", "commit"]
    assert commit.beside and commit.share is None and commit.seconds == 4.5
    whole = found["", ""]
    assert (whole.seconds, whole.share) == (10.0, 1.0)
    assert whole.of_rate == 210 / (1000 + 2000)
    assert (whole.peak_mb, whole.written_mb) == (101.0, 3.0)
    assert found["between", ""].of_rate is None and found["between", ""].peak_mb is None
    shares = [line.share for line in lines if line.stage and not line.phase]
    assert sum(share or 0.0 for share in shares) == pytest.approx(1.0)


def test_no_profiles_no_table() -> None:
    assert lines_of([]) == []
