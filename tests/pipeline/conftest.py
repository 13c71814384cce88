"""A local S3 server, a bucket of each test's own, and caches as of several machines."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.remote import client, lease
from tests.s3_server import CREDENTIALS, Server, serving

UseMachine = Callable[[str], None]


@pytest.fixture(scope="package")
def server() -> Iterator[Server]:
    with serving() as found:
        yield found


@pytest.fixture
def bucket(
    server: Server, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[str]:
    """Return the URL of an empty bucket; requests go to the local server, and don't wait long."""
    for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": server.url}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(client, "RETRY_SECONDS", 5.0)
    monkeypatch.setattr(client, "REQUEST_SECONDS", 2.0)
    monkeypatch.setattr(lease, "LEASE_SECONDS", 0.6)
    monkeypatch.setattr(lease, "POLL_SECONDS", 0.05)
    client._store.cache_clear()
    name = "".join(c if c.isalnum() else "-" for c in request.node.name.lower())[-60:].strip("-")
    yield server.make_bucket(f"b-{name}")
    server.share = 0.0
    server.failed.clear()
    client._store.cache_clear()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> UseMachine:
    """Return a function by which the test goes on as on another machine: with its own cache."""

    def use(name: str) -> None:
        monkeypatch.setenv("SRPO_CACHE", str(tmp_path / name))

    use("here")
    return use
