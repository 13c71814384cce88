"""prefect.yaml: every deployment names a flow that exists, with parameters that it takes."""

import importlib
import inspect
import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml  # type: ignore[import-untyped]

from pipeline.errors import SrpoError
from pipeline.run.step_layout import ALL_STAGES
from tests.paths import PROJECT

if TYPE_CHECKING:
    from prefect.client.schemas.actions import WorkPoolCreate


def deployments() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load((PROJECT / "prefect.yaml").read_text())[
        "deployments"
    ]
    return found


def test_there_is_a_deployment_for_training_evaluation_and_each_stage() -> None:
    assert [d["name"] for d in deployments()] == ["train", "evaluate", "replay", *ALL_STAGES]


def expect_flows(found: list[dict[str, Any]]) -> None:
    """Expect deployments to name flows that exist, with parameters that they take."""
    from prefect import Flow

    for deployment in found:
        module, _, name = deployment["entrypoint"].rpartition(".")
        flow = getattr(importlib.import_module(module), name)
        assert isinstance(flow, Flow)
        taken = inspect.signature(flow.fn).parameters
        assert set(deployment.get("parameters", {})) <= set(taken)
        assert {"run", "runner"} <= set(taken)


def test_entrypoints_are_flows_that_take_the_parameters() -> None:
    expect_flows(deployments())


def registered(
    api: dict[str, str], pools: Sequence["WorkPoolCreate"], *options: str
) -> dict[str, str | None]:
    """Have Prefect's command register all deployments; return those of some pools, with theirs."""
    from prefect.client.orchestration import SyncPrefectClient

    deploy = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", *options]
    with SyncPrefectClient(api["PREFECT_API_URL"]) as client:
        for pool in pools:
            client.create_work_pool(pool)
        environment = {**api, "PWD": str(PROJECT)}
        done = subprocess.run(
            deploy, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=240
        )
        assert done.returncode == 0, done.stdout + done.stderr
        names = {pool.name for pool in pools}
        found = client.read_deployments()
        return {d.name: d.work_pool_name for d in found if d.work_pool_name in names}


@pytest.mark.slow
def test_all_deployments_register_with_a_server(tmp_path: Path, api_here: dict[str, str]) -> None:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.actions import WorkPoolCreate

    found = registered(api_here, [WorkPoolCreate(name="srpo", type="process")])
    assert found.keys() == {d["name"] for d in deployments()}
    # One is executed, on no run: the flow is found, imported, and says what is missing.
    nowhere = str(tmp_path / "nowhere")
    with SyncPrefectClient(api_here["PREFECT_API_URL"]) as client:
        deployment = client.read_deployment_by_name("stage/route")
        created = client.create_flow_run_from_deployment(
            deployment.id, parameters={"name": "route", "run": nowhere, "step": 0}
        )
        worker = ["worker", "start", "--pool", "srpo", "--run-once"]
        subprocess.run(
            [sys.executable, "-m", "prefect", "--no-prompt", *worker],
            cwd=PROJECT,
            env=api_here,
            capture_output=True,
            timeout=120,
        )
        state = client.read_flow_run(created.id).state
        assert state is not None and state.message is not None
        assert f"{nowhere}: no run here" in state.message


@pytest.mark.parametrize("fails", [False, True])
def test_a_deployed_training_warns_as_the_command_does_and_leaves_no_failed_start(
    fails: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from flows.session import session
    from flows.training import train_flow
    from flows.training.loop import Outcome

    def train_in_flow(*_: object) -> Outcome:
        if fails:
            raise SrpoError("planted trouble")
        return Outcome(0, "steps")

    monkeypatch.setattr(session, "policy_notes", lambda _: ["prompts are encoded once per rollout"])
    monkeypatch.setattr(train_flow, "train_in_flow", train_in_flow)
    run = tmp_path / "runs" / "first"
    with pytest.raises(SrpoError, match="planted") if fails else nullcontext():
        train_flow.train_flow.fn(f"{run}", "demo", ["generate.top_p=0.5", "run.stall_seconds=99"])
    said = capsys.readouterr().err
    assert "warning: prompts are encoded once per rollout" in said
    assert "warning: generate.top_p or top_k cuts the sampling distribution" in said
    assert run.exists() == (not fails)
