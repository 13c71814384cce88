"""vLLM for a training on two ranks: as servers, and as an engine beside each."""

import json
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.check.check_run import check_run
from pipeline.run.run import Run
from pipeline.run.step_layout import STEP_TABLES
from tests.live_vllm import live_engine
from tests.live_vllm.run_rank_samplers import TIMEOUT
from tests.ranks.compare_tables import compare
from tests.ranks.launcher import launch
from tests.ranks.train_commands import LIMIT_SECONDS, STEPS, finish, train, trained

pytestmark = pytest.mark.vllm


ENGINE = ("--set", "generate.engine=vllm")


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run on one rank with an engine in its process."""
    return Run.open(trained(tmp_path_factory.mktemp("one") / "run", *ENGINE, steps=1))


def expect_in_step(run: Run, one: Run) -> None:
    """Expect the first step of another run, and the policy's own odds at every step."""
    for name in STEP_TABLES:  # later ones start from weights that differ in their last bits
        compare(one.read(name, 0), run.read(name, 0))
    for step in range(STEPS):
        manifest = run.manifest("rollouts", step)
        versions = set(run.read("rollouts", step)["policy_version"].to_pylist())
        assert versions == {manifest.origin.policy_version}
        assert manifest.facts["engine_probe_gap"] < 1e-4
        record = json.loads(run.metrics_path(step).read_text(encoding="utf-8"))
        assert record["logprob_gap_max"] < 1e-3


def test_weights_of_two_ranks_reach_two_servers_at_every_step(tmp_path: Path, one: Run) -> None:
    options = ("--ranks", "2", *ENGINE, "--set", "vllm.servers=2")
    expect_in_step(Run.open(trained(tmp_path / "two", *options)), one)


def test_adapters_of_two_ranks_reach_an_engine_beside_each(tmp_path: Path) -> None:
    lora = (*ENGINE, "--set", "model.lora.rank=4", "--set", "model.base_dtype=bfloat16")
    one = Run.open(trained(tmp_path / "one", *lora, steps=1))
    expect_in_step(Run.open(trained(tmp_path / "two", "--ranks", "2", *lora)), one)


def left(processes: list[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Wait for the end of processes; return those that did not come to it."""
    return [p for p in psutil.wait_procs(processes, seconds)[1] if p.status() != "zombie"]


def test_an_engine_beside_each_rank(tmp_path: Path, one: Run) -> None:
    run, limit = tmp_path / "run", time.monotonic() + LIMIT_SECONDS
    command = train(run, "--ranks", "2", *ENGINE)
    while not (run / "steps" / "000000" / "metrics.json").exists():
        assert command.poll() is None and time.monotonic() < limit
        time.sleep(0.05)
    below = psutil.Process(command.pid).children(recursive=True)
    both = [p for p in below if "flows.cli" in p.cmdline()]
    assert [len(live_engine.cores_of(rank)) for rank in both] == [1, 1]
    both[1].send_signal(signal.SIGKILL)
    said = finish(command)
    assert command.returncode == 2
    assert "rank 1 was killed by SIGKILL; go on" in said
    assert not left(below, 30)
    expect_in_step(Run.open(trained(run, "--ranks", "2")), one)
    assert not check_run(Run.open(run)).findings


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder, before = tmp_path_factory.mktemp("beside"), live_engine.guards()
    launch("tests.live_vllm.run_rank_samplers", 2, folder, str(folder))
    assert live_engine.guards() <= before
    result: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return result


def test_weights_that_one_ranks_engine_did_not_get_are_noticed(found: dict[str, Any]) -> None:
    assert max(found["gaps"]) < 1e-4
    assert "vLLM of rank 1 does not sample from policy 000001-one-behind" in found["unsent"]
    assert found["learned"] != found["first"]


def test_an_engine_that_dies_in_the_middle_comes_up_again(found: dict[str, Any]) -> None:
    before, after = found["cores"]
    assert before[0] == after[0]
    assert before[1] != after[1]
    pairs = [zip(a, b, strict=True) for a, b in zip(found["learned"], found["killed"], strict=True)]
    same = [a == b for pair in pairs for a, b in pair]
    assert len(same) == 192
    assert sum(same) >= 0.99 * len(same)


def test_an_engine_that_hangs_ends_the_run_in_time(found: dict[str, Any]) -> None:
    assert "vLLM of rank 1 gave no answer to /v1/completions within 20 s" in found["hangs"]
    assert found["seconds"] < TIMEOUT + 10
