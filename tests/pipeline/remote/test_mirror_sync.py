"""What a command finds in a mirror: what the store has, fetched when it is needed."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.check.check_run import check_run
from pipeline.errors import StoreError
from pipeline.files.durable import remove_file, set_aside
from pipeline.housekeeping.run_listing import find_runs
from pipeline.remote import mirror_sync as opening
from pipeline.remote import objects
from pipeline.remote.client import Address
from pipeline.remote.mirror_paths import run_path
from pipeline.remote.mirror_sync import clear, is_run, mirrors, refresh
from pipeline.run.lock import RunLock
from pipeline.run.run import Run, is_taken
from tests.builders.tables import COST, STEP, config, origin, tables
from tests.pipeline.conftest import UseMachine
from tests.s3_server import Server

TABLES = ("rollouts", "weights")


def make_run(url: str) -> Run:
    root = run_path(url)
    with RunLock(root):
        run = Run.create(root, config(), {})
        for table in TABLES:
            run.commit(origin(table), tables()[table], {}, COST)
    return run


def stored(url: str) -> set[str]:
    bucket, _, key = url.removeprefix("s3://").partition("/")
    return set(objects.listed(Address(f"s3://{bucket}", key)))


def flip(path: Path) -> None:
    """Flip a bit as a disk does it: the file's time does not tell."""
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=times)


def blocks(path: Path) -> int:
    return os.stat(path).st_blocks


def test_a_run_may_be_called_as_temporary_folders_are(bucket: str, machine: UseMachine) -> None:
    make_run(f"{bucket}/runs/.first")
    machine("there")
    assert Run.open(run_path(f"{bucket}/runs/.first")).config == config()


