"""Two servers of vLLM beside a training on two ranks."""

import json
from pathlib import Path

import pytest

from pipeline.lineage import STEP_TABLES
from pipeline.store import Run
from tests.ranks.commands import STEPS, trained
from tests.ranks.compared import compare

pytestmark = pytest.mark.vllm


def test_weights_of_two_ranks_reach_two_servers_at_every_step(tmp_path: Path) -> None:
    engine = ("--set", "generate.engine=vllm")
    two = trained(tmp_path / "two", "--ranks", "2", *engine, "--set", "vllm.servers=2")
    one = trained(tmp_path / "one", *engine)
    run = Run.open(two)
    for name in STEP_TABLES:  # later ones start from weights that differ in their last bits
        compare(Run.open(one).read(name, 0), run.read(name, 0))
    for step in range(STEPS):
        manifest = run.manifest("rollouts", step)
        versions = set(run.read("rollouts", step)["policy_version"].to_pylist())
        assert versions == {manifest.origin.policy_version}
        assert manifest.facts["engine_probe_gap"] < 1e-4
        record = json.loads(run.metrics_path(step).read_text(encoding="utf-8"))
        assert record["logprob_gap_max"] < 1e-3
