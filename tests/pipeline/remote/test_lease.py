"""One writer per run on a store: taken, renewed, lost, left behind."""

import json
import time
from pathlib import Path

import pytest

from pipeline.errors import StoreError
from pipeline.remote import client, lease, objects
from pipeline.remote.client import Address
from pipeline.remote.lease import Lease
from pipeline.remote.mirror_paths import run_path
from pipeline.remote.upload import publish
from pipeline.run.lock import RunLock
from pipeline.run.run import Run
from tests.builders.tables import COST, config, origin, tables
from tests.pipeline.conftest import UseMachine
from tests.s3_server import Server

ME = {"command": "srpo train", "process": 7, "host": "one", "since": "2026-01-01T00:00:00+00:00"}


def content(bucket: str) -> dict[str, object]:
    found = objects.read(Address(bucket, "first/.lock"))
    assert found is not None
    record: dict[str, object] = json.loads(found[0])
    return record


def lease_of(root: Path) -> Lease:
    holding = RunLock._held[root]._remote
    assert holding is not None
    return holding._lease


def stop_renewing(held: Lease) -> None:
    """As SIGKILL does."""
    held._ended.set()


def test_a_living_holder_is_told_from_a_dead_one(
    bucket: str, machine: UseMachine, capsys: pytest.CaptureFixture[str]
) -> None:
    first = Lease(run_path(f"{bucket}/first"), ME)
    machine("there")
    line = r"first: another command is writing to it: srpo train \(process 7 on one, since 2026"
    with pytest.raises(StoreError, match=line):
        Lease(run_path(f"{bucket}/first"), ME)
    assert "if it doesn't show itself within 0.6 s it is gone" in capsys.readouterr().err
    stop_renewing(first)
    begun = time.monotonic()
    second = Lease(run_path(f"{bucket}/first"), {**ME, "host": "two"})
    assert 0.5 < time.monotonic() - begun < 5
    assert content(bucket)["host"] == "two"
    second.release()


def test_one_that_was_released_is_free_at_once(bucket: str, machine: UseMachine) -> None:
    Lease(run_path(f"{bucket}/first"), ME).release()
    assert content(bucket) == {"free": True}
    machine("there")
    begun = time.monotonic()
    Lease(run_path(f"{bucket}/first"), ME).release()
    assert time.monotonic() - begun < 0.5


def test_one_left_by_a_command_of_the_same_mirror_is_taken_over_at_once(
    bucket: str, machine: UseMachine, capsys: pytest.CaptureFixture[str]
) -> None:
    stop_renewing(Lease(run_path(f"{bucket}/first"), ME))
    second = Lease(run_path(f"{bucket}/first"), ME)
    assert capsys.readouterr().err == ""
    second.release()


def test_it_is_renewed(bucket: str, machine: UseMachine) -> None:
    held = Lease(run_path(f"{bucket}/first"), ME)
    deadline = time.monotonic() + 10
    while content(bucket)["beat"] == 0:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    held.release()
    assert content(bucket) == {"free": True}


def test_who_lost_the_lease_commits_nothing_more(bucket: str, machine: UseMachine) -> None:
    root = run_path(f"{bucket}/first")
    with RunLock(root) as lock:
        run = Run.create(root, config(), {})
        stop_renewing(lease_of(root))
        machine("there")
        with RunLock(run_path(f"{bucket}/first")):
            machine("here")
            before = objects.listed(Address(bucket, "first")).keys()
            with pytest.raises(
                StoreError, match=r"taken over by .*ends before it commits anything"
            ):
                run.commit(origin("weights"), tables()["weights"], {}, COST)
            assert objects.listed(Address(bucket, "first")).keys() == before
            machine("there")
        machine("here")
        lock.release()


def test_who_was_asleep_and_alone_goes_on(bucket: str, machine: UseMachine) -> None:
    held = Lease(run_path(f"{bucket}/first"), ME)
    stop_renewing(held)
    time.sleep(0.7)
    held.expect_held()
    assert content(bucket)["beat"] == 1


def test_a_renewal_whose_answer_never_came_is_no_other_command(
    bucket: str, machine: UseMachine, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Lease(run_path(f"{bucket}/first"), ME)
    stop_renewing(held)
    time.sleep(0.7)
    monkeypatch.setattr(client, "RETRY_SECONDS", 0.5)
    client._store.cache_clear()
    server.share, server.faults = 1.0, ("lost",)
    with pytest.raises(StoreError, match="the store failed"):
        held.expect_held()
    server.share = 0.0
    assert content(bucket)["beat"] == 1, "it was renewed"
    held.expect_held()
    held.release()
    assert content(bucket) == {"free": True}


def test_who_loses_the_lease_amid_a_snapshot_stores_no_more_of_it(
    bucket: str, machine: UseMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, stored = run_path(f"{bucket}/first"), Address(bucket, "first/policy/000001")
    upload = objects.upload

    def slow(address: Address, source: Path) -> str:
        etag = upload(address, source)
        if address.key.endswith("/a.txt"):  # while it is sent, the machine sleeps
            stop_renewing(lease_of(root))
            machine("there")
            RunLock(run_path(f"{bucket}/first")).release()
            machine("here")
        return etag

    monkeypatch.setattr(objects, "upload", slow)
    with RunLock(root):
        snapshot = root / "policy" / "000001"
        snapshot.mkdir(parents=True)
        for name in ("a.txt", "state.json"):
            (snapshot / name).write_text(name)
        with pytest.raises(StoreError, match="ends before it commits anything"):
            publish(snapshot)
    assert objects.listed(stored).keys() == {"a.txt"}


def test_nothing_is_stored_without_the_lock(bucket: str, machine: UseMachine) -> None:
    with pytest.raises(StoreError, match="doesn't hold the lock of its run"):
        Run.create(run_path(f"{bucket}/first"), config(), {})


@pytest.mark.parametrize("ignored", ["If-None-Match", "If-Match"])
def test_a_store_without_conditions_is_refused(
    ignored: str, bucket: str, machine: UseMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = objects._conditionally

    def regardless(address: Address, content: bytes, mode: object) -> objects.Version:
        known = (mode == "create") == (ignored == "If-Match")
        return real(address, content, mode if known else "overwrite")

    monkeypatch.setattr(objects, "_conditionally", regardless)
    with pytest.raises(StoreError, match=rf"ignores conditional writes \({ignored}\)"):
        Lease(run_path(f"{bucket}/first"), ME)


def test_anybodys_lock_object_ends_in_a_line(
    bucket: str, machine: UseMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for text in (b"\xff", b"[]", b'{"lease_seconds": 1e9}', b""):
        objects.remove(Address(bucket, "first/.lock"))
        objects.create(Address(bucket, "first/.lock"), text)
        Lease(run_path(f"{bucket}/first"), ME).release()


def test_a_store_that_fails_at_the_end_does_not_hold_the_command(
    bucket: str, machine: UseMachine, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Lease(run_path(f"{bucket}/first"), ME)
    server.share, server.faults = 1.0, ("500",)
    monkeypatch.setattr(client, "RETRY_SECONDS", 0.5)
    client._store.cache_clear()
    held.release()
    assert lease.LEASE_SECONDS < 1, "the lease ends by itself"
