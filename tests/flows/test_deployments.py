"""prefect.yaml: every deployment names a flow that exists, with parameters that it takes."""

import contextlib
import importlib
import inspect
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from flows.server import open_server
from pipeline.lineage import STEP_STAGES

PROJECT = Path(__file__).resolve().parents[2]


def deployments() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load((PROJECT / "prefect.yaml").read_text())[
        "deployments"
    ]
    return found


def test_there_is_a_deployment_for_training_evaluation_and_each_stage() -> None:
    assert [d["name"] for d in deployments()] == ["train", "evaluate", "replay", *STEP_STAGES]


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


@pytest.mark.slow
def test_all_deployments_register_with_a_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    lease = open_server(tmp_path)
    try:
        lease.wait()
        prefect = [sys.executable, "-m", "prefect", "--no-prompt"]
        for command in (
            ["work-pool", "create", "srpo", "--type", "process"],
            ["deploy", "--all"],
        ):
            done = subprocess.run(
                [*prefect, *command],
                cwd=PROJECT,
                env={**os.environ, "PWD": str(PROJECT), "PYTHONPATH": str(PROJECT)},
                capture_output=True,
                text=True,
                timeout=120,
            )
            assert done.returncode == 0, done.stdout + done.stderr
        from prefect.client.orchestration import SyncPrefectClient

        with SyncPrefectClient(lease.url) as client:
            names = {d.name for d in client.read_deployments()}
            assert names == {d["name"] for d in deployments()}
            # One is executed, on no run: the flow is found, imported, and says what is missing.
            nowhere = str(tmp_path / "nowhere")
            deployment = client.read_deployment_by_name("stage/route")
            created = client.create_flow_run_from_deployment(
                deployment.id, parameters={"name": "route", "run": nowhere, "step": 0}
            )
            worker = [*prefect, "worker", "start", "--pool", "srpo", "--run-once"]
            subprocess.run(
                worker,
                cwd=PROJECT,
                env={**os.environ, "PYTHONPATH": str(PROJECT)},
                capture_output=True,
                timeout=120,
            )
            state = client.read_flow_run(created.id).state
            assert state is not None and state.message is not None
            assert f"{nowhere}: no run here" in state.message
    finally:
        lease.release()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(-1, os.WNOHANG)
