"""What `--runner` says, and what it refuses."""

import importlib.util
import socket
from concurrent.futures.process import BrokenProcessPool

import pytest

from flows.workers.runner_spec import RunnerSpec, cluster_of
from pipeline.errors import ConfigError, SrpoError


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("processes:4", RunnerSpec("processes", 4)),
        ("ray:2", RunnerSpec("ray", 2)),
        ("ray:16@ray://head:10001", RunnerSpec("ray", 16, "ray://head:10001")),
        ("dask:8@tcp://10.0.0.1:8786", RunnerSpec("dask", 8, "tcp://10.0.0.1:8786")),
    ],
)
def test_a_runner_is_read_and_written(text: str, spec: RunnerSpec) -> None:
    assert RunnerSpec.parse(text) == spec
    assert str(spec) == text


@pytest.mark.parametrize("text", ["", "ray", "ray:0", "ray:", "ray:-1", "threads:2", "ray:2@"])
def test_what_is_no_place_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"expected processes:N, ray:N or dask:N"):
        RunnerSpec.parse(text)


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
        RunnerSpec.parse(text)


@pytest.mark.parametrize("kind", ["ray:2@ray", "dask:2@tcp"])
def test_an_address_where_nobody_listens_is_one_line(
    kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        spec = RunnerSpec.parse(f"{kind}://127.0.0.1:{taken.getsockname()[1]}")
        with (
            pytest.raises(SrpoError, match=rf"--runner {spec}: no workers there: Connection"),
            cluster_of(spec),
        ):
            raise AssertionError("there is none")
    assert capfd.readouterr() == ("", "")


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"prefect_ray|ray is not installed: .*pip .*\.\[ray\]"):
        RunnerSpec.parse("ray:2")


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
    assert RunnerSpec.parse(text).lost(error) == lost