def test_hosts_share_a_cache_where_shared_locks_want_a_file_that_can_be_read(
    bucket: str, machine: UseMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS makes POSIX locks of flock's, and so wants a file's mode to fit the kind of lock."""
    monkeypatch.setattr(fcntl, "flock", fcntl.lockf)
    make_run(f"{bucket}/runs/first")


def test_another_machine_reads_what_was_committed(
    bucket: str, machine: UseMachine, server: Server
) -> None:
    url = f"{bucket}/runs/first"
    make_run(url)
    machine("there")
    server.requests.clear()
    run = Run.open(run_path(url))
    assert len([r for r in server.requests if r.startswith("GET")]) == 1 + 1 + len(TABLES)
    path = run.table_path("weights", STEP)
    assert run.has("weights", STEP) and blocks(path) == 0, "a placeholder of the table's size"
    assert path.stat().st_size == run.manifest("weights", STEP).bytes
    assert run.read("weights", STEP).equals(tables()["weights"])
    assert blocks(path) > 0 and blocks(run.table_path("rollouts", STEP)) == 0
    server.requests.clear()
    Run.open(run_path(url)).read("weights", STEP)
    assert len(server.requests) == 1, "one listing, nothing else is new"


def test_a_cleared_mirror_takes_no_room_and_loses_nothing(
    bucket: str, machine: UseMachine, server: Server
) -> None:
    run = make_run(f"{bucket}/runs/first")
    table, own = run.table_path("weights", STEP), run.root / "stalled-1.txt"
    own.write_text("this machine's own", encoding="utf-8")
    size = table.stat().st_size
    (root, before), *others = mirrors(run_path(f"{bucket}/runs")).items()
    assert (root, others) == (run.root, []) and before >= size
    with RunLock(run.root):
        assert not clear(run.root), "a command writes to it"
        assert blocks(table) > 0
    assert clear(run.root)
    assert blocks(table) == 0 and table.stat().st_size == size and own.exists()
    assert mirrors(run.root)[run.root] <= before - size
    assert run.read("weights", STEP).equals(tables()["weights"]), "by who has opened it before"
    server.share = 1.0
    with pytest.raises(StoreError, match="the store failed"):
        clear(run.root)
    assert blocks(table) > 0, "what can't be fetched again stays"


def test_what_changes_on_the_store_is_fetched_anew(bucket: str, machine: UseMachine) -> None:
    url = f"{bucket}/first"
    make_run(url)
    machine("there")
    there = Run.open(run_path(url))
    there.read("weights", STEP)
    machine("here")
    with RunLock(run_path(url)):
        run = Run.open(run_path(url))
        run.extend(config(run={"steps": 200}))
        remove_file(run.table_path("weights", STEP))
    machine("there")
    again = Run.open(run_path(url))
    assert again.config.run.steps == 200
    assert not again.table_path("weights", STEP).exists()
    assert again.has("rollouts", STEP)


def test_a_cached_file_that_was_changed_is_fetched_anew(bucket: str, machine: UseMachine) -> None:
    run = make_run(f"{bucket}/first")
    table, record = run.table_path("weights", STEP), run.root / "run.json"
    whole = table.read_bytes()
    table.write_bytes(whole[:-1] + b"?")
    record.write_bytes(record.read_bytes() + b" ")
    assert Run.open(run.root).read("weights", STEP).equals(tables()["weights"])
    assert table.read_bytes() == whole


def test_a_bit_that_flipped_in_the_cache_is_mended(bucket: str, machine: UseMachine) -> None:
    run = make_run(f"{bucket}/first")
    flip(run.table_path("weights", STEP))
    assert Run.open(run.root).read("weights", STEP).equals(tables()["weights"])


def test_other_bytes_on_the_store_are_damage(
    bucket: str, machine: UseMachine, tmp_path: Path
) -> None:
    run = make_run(f"{bucket}/first")
    content = bytearray(run.table_path("weights", STEP).read_bytes())
    content[100] ^= 1
    (tmp_path / "bad").write_bytes(content)
    place = Address(bucket, "first") / f"steps/{STEP:06d}/weights.arrow"
    objects.upload(place, tmp_path / "bad")
    again = Run.open(run.root)
    with pytest.raises(StoreError, match=f"{place}: bytes differ.*--run {bucket}/first --step"):
        again.read("weights", STEP)
    with RunLock(run.root), pytest.raises(StoreError, match="bytes differ"):
        again.commit(origin("weights"), tables()["weights"], {}, COST)
    with RunLock(run.root):
        set_aside(again.table_path("weights", STEP))
        again.commit(origin("weights"), tables()["weights"], {}, COST)
    machine("there")
    assert Run.open(run_path(f"{bucket}/first")).read("weights", STEP) is not None
    assert f"steps/{STEP:06d}/.weights.arrow.damaged-1" in stored(f"{bucket}/first")


def test_a_run_inside_another_keeps_the_folder_that_it_writes_to_next(
    bucket: str, machine: UseMachine
) -> None:
    make_run(f"{bucket}/first")
    inner = run_path(f"{bucket}/first/forks/inner")
    with RunLock(inner):
        Run.create(inner, config(), {})
        (inner / "steps" / "000007").mkdir(parents=True)
        refresh(run_path(f"{bucket}/first"))
        assert (inner / "steps" / "000007").exists()


def test_what_another_machine_set_aside_stays(bucket: str, machine: UseMachine) -> None:
    make_run(f"{bucket}/first")
    for name in ("here", "there"):
        machine(name)
        run = Run.open(run_path(f"{bucket}/first"))
        with RunLock(run.root):
            set_aside(run.table_path("weights", STEP))
            run.commit(origin("weights"), tables()["weights"], {}, COST)
    kept = {f"steps/{STEP:06d}/.weights.arrow.damaged-{number}" for number in (1, 2)}
    assert kept <= stored(f"{bucket}/first")


def test_what_was_not_stored_is_made_again(bucket: str, machine: UseMachine) -> None:
    """A command was killed between its disk and the store."""
    run = make_run(f"{bucket}/first")
    beside = run.table_path("weights", STEP).with_name("verdicts.arrow")
    beside.write_bytes(b"left over")
    (run.root / "stalled-1.txt").write_text("stacks")
    refresh(run.root)
    assert not beside.exists()
    assert (run.root / "stalled-1.txt").exists(), "this machine's own"


def test_a_listing_of_several_moments_is_made_again(
    bucket: str, machine: UseMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(f"{bucket}/first")
    real, listings = objects.listed, []

    def listed(folder: Address) -> dict[str, objects.Object]:
        listings.append(folder)
        found = real(folder)
        if len(listings) == 1:
            del found[f"steps/{STEP:06d}/weights.arrow"]
        return found

    monkeypatch.setattr(objects, "listed", listed)
    machine("there")
    assert Run.open(run_path(f"{bucket}/first")).has("weights", STEP)
    assert len(listings) == 2


def test_no_run(bucket: str, machine: UseMachine) -> None:
    root = run_path(f"{bucket}/none")
    with pytest.raises(StoreError, match=f"^{bucket}/none: no run here"):
        Run.open(root)
    assert not is_run(root) and not is_taken(root) and not root.exists()


def test_runs_are_found(bucket: str, machine: UseMachine) -> None:
    urls = [f"{bucket}/runs/{name}" for name in ("a", "sweep/x=1", "sweep/x=2")]
    for url in urls:
        make_run(url)
    for name in ("here", "there"):
        machine(name)
        found = find_runs(run_path(f"{bucket}/runs"))
        assert [f"{root}" for root in found] == urls
    assert find_runs(run_path(f"{bucket}/runs/a/steps")) == []


def test_a_run_that_is_gone_is_not_found(bucket: str, machine: UseMachine) -> None:
    make_run(f"{bucket}/runs/a")
    for name in stored(f"{bucket}/runs/a"):
        objects.remove(Address(bucket, "runs/a") / name)
    assert find_runs(run_path(f"{bucket}/runs")) == []


def test_a_run_inside_is_of_itself(bucket: str, machine: UseMachine) -> None:
    make_run(f"{bucket}/first")
    make_run(f"{bucket}/first/evaluations/abc")
    machine("there")
    run = Run.open(run_path(f"{bucket}/first"))
    assert not (run.root / "evaluations" / "abc").exists()
    assert [f"{r}" for r in find_runs(run.root / "evaluations")] == [
        f"{bucket}/first/evaluations/abc"
    ]
    refresh(run.root)
    assert (run.root / "evaluations" / "abc" / "run.json").exists()


def test_readers_leave_a_mirror_alone_that_a_command_writes_to(
    bucket: str, machine: UseMachine, server: Server
) -> None:
    """What is on its way to the store is not removed; in another process as in this one."""
    run = make_run(f"{bucket}/first")
    script = (
        "import sys; from pipeline.run.run import Run; from pipeline.remote.mirror_paths import "
    )
    script += "run_path; Run.open(run_path(sys.argv[1]))"
    with RunLock(run.root):
        coming = run.table_path("weights", STEP).with_name("verdicts.arrow")
        coming.write_bytes(b"on its way")
        server.requests.clear()
        refresh(run.root)
        subprocess.run([sys.executable, "-c", script, f"{run.root}"], check=True, timeout=60)
        assert coming.exists()
        assert all(request.endswith("/.lock") for request in server.requests)
    refresh(run.root)
    assert not coming.exists()


def test_a_cache_that_keeps_no_nanoseconds_is_refused(
    bucket: str, machine: UseMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.utime

    def coarse(path: Path, ns: tuple[int, int]) -> None:
        real(path, ns=(ns[0] // 10**9 * 10**9, ns[1] // 10**9 * 10**9))

    monkeypatch.setattr(os, "utime", coarse)
    with pytest.raises(StoreError, match=r"keeps no nanoseconds.*set SRPO_CACHE"):
        refresh(run_path(f"{bucket}/first"))


def test_who_opens_a_mirror_for_too_long_is_not_waited_for(
    bucket: str, machine: UseMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = run_path(f"{bucket}/first")
    monkeypatch.setattr(opening, "OPEN_SECONDS", 0.2)
    with opening._marker(root) as marker:
        fcntl.flock(marker, fcntl.LOCK_EX)
        with pytest.raises(StoreError, match=r"waited 0.2 s for another command of this machine"):
            refresh(root)


def test_a_check_mends_the_cache_and_names_what_is_damaged_on_the_store(
    bucket: str, machine: UseMachine, tmp_path: Path
) -> None:
    run = make_run(f"{bucket}/first")
    table = run.table_path("weights", STEP)
    whole = table.read_bytes()
    flip(table)
    told = [f for f in check_run(Run.open(run.root)).findings if f.path == f"{table}"]
    assert told == [] and table.read_bytes() == whole
    (tmp_path / "bad").write_bytes(whole[:-100] + bytes(100))
    place = Address(bucket, "first") / f"steps/{STEP:06d}/weights.arrow"
    objects.upload(place, tmp_path / "bad")
    found = [f for f in check_run(Run.open(run.root)).findings if f.path == f"{place}"]
    assert ["SHA-256" in finding.expected for finding in found] == [True]
