"""Work placed on Prefect's task runners: the same verdicts, and no worker's death loses any."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pipeline.files.sealed_json import is_sealed, read_sealed
from tests.paths import PROJECT

pytestmark = pytest.mark.slow

RUNNERS = ["processes:2", "ray:2", "dask:2"]
ROWS, SHARDS = 96, 12
SECONDS = "0.04"  # of a verdict
LIMIT_SECONDS = 300.0
PROBE = """
from flows.workers import runner_spec
from flows.workers.command_pool import command_pool
from pathlib import Path
import sys
runner_spec.CONNECT_SECONDS = 2.0
if __name__ == "__main__":
    with command_pool(sys.argv[1], Path(sys.argv[2])) as worker_pool:
        try:
            worker_pool.map("probe", sys.argv[3], [{"text": "a@b"}])
        except ValueError as error:
            print(f"{type(error).__name__}: {error}")
"""


@pytest.fixture(scope="module", autouse=True)
def api(prefect_api: dict[str, str]) -> Iterator[None]:
    """Have commands find the server that tests share."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in prefect_api.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of runs."""
    return tmp_path_factory.mktemp("runs")


def started(*arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def at_work(runner: str, runs: Path, parts: Path) -> "subprocess.Popen[str]":
    script = str(PROJECT / "tests" / "flows" / "workers" / "judge_on_workers.py")
    return started(script, runner, str(runs), str(parts), str(ROWS), SECONDS)


def result(process: "subprocess.Popen[str]") -> str:
    out, err = process.communicate(timeout=LIMIT_SECONDS)
    assert process.returncode == 0, err
    return out


def digest(process: "subprocess.Popen[str]") -> str:
    """Return the digest of the verdicts; Ray says on stdout, too, that a worker died."""
    return str(json.loads(result(process).splitlines()[-1])["sha256"])


def ended(parts: Path) -> dict[Path, int]:
    """Return the parts that are whole, and when they were written."""
    return {p: p.stat().st_mtime_ns for p in parts.glob("*.verdicts.json") if is_sealed(p)}


def wait_for_parts(process: "subprocess.Popen[str]", parts: Path, number: int) -> dict[Path, int]:
    deadline = time.monotonic() + LIMIT_SECONDS
    while len(found := ended(parts)) < number:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"{len(found)} of {number} shards were judged"
        time.sleep(0.05)
    return found


@pytest.fixture(scope="module")
def expected(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the digest of the verdicts of one worker."""
    folder = tmp_path_factory.mktemp("one")
    return digest(at_work("processes:1", runs, folder))


@pytest.mark.campaign
@pytest.mark.parametrize("runner", RUNNERS)
def test_a_worker_killed_half_way_loses_nothing(
    runner: str, runs: Path, expected: str, tmp_path: Path
) -> None:
    with at_work(runner, runs, tmp_path) as process:
        seen = wait_for_parts(process, tmp_path, 3)
        os.kill(read_sealed(next(iter(seen)))["worker"], signal.SIGKILL)
        assert digest(process) == expected
    now = ended(tmp_path)
    assert len(now) == SHARDS
    assert {path: now[path] for path in seen} == seen, "a finished shard was judged again"


@pytest.mark.campaign
@pytest.mark.parametrize("runner", ["processes:2", "dask:2"])  # agents of Ray live on a while
def test_a_killed_command_leaves_no_worker_and_loses_no_shard(
    runner: str, runs: Path, expected: str, tmp_path: Path
) -> None:
    with at_work(runner, runs, tmp_path) as process:
        seen = wait_for_parts(process, tmp_path, 2)
        below = psutil.Process(process.pid).children(recursive=True)
        workers = [p for p in below if "flows.prefect_api.server_process" not in p.cmdline()]
        assert workers
        process.kill()
        process.wait()
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert alive == []
    with at_work("processes:1", runs, tmp_path) as process:  # another runner finds what is done
        assert digest(process) == expected
    now = ended(tmp_path)
    assert {path: now[path] for path in seen} == seen, "a finished shard was judged again"


def test_an_error_names_piece_host_and_process(runs: Path) -> None:
    line = result(started("-c", PROBE, "dask:1", str(runs), "flows.session.open_run:split_state"))
    assert line.startswith("ConfigError: probe, piece 1 of 1, on ")
    assert line.endswith("a@b: expected RUN or RUN@STEP, got 'b' as the number of steps\n")


def test_a_cluster_that_is_not_there_is_one_line(runs: Path) -> None:
    runner = "dask:2@tcp://127.0.0.1:9"
    line = result(started("-c", PROBE, runner, str(runs), "flows.session.open_run:split_state"))
    assert line.startswith(f"SrpoError: --runner {runner}: no workers")
    assert line.count("\n") == 1
