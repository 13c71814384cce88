"""What `--runner` says, and what it refuses."""

import importlib.util
import socket
from concurrent.futures.process import BrokenProcessPool

import pytest

from flows.workers.place import Place, cluster_of
from pipeline.errors import ConfigError, SrpoError


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("processes:4", Place("processes", 4)),
        ("ray:2", Place("ray", 2)),
        ("ray:16@ray://head:10001", Place("ray", 16, "ray://head:10001")),
        ("dask:8@tcp://10.0.0.1:8786", Place("dask", 8, "tcp://10.0.0.1:8786")),
    ],
)
def test_a_place_is_read_and_written(text: str, place: Place) -> None:
    assert Place.of(text) == place
    assert str(place) == text


@pytest.mark.parametrize("text", ["", "ray", "ray:0", "ray:", "ray:-1", "threads:2", "ray:2@"])
def test_what_is_no_place_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"expected processes:N, ray:N or dask:N"):
        Place.of(text)


@pytest.mark.parametrize(
    "text",
    [
        "processes:2@tcp://10.0.0.1:1",
        "ray:2@head",
        "ray:2@tcp://head:10001",
        "dask:2@ray://head:10001",
        "dask:2@tcp://10.0.0.1",
        "dask:2@tcp://10.0.0.1:1/x",
    ],
)
def test_an_address_is_of_its_kind(text: str) -> None:
    with pytest.raises(ConfigError, match=r"expected processes:N"):
        Place.of(text)


@pytest.mark.parametrize("kind", ["ray:2@ray", "dask:2@tcp"])
def test_an_address_where_nobody_listens_is_one_line(
    kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        place = Place.of(f"{kind}://127.0.0.1:{taken.getsockname()[1]}")
        with (
            pytest.raises(SrpoError, match=rf"--runner {place}: no workers there: Connection"),
            cluster_of(place),
        ):
            raise AssertionError("there is none")
    assert capfd.readouterr() == ("", "")


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"prefect_ray|ray is not installed: .*pip .*\.\[ray\]"):
        Place.of("ray:2")


@pytest.mark.parametrize(
    ("text", "error", "lost"),
    [
        ("processes:2", BrokenProcessPool("a process ended"), True),
        ("processes:2", ConnectionError("refused"), False),
        ("ray:2", ConnectionError("refused"), True),
        ("ray:2", Exception("Ray Client is not connected. Please connect by calling …"), True),
        ("ray:2", Exception("something else"), False),
        ("dask:2", RuntimeError("Error during deserialization of the task graph"), True),
        ("dask:2", RuntimeError("something else"), False),
    ],
)
def test_a_loss_is_told_from_other_errors(text: str, error: Exception, lost: bool) -> None:
    assert Place.of(text).lost(error) == lost
