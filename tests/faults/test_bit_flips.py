"""One flipped bit anywhere in a run is named before anything uses it, and repaired by command."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.session.session import Session
from flows.session.stage_runner import STAGES
from pipeline.check.check_run import check_run
from pipeline.errors import StoreError
from pipeline.files.durable import file_digest
from pipeline.housekeeping.repair import expect_readers_agree, set_aside_damage
from pipeline.run.run import Run
from pipeline.run.step_layout import STEP_STAGES, STEP_TABLES, TABLES_OF_STAGE
from tests.faults.bit_flips import Place, flipped, kind, named_by_check, places, refused_by_readers
from tests.golden.golden_run import golden_config

STEPS = 2


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of two steps with snapshots of 0, 1 and 2; never write to it."""
    folder = tmp_path_factory.mktemp("flips")
    sizes = {"generate": {"questions": 3, "rollouts": 4, "max_response_length": 12}}
    session = Session.create(
        folder / "run", golden_config(folder, {"run": {"steps": STEPS}, **sizes})
    )
    session.run_stage("evaluate", 0)
    for step in range(STEPS):
        for name in STEP_STAGES:
            session.run_stage(name, step)
        session.finish_step(step)
        session.snapshot(step + 1)
    session.run_stage("evaluate", STEPS)
    session.close()
    return folder / "run"


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_a_bit_of_every_file_and_others_are_named_by_check_and_readers(copied: Path) -> None:
    files = sum(path.is_file() for path in copied.rglob("*"))
    assert not check_run(Run.open(copied)).findings
    for place in places(copied, files + 60, seed=0):
        with flipped(place):
            where = f"{kind(copied, place.path)}: byte {place.byte}, bit {place.bit}"
            assert refused_by_readers(copied, place.path), where
            assert named_by_check(copied, place.path), where
    assert not check_run(Run.open(copied)).findings


@pytest.mark.parametrize("table", STEP_TABLES)
@pytest.mark.parametrize("suffix", [".arrow", ".json"])
def test_the_command_that_an_error_names_repairs_a_table(
    copied: Path, table: str, suffix: str
) -> None:
    path = copied / "steps" / "000001" / f"{table}{suffix}"
    whole, run = file_digest(path.with_suffix(".arrow")), Run.open(copied)
    stage = STAGES[next(s for s, tables in TABLES_OF_STAGE.items() if table in tables)]
    damage(path)
    with pytest.raises(StoreError, match=rf"repair it: srpo stage {stage.name} --run .* --step 1$"):
        run.read(table, 1)
    (aside, *_) = set_aside_damage(run, stage, 1)
    assert aside.name.startswith(f".{table}.") and aside.exists()
    session = Session.resume(copied)
    session.run_stage(stage.name, 1)
    expect_readers_agree(session.run, stage, 1)
    session.finish_if_complete(1)
    session.close()
    assert file_digest(path.with_suffix(".arrow")) == whole
    assert not check_run(Run.open(copied)).findings


def test_a_damaged_record_of_a_step_is_made_anew(copied: Path) -> None:
    path = copied / "steps" / "000001" / "metrics.json"
    whole = path.read_bytes()
    damage(path)
    run = Run.open(copied)
    assert [kept.name for kept in set_aside_damage(run, STAGES["weigh"], 1)] == [
        ".metrics.json.damaged-1"
    ]
    session = Session.resume(copied)
    session.run_stage("weigh", 1)
    session.finish_if_complete(1)
    session.close()
    assert path.read_bytes() == whole


def test_a_sound_stage_is_left_alone(copied: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in copied.rglob("*")}
    for stage in STAGES.values():
        assert set_aside_damage(Run.open(copied), stage, 1) == []
    assert {path: path.stat().st_mtime_ns for path in copied.rglob("*")} == before


def test_a_table_made_anew_must_be_the_one_that_others_were_made_from(copied: Path) -> None:
    run, stage = Run.open(copied), STAGES["weigh"]
    expect_readers_agree(run, stage, 1)
    for file in ("weights.arrow", "weights.json"):
        shutil.copy(copied / "steps/000000" / file, copied / "steps/000001" / file)
    with pytest.raises(StoreError, match=r"weights\.arrow: made anew .* but updates was made from"):
        expect_readers_agree(run, stage, 1)


def stray(folder: Path) -> Path:
    (folder / "extra.safetensors").write_bytes(b"x")
    return folder / "extra.safetensors"


def lost(folder: Path) -> Path:
    (folder / "tokenizer.json").unlink()
    return folder / "tokenizer.json"


@pytest.mark.parametrize("folder", ["tokenizer", "policy/000001"])
@pytest.mark.parametrize("change", [stray, lost])
def test_listed_folders_hold_what_they_list(
    copied: Path, folder: str, change: Callable[[Path], Path]
) -> None:
    path = change(copied / folder)
    with pytest.raises(StoreError, match=str(path)):
        _ = Run.open(copied).tokenizer_path() if folder == "tokenizer" else _snapshot(copied)
    assert str(path) in {finding.path for finding in check_run(Run.open(copied)).findings}


def _snapshot(root: Path) -> None:
    session = Session.resume(root, writes=False)
    session.prepare(1)


def damage(path: Path) -> None:
    """Flip a bit in the middle, for good."""
    middle = path.stat().st_size // 2
    data = bytearray(path.read_bytes())
    data[middle] ^= 4
    path.write_bytes(bytes(data))


def test_places_cover_every_file_and_are_the_same_for_a_seed(finished: Path) -> None:
    files = {path for path in finished.rglob("*") if path.is_file()}
    chosen = places(finished, len(files) + 20, seed=3)
    assert {place.path for place in chosen} == files
    assert chosen == places(finished, len(files) + 20, seed=3)
    assert all(isinstance(place, Place) for place in chosen)
