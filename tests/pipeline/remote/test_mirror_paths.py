"""From URLs to folders of the cache and back."""

import copy
import pickle
from pathlib import Path

import pytest

from pipeline.errors import ConfigError, StoreError
from pipeline.remote.mirror_paths import MirrorPath, address_of, is_mirrored, run_path


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SRPO_CACHE", str(tmp_path))
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_a_url_is_a_folder_of_the_cache(cache: Path) -> None:
    root = run_path("s3://bucket/runs/first/")
    assert root == cache / "s3" / "bucket" / "runs" / "first"
    assert str(address_of(root / "run.json")) == "s3://bucket/runs/first/run.json"
    assert run_path(root) == root and run_path(Path("s3://bucket/runs/first")) == root
    assert run_path("s3://bucket") == cache / "s3" / "bucket"


def test_texts_show_the_url_and_the_system_gets_the_path(cache: Path) -> None:
    root = run_path("gs://bucket/runs/first")
    table = (root / "steps" / "000001" / "x.tmp").with_suffix(".arrow")
    assert f"{table}" == "gs://bucket/runs/first/steps/000001/x.arrow"
    assert str(table) == f"{cache}/gs/bucket/runs/first/steps/000001/x.arrow"
    assert f"{copy.copy(table).resolve().parent}" == "gs://bucket/runs/first/steps/000001"


def test_paths_that_ranks_send_are_of_the_cache_of_their_host(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = pickle.dumps(run_path("s3://bucket/runs/first") / "policy")
    monkeypatch.setenv("SRPO_CACHE", str(cache / "elsewhere"))
    found = pickle.loads(sent)
    assert found == cache / "elsewhere" / "s3" / "bucket" / "runs" / "first" / "policy"
    assert isinstance(found, MirrorPath)


def test_ordinary_paths_stay(cache: Path) -> None:
    for path in (Path("runs/first"), cache / "other" / "x", cache / "s3", cache):
        assert run_path(path) == path and type(run_path(path)) is type(Path())
        assert address_of(path) is None and not is_mirrored(path)


def test_each_endpoint_has_its_own_folder(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9000/")
    root = run_path("s3://bucket/x")
    assert root == cache / "s3+127.0.0.1:9000" / "bucket" / "x"
    assert f"{root}" == "s3://bucket/x"
    assert run_path("gs://bucket/x") == cache / "gs" / "bucket" / "x"
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    with pytest.raises(StoreError, match=r"s3\+127.0.0.1:9000.*would go to s3: set AWS_ENDPOINT"):
        address_of(root)


@pytest.mark.parametrize("text", ["http://host/x", "s3://", "s3://b//x", "s3://b/../x", "S3://b"])
def test_other_urls_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected a folder, or a URL such as s3://BUCKET/"):
        run_path(text)
