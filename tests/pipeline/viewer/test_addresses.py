"""Addresses that are no rollout's get a page that says so; no file is written outside an export."""

from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from pipeline.audit.rollout import rollout_record
from pipeline.errors import ConfigError, StoreError
from pipeline.run.run import Run
from pipeline.viewer.app import create_app
from pipeline.viewer.export import _write
from pipeline.viewer.page import Kind

ODD = ["9" * 300 + "-0-0", "9" * 5000, "٠٠٠٠٠٠-٠٠٠٠-٠٠", "000000-0000-00-00", "e", "x" * 40]


@pytest.mark.parametrize("name", ODD)
def test_odd_addresses_are_not_here(trained: Run, name: str) -> None:
    client = TestClient(create_app([trained]), base_url="http://127.0.0.1")
    run = trained.root.name
    assert client.get(f"/runs/{run}/rollouts/{name}/").status_code == 404
    with pytest.raises(ConfigError, match="is no rollout id") as caught:
        rollout_record(trained, name)
    assert len(str(caught.value)) < 200


def test_no_page_is_written_outside_the_export(tmp_path: Path) -> None:
    def context(runs: object, name: str) -> dict[str, object]:
        raise AssertionError("not rendered")

    kind = Kind("/runs/{}/", "run.html", context, lambda runs: [])
    with pytest.raises(StoreError, match="a page outside"):
        _write(kind, {}, ("../../evil",), tmp_path / "pages")
    assert list(tmp_path.iterdir()) == []
