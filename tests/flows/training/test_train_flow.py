"""The training flow against a real server: what Prefect records, retries, stops and errors."""

import errno
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from flows.prefect_api.server import ServerHandle, open_server
from flows.training.loop import Outcome, Watcher
from pipeline.distributed import ranks
from pipeline.errors import NumericalError
from pipeline.run.step_layout import STEP_STAGES
from tests.conftest import OwnServer
from tests.flows.training.fake_session import FakeSession

if TYPE_CHECKING:
    from flows.session.session import Session

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, own_server: OwnServer
) -> Iterator[ServerHandle]:
    given = os.environ.pop("PREFECT_API_URL", None)
    server = open_server(own_server(tmp_path_factory.mktemp("runs")))
    server.wait()
    yield server
    server.release()
    if given is not None:
        os.environ["PREFECT_API_URL"] = given


def run_flow(session: FakeSession, watcher: Watcher | None = None) -> Outcome:
    from flows.training.train_flow import run_training

    return run_training(cast("Session", session), [watcher or Watcher()])


class Recorded:
    """What the server says about the newest flow run of a name."""

    def __init__(self, url: str, name: str) -> None:
        import httpx

        by_name = {"flow_runs": {"name": {"any_": [name]}}}
        with httpx.Client(base_url=url) as api:
            (run,) = api.post("/flow_runs/filter", json=by_name).json()
            self.state = run["state"]["type"]
            self.message = run["state"]["message"]
            of_run = {"flow_runs": {"id": {"any_": [run["id"]]}}}
            self.tasks: list[dict[str, Any]] = []
            while page := api.post(
                "/task_runs/filter", json={**of_run, "offset": len(self.tasks)}
            ).json():
                self.tasks += page
            self.artifacts = api.post("/artifacts/filter", json=of_run).json()


def test_all_stages_of_a_20_step_run_are_recorded_with_artifacts(
    server: ServerHandle, tmp_path: Path
) -> None:
    session = FakeSession(tmp_path / "twenty", "run.steps=20", "evaluate.every=10")
    assert run_flow(session) == Outcome(20, "steps")
    found = Recorded(server.url, "twenty")
    assert found.state == "COMPLETED"
    expected = {f"{name}-{step:06d}" for name in STEP_STAGES for step in range(20)}
    expected |= {f"evaluate-{n:06d}" for n in (0, 10, 20)}
    assert {task["name"] for task in found.tasks} == expected
    assert len(found.tasks) == len(expected)
    assert {task["state"]["type"] for task in found.tasks} == {"COMPLETED"}
    chained = [task for task in found.tasks if task["task_inputs"]["after"]]
    assert len(chained) == len(expected) - 1
    by_key = {artifact["key"]: artifact for artifact in found.artifacts}
    assert set(by_key) == {"run-folder", "progress", "metrics", "routing", "evaluations"}
    assert by_key["progress"]["data"] == 100.0
    assert by_key["routing"]["data"].startswith("data:image/svg+xml;base64,")


def test_a_stage_that_the_machine_failed_is_tried_once_more(
    server: ServerHandle, tmp_path: Path
) -> None:
    session = FakeSession(tmp_path / "retried", "run.steps=2")
    session.fail_at = "update 1"
    assert run_flow(session) == Outcome(2, "steps")
    assert session.events.count("update 1") == 2


def test_a_stage_that_other_ranks_are_still_in_is_not_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from flows.training.train_flow import machine_failed

    failed: Any = SimpleNamespace(data=OSError(errno.EIO, "Input/output error"))
    none: Any = None
    assert machine_failed(none, none, failed)
    monkeypatch.setattr(ranks, "_unanswered", ["a call"])
    assert not machine_failed(none, none, failed)


def test_an_error_of_ours_is_final_and_arrives_as_it_was_raised(
    server: ServerHandle, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    class Diverging(FakeSession):
        def run_stage(self, name: str, step: int, progress: Any = None) -> dict[str, Any]:
            if name == "update":
                self.events.append("diverged")
                raise NumericalError("the loss of 000000-0000-00 is not finite")
            return super().run_stage(name, step, progress)

    session = Diverging(tmp_path / "diverging", "run.steps=2")
    with pytest.raises(NumericalError, match="is not finite"):
        run_flow(session)
    assert session.events.count("diverged") == 1
    assert Recorded(server.url, "diverging").state == "FAILED"
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_stage_keeps_the_state_and_is_recorded(
    number: signal.Signals, server: ServerHandle, tmp_path: Path
) -> None:
    class Signalling(Watcher):
        def stage_started(self, name: str, step: int) -> None:
            if (name, step) == ("route", 1):
                os.kill(os.getpid(), number)

    session = FakeSession(tmp_path / number.name, "run.steps=9")
    assert run_flow(session, Signalling()) == Outcome(1, "stopped")
    assert session.events[-2:] == ["route 1", "snapshot 1"]
    found = Recorded(server.url, number.name)
    assert found.state == "CANCELLED"
    assert "srpo train --resume --run" in found.message
