"""A training whose root is on a local S3 server that fails now and then: killed, resumed, whole."""

import hashlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from tests.s3_server import CREDENTIALS, Server, serving

pytestmark = pytest.mark.slow

SMALL = [
    "run.steps=6",
    "run.snapshot_every=3",
    "generate.questions=4",
    "generate.rollouts=4",
    "evaluate.every=6",
    "evaluate.questions=4",
    "evaluate.rollouts=2",
    "verify.workers=1",
]
LIMIT_SECONDS = 300
QUICK = """
from flows.cli import main
from pipeline.remote import client, lease
lease.LEASE_SECONDS, lease.POLL_SECONDS = 3.0, 0.2
client.REQUEST_SECONDS = 1.5
main()
"""
"""The command with shorter limits than a user's: hung requests last 3 s here."""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving() as found:
        yield found


@pytest.fixture
def environment(server: Server, tmp_path: Path, prefect_api: dict[str, str]) -> dict[str, str]:
    own = {"AWS_ENDPOINT_URL": server.url, "SRPO_CACHE": str(tmp_path / "cache")}
    return {**prefect_api, **CREDENTIALS, **own}


def start(environment: dict[str, str], *arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", QUICK, *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)


def finish(environment: dict[str, str], *arguments: str) -> tuple[int, str]:
    with start(environment, *arguments) as process:
        out, err = process.communicate(timeout=LIMIT_SECONDS)
    return process.returncode, out + err


def train(*where: str) -> list[str]:
    return ["train", "demo", *where, *(part for s in SMALL for part in ("--set", s))]


def kill_when_stored(process: "subprocess.Popen[str]", server: Server, key: str) -> None:
    """SIGKILL a command as soon as the server was asked to store an object."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while f"PUT /bucket/{key}" not in server.requests:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def tables_on(server: Server, prefix: str) -> dict[str, str]:
    """Return the SHA-256 of all tables of a run, as another client reads them."""
    names = {"aws_access_key_id": "x", "aws_secret_access_key": "x", "region_name": "us-east-1"}
    client = boto3.client("s3", endpoint_url=server.url, **names)
    pages = client.get_paginator("list_objects_v2").paginate(Bucket="bucket", Prefix=prefix)
    keys = [entry["Key"] for page in pages for entry in page["Contents"]]
    return {
        key.removeprefix(prefix): hashlib.sha256(
            client.get_object(Bucket="bucket", Key=key)["Body"].read()
        ).hexdigest()
        for key in keys
        if key.endswith(".arrow")
    }


@pytest.mark.campaign
@pytest.mark.parametrize("settings", [[], ["--set", "model.lora.rank=8"]], ids=["full", "lora"])
def test_killed_twice_on_a_store_that_fails_it_has_the_tables_of_a_disk(
    server: Server, environment: dict[str, str], tmp_path: Path, settings: list[str]
) -> None:
    assert finish(environment, *train("--run", str(tmp_path / "disk"), *settings))[0] == 0
    disk = tmp_path / "disk"
    on_disk = {
        str(path.relative_to(disk)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in disk.rglob("*.arrow")
    }
    run = f"runs/run-{len(settings)}"
    url = f"{server.make_bucket('bucket')}/{run}"
    server.share = 0.05
    command = start(environment, *train("--run", url, *settings))
    kill_when_stored(command, server, f"{run}/steps/000001/routes.json")
    resume = ["train", "--resume", "--run", url]
    kill_when_stored(start(environment, *resume), server, f"{run}/steps/000004/scores.json")
    shutil.rmtree(tmp_path / "cache")
    code, text = finish(environment, *resume)
    assert code == 0, text
    assert "if it doesn't show itself within 3 s it is gone" in text
    assert len({*server.failed}) == 4 and len(server.failed) > 10
    server.share = 0.0
    assert tables_on(server, f"{run}/") == on_disk
    code, text = finish(environment, "check", url)
    assert code == 0 and "no findings" in text, text
    code, text = finish(environment, "diff", url, str(disk))
    assert code == 0 and "no difference" in text, text


@pytest.mark.campaign
def test_a_store_that_is_gone_ends_a_training_with_one_line(
    server: Server, environment: dict[str, str], tmp_path: Path
) -> None:
    url = f"{server.make_bucket('another')}/first"
    code = QUICK.replace("= 1.5", "= 1.5; client.RETRY_SECONDS = 2.0")
    arguments = [sys.executable, "-c", code, *train("--run", url)]
    with subprocess.Popen(
        arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        deadline = time.monotonic() + LIMIT_SECONDS
        while "PUT /another/first/steps/000001/rollouts.json" not in server.requests:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        server.share, server.faults = 1.0, ("500",)
        _, err = process.communicate(timeout=LIMIT_SECONDS)
    server.share = 0.0
    assert process.returncode == 2, err
    line = err.strip().splitlines()[-1]
    assert line.startswith(f"error: {url}/") and "the store failed for" in line
    assert line.endswith("a training with --resume")
    finished, text = finish(environment, "train", "--resume", "--run", url)
    assert finished == 0, text
