"""Training steps whose rollouts and evaluations come from a live engine."""

import json
from pathlib import Path

import pytest

from flows.session.session import Session
from pipeline.errors import NumericalError
from pipeline.run.step_layout import STEP_STAGES
from tests.live_vllm.live_engine import children, config

pytestmark = pytest.mark.vllm

SMALL = (
    "generate.questions=4",
    "generate.rollouts=4",
    "evaluate.questions=4",
    "evaluate.rollouts=2",
    "run.steps=3",
    "verify.workers=1",
)


def test_three_steps_and_an_evaluation(tmp_path: Path) -> None:
    before = children()
    session = Session.create(tmp_path / "run", config(*SMALL))
    try:
        for step in range(3):
            for name in STEP_STAGES:
                session.run_stage(name, step)
            session.finish_step(step)
        session.run_stage("evaluate", 3)
    finally:
        session.close()
    assert children() <= before
    run = session.run
    for step in range(3):
        rollouts, manifest = run.read("rollouts", step), run.manifest("rollouts", step)
        assert set(rollouts["engine"].to_pylist()) == {"vllm"}
        assert set(rollouts["policy_version"].to_pylist()) == {manifest.origin.policy_version}
        assert manifest.facts["engine_probe_gap"] < 1e-4
        record = json.loads(run.metrics_path(step).read_text(encoding="utf-8"))
        assert record["logprob_gap_max"] < 1e-3
        assert 0 <= record["engine_kl"] < 1e-7
        assert record["tis_cut_share"] == 0
    assert set(run.read("evaluations", 3)["engine"].to_pylist()) == {"vllm"}


def test_a_gap_beyond_the_gate_stops_the_update(tmp_path: Path) -> None:
    session = Session.create(tmp_path / "run", config(*SMALL, "generate.max_logprob_gap=1e-9"))
    try:
        for name in STEP_STAGES[:-1]:
            session.run_stage(name, 0)
        with pytest.raises(NumericalError, match=r"max_logprob_gap = 1e-09 nats in \d+ of"):
            session.run_stage("update", 0)
    finally:
        session.close()
    assert session.run.has("rollouts", 0)
    assert not session.run.has("updates", 0)
