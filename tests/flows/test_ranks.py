"""What ranks of several hosts must have before any of them starts."""

from pathlib import Path

import pytest

from flows.ranks import Places, launch
from pipeline.errors import ConfigError
from pipeline.remote.places import run_path

TWO_HOSTS = Places(ranks=1, nnodes=2, node_rank=0, rdzv_endpoint="")


def test_hosts_need_a_place_to_meet(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--nnodes needs --rdzv-endpoint HOST:PORT"):
        launch([], TWO_HOSTS, tmp_path)


def test_hosts_need_one_cache_for_a_run_at_a_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SRPO_CACHE", raising=False)
    places = TWO_HOSTS._replace(rdzv_endpoint="localhost:1")
    with pytest.raises(ConfigError, match=r"s3://bucket/run: ranks of several hosts.*SRPO_CACHE"):
        launch([], places, run_path("s3://bucket/run"))
