"""What `--runner` says, and what it refuses."""

import importlib.util

import pytest

from flows.placing import Place
from pipeline.errors import ConfigError


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


def test_processes_have_no_address() -> None:
    with pytest.raises(ConfigError, match=r"expected processes:N"):
        Place.of("processes:2@tcp://10.0.0.1:1")


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"prefect_ray|ray is not installed: pip .*srpo\[ray\]"):
        Place.of("ray:2")
