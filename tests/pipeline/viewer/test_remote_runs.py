"""Pages over a run at a URL follow a training on another machine."""

import pytest
from starlette.testclient import TestClient

from pipeline.files.sealed_json import write_sealed
from pipeline.remote.mirror_paths import run_path
from pipeline.run.lock import RunLock
from pipeline.run.run import Run
from pipeline.viewer import app
from tests.builders.tables import config
from tests.pipeline.conftest import UseMachine
from tests.s3_server import Server


def test_pages_follow_a_training_elsewhere(
    bucket: str, machine: UseMachine, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{bucket}/first"
    with RunLock(run_path(url)):
        Run.create(run_path(url), config(), {})
    machine("there")
    client = TestClient(app.create_app([Run.open(run_path(url))]), base_url="http://127.0.0.1")
    machine("here")
    with RunLock(run_path(url)):
        write_sealed(Run.open(run_path(url)).metrics_path(0), {"loss": 0.5})
    machine("there")
    server.requests.clear()
    assert client.get("/state.json").json()["first"]["steps_done"] == 0
    assert server.requests == []
    monkeypatch.setattr(app, "FOLLOW_SECONDS", 0.0)
    assert client.get("/state.json").json()["first"]["steps_done"] == 1
