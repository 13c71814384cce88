"""Requests to an object store: conditions, ranges, and what happens when they fail."""

import os
import sys
import time
from pathlib import Path

import pytest

from pipeline.errors import ConfigError, StoreError
from pipeline.remote import client, objects
from pipeline.remote.client import Address, Changed
from tests.s3_server import Server


@pytest.fixture
def folder(bucket: str) -> Address:
    return Address(bucket, "runs/first")


def test_only_the_first_creates(folder: Address) -> None:
    version = objects.create(folder / "a", b"one")
    assert objects.create(folder / "a", b"one") == version, "a retry of what succeeded"
    with pytest.raises(Changed):
        objects.create(folder / "a", b"two")
    found = objects.read(folder / "a")
    assert found is not None and found[0] == b"one"


def test_only_the_known_state_is_replaced(folder: Address) -> None:
    first = objects.create(folder / "a", b"one")
    second = objects.replace(folder / "a", b"two", first)
    with pytest.raises(Changed):
        objects.replace(folder / "a", b"three", first)
    objects.replace(folder / "a", b"three", second)
    found = objects.read(folder / "a")
    assert found is not None and found[0] == b"three"


def test_large_files_go_in_parts_and_come_in_ranges(
    folder: Address, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Server
) -> None:
    content = os.urandom(12 << 20)
    (tmp_path / "large").write_bytes(content)
    monkeypatch.setattr(objects, "PART", 5 << 20)
    monkeypatch.setattr(objects, "RANGE", 5 << 20)
    etag = objects.upload(folder / "large", tmp_path / "large")
    server.requests.clear()
    found = objects.download(folder / "large", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == content
    assert (found.etag, found.size) == (etag, len(content))
    assert [r.split()[0] for r in server.requests] == ["GET", "GET", "GET", "GET"]


def test_empty_files_are_stored_too(folder: Address, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    objects.upload(folder / "empty", tmp_path / "empty")
    assert objects.download(folder / "empty", tmp_path / "back").size == 0


def test_listing_and_folders(folder: Address) -> None:
    for name in ("run.json", "steps/000000/metrics.json"):
        objects.create(folder / name, b"{}")
    assert objects.listed(folder).keys() == {"run.json", "steps/000000/metrics.json"}
    assert objects.listed(Address(folder.bucket, "runs/fir")) == {}, "a folder, not a prefix"
    assert objects.folders(Address(folder.bucket, "")) == ["runs"]
    assert objects.has(folder / "run.json") and not objects.has(folder / "other")


def test_what_is_not_there(folder: Address, tmp_path: Path) -> None:
    assert objects.read(folder / "none") is None
    assert not objects.copy(folder / "none", folder / "other")
    objects.remove(folder / "none")
    with pytest.raises(StoreError, match="gone since it was listed"):
        objects.download(folder / "none", tmp_path / "file")
    with pytest.raises(StoreError, match="no such bucket"):
        objects.listed(Address("s3://nobody-made-it", ""))


def test_a_share_of_failing_requests_is_survived(
    folder: Address, tmp_path: Path, server: Server
) -> None:
    """A fifth of all requests fail, some of them after the work was done."""
    server.share, server.faults = 0.2, ("500", "lost", "reset")
    version = objects.create(folder / "counter", b"0")
    for number in range(1, 30):
        version = objects.replace(folder / "counter", f"{number}".encode(), version)
        (tmp_path / "file").write_bytes(os.urandom(100))
        objects.upload(folder / f"{number}", tmp_path / "file")
        objects.download(folder / f"{number}", tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == (tmp_path / "file").read_bytes()
    assert len(objects.listed(folder)) == 30
    assert {*server.failed} == {"500", "lost", "reset"}


def test_a_store_that_only_fails_is_given_up_with_one_line(
    folder: Address, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "RETRY_SECONDS", 1.0)
    client._store.cache_clear()
    server.share, server.faults = 1.0, ("500",)
    begun = time.monotonic()
    with pytest.raises(StoreError, match=r"failed for \d+ s \(limit 1 s\)") as error:
        objects.listed(folder)
    assert time.monotonic() - begun < 6
    assert "\n" not in str(error.value)


def test_a_store_that_is_not_there(folder: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "RETRY_SECONDS", 1.0)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StoreError, match=r"the store failed .* see to address and credentials"):
        objects.read(folder / "a")


def test_an_address_that_is_none(folder: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "localhost:9000")
    with pytest.raises(ConfigError, match=r"AWS_ENDPOINT_URL is localhost:9000: expected https:"):
        objects.read(folder / "a")


def test_without_obstore(folder: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore.exceptions", None)
    client._store.cache_clear()
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[remote\]'"):
        objects.listed(folder)
