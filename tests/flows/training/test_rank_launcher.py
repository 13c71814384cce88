"""What ranks of several hosts must have before any of them starts."""

import socket
from pathlib import Path

import pytest

from flows.training.rank_launcher import RankLayout, launch
from pipeline.errors import ConfigError, SrpoError
from pipeline.remote.mirror_paths import run_path

TWO_HOSTS = RankLayout(ranks=1, nnodes=2, node_rank=0, rdzv_endpoint="")


@pytest.mark.parametrize("place", ["", "host", "host:", "host:port"])
def test_hosts_need_a_place_to_meet(place: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--nnodes needs --rdzv-endpoint HOST:PORT"):
        launch([], TWO_HOSTS._replace(rdzv_endpoint=place), tmp_path)


@pytest.mark.parametrize("layout", [RankLayout(2, 1, 1, ""), RankLayout(1, 2, 2, "localhost:1")])
def test_a_host_has_one_of_their_numbers(layout: RankLayout, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--node-rank \d: hosts have numbers from 0 to"):
        launch([], layout, tmp_path)


def test_a_first_host_that_is_not_there_is_waited_for_with_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("flows.training.rank_launcher.JOIN_SECONDS", 1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        second = TWO_HOSTS._replace(node_rank=1, rdzv_endpoint=place)
        with pytest.raises(SrpoError, match=rf"{place}: waited 1 s for the first host .*refused"):
            launch([], second, tmp_path)
    assert capsys.readouterr().out == f"waiting for the first host at {place}, 1 s at most\n"
    with pytest.raises(ConfigError, match=r"--rdzv-endpoint nowhere.invalid:1: Name or service"):
        launch([], second._replace(rdzv_endpoint="nowhere.invalid:1"), tmp_path)


def test_a_first_host_waits_for_the_others_with_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.training.rank_launcher.JOIN_SECONDS", 1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(SrpoError, match=rf"{place}: the hosts did not meet .*1/2 clients joined"):
        launch([], TWO_HOSTS._replace(rdzv_endpoint=place), tmp_path)


def test_hosts_need_one_cache_for_a_run_at_a_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SRPO_CACHE", raising=False)
    layout = TWO_HOSTS._replace(rdzv_endpoint="localhost:1")
    with pytest.raises(ConfigError, match=r"s3://bucket/run: ranks of several hosts.*SRPO_CACHE"):
        launch([], layout, run_path("s3://bucket/run"))
