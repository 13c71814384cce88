"""A short fuzz of every reader; benchmarks/fuzz.py is the long one."""

from contextlib import closing

import pytest

from benchmarks.fuzz import TARGETS, fuzz
from flows.session.session import Session
from pipeline.config.load import load_config
from pipeline.run.run import Run
from pipeline.run.step_layout import STEP_STAGES

SECONDS = 4.0
SETTINGS = [
    "run.steps=1",
    "run.threads=1",
    "generate.questions=4",
    "generate.rollouts=4",
    "evaluate.questions=4",
    "evaluate.rollouts=2",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of one step; the fuzz copies it."""
    root = tmp_path_factory.mktemp("fuzz") / "run"
    with closing(Session.create(root, load_config("demo", SETTINGS))) as session:
        session.run_stage("evaluate", 0)
        for name in STEP_STAGES:
            session.run_stage(name, 0)
        session.finish_step(0)
    return Run.open(root)


@pytest.mark.campaign
@pytest.mark.parametrize("name", TARGETS)
def test_only_errors_of_ours_come_out(run: Run, name: str) -> None:
    tally = fuzz(run.root, name, SECONDS, "ci")
    assert tally.failures == []
    assert tally.cases > 0
