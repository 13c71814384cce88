"""What a training does after a severe alarm: go on, stop, or fork from the last healthy state."""

import contextlib
from pathlib import Path
from typing import Any

import pytest

from flows.session.session import Session
from flows.training.alarm_fork import session_after_alarm
from flows.training.loop import Outcome, train
from flows.training.progress import Lines
from pipeline.config.load import load_config
from tests.flows.training.fake_session import FakeSession

BREAKING = [
    "run.steps=20",
    "run.threads=1",
    "run.snapshot_every=2",
    "generate.questions=8",
    "generate.rollouts=8",
    "evaluate.every=100",
    "evaluate.questions=2",
    "evaluate.rollouts=2",
    "update.learning_rate=0.03",  # 150 times the demo's, reached step by step: the policy breaks
    "update.warmup_steps=20",
]


def trained(folder: Path, reaction: str) -> tuple[Session, Outcome]:
    session = Session.create(folder, load_config("demo", [*BREAKING, f"run.on_alarm={reaction}"]))
    return session, train(session, session.run_stage, [Lines(session)], lambda: False)


@pytest.mark.slow
def test_a_broken_training_goes_on_in_a_fork_with_a_lower_rate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    session, outcome = trained(tmp_path / "run", "fork")
    with contextlib.closing(session):
        assert outcome.ended == "alarm" and outcome.steps_done < 12
        last = session.run.metrics(outcome.steps_done - 1)
        rules = {alarm["rule"] for alarm in last["alarms"] if alarm["severe"]}
        assert rules & {"format_falls", "length_runs_away"}
        assert f"ALARM {last['alarms'][0]['rule']}, step" in capsys.readouterr().out
        following = session_after_alarm(session, outcome)
    assert following is not None
    with contextlib.closing(following):
        fork = following.run.fork
        assert fork is not None and following.run.root == tmp_path / "run-fork-1"
        assert fork.changed["update.learning_rate"] == (0.03, 0.015)
        assert fork.start in session.run.snapshots() and fork.start <= outcome.steps_done - 3
        records = [session.run.metrics(step) for step in range(outcome.steps_done)]
        assert all(fork.start <= a["healthy"] for record in records for a in record["alarms"])
        assert following.next_step() == fork.start
        following.run_stage("generate", fork.start)
        sampled = following.run.manifest("rollouts", fork.start)
        assert sampled.sha256 == session.run.manifest("rollouts", fork.start).sha256
        again = Outcome(outcome.steps_done, "alarm")
        assert session_after_alarm(following, again) is None


@pytest.mark.slow
def test_a_broken_training_can_stop(tmp_path: Path) -> None:
    session, outcome = trained(tmp_path / "run", "stop")
    with contextlib.closing(session):
        assert outcome.ended == "alarm"
        assert session_after_alarm(session, outcome) is None
        assert session.run.own_snapshots()[-1] == outcome.steps_done
        assert session.run.has("evaluations", outcome.steps_done)


class Alarmed(FakeSession):
    """Raises an alarm at step 3."""

    severe = True

    def finish_step(self, step: int) -> dict[str, Any]:
        alarm = {"rule": "r", "step": 3, "message": "m", "command": "c", "severe": self.severe}
        return {**super().finish_step(step), "alarms": [alarm] if step == 3 else []}


@pytest.mark.parametrize(
    ("reaction", "severe", "steps"),
    [("continue", True, 8), ("stop", True, 4), ("fork", True, 4), ("stop", False, 8)],
)
def test_only_severe_alarms_end_a_training_that_asks_for_it(
    tmp_path: Path, reaction: str, severe: bool, steps: int
) -> None:
    session = Alarmed(tmp_path / "run", "run.steps=8", f"run.on_alarm={reaction}")
    session.severe = severe
    outcome = train(session, session.run_stage, [], lambda: False)
    assert outcome.steps_done == steps
    assert outcome.ended == ("steps" if steps == 8 else "alarm")
