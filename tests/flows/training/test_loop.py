"""The plain loop: order of stages, schedules, limits, stops and resumption; no Prefect."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from flows.training.loop import Outcome, StopSwitch, Watcher, train
from pipeline.run.step_layout import STEP_STAGES
from tests.flows.training.fake_session import FakeSession


def never() -> bool:
    return False


def step_events(step: int) -> list[str]:
    return [*(f"{name} {step}" for name in STEP_STAGES), f"metrics {step}"]


def run_loop(session: FakeSession, stop: Any = never, watcher: Watcher | None = None) -> Outcome:
    return train(session, session.run_stage, [watcher or Watcher()], stop)


class StopAfter(Watcher):
    """Asks to stop once a number of stages has begun."""

    def __init__(self, stages: int) -> None:
        self.left = stages

    def stage_started(self, name: str, step: int) -> None:
        if name not in ("prepare", "snapshot"):
            self.left -= 1

    def __call__(self) -> bool:
        return self.left <= 0


def test_order_of_stages_evaluations_and_snapshots(tmp_path: Path) -> None:
    session = FakeSession(tmp_path / "run", "run.steps=5")
    assert run_loop(session) == Outcome(5, "steps")
    assert session.events == [
        "prepare 0",
        "evaluate 0",
        "snapshot 0",
        *step_events(0),
        *step_events(1),
        *step_events(2),
        "evaluate 3",
        *step_events(3),
        "snapshot 4",
        *step_events(4),
        "evaluate 5",
        "snapshot 5",
    ]


def test_a_state_that_is_due_at_the_end_is_evaluated_once(tmp_path: Path) -> None:
    session = FakeSession(tmp_path / "run", "run.steps=3")
    run_loop(session)
    assert session.events.count("evaluate 3") == 1


def test_max_hours_counts_training_only_and_ends_with_evaluation_and_snapshot(
    tmp_path: Path,
) -> None:
    session = FakeSession(tmp_path / "run", "run.steps=9", "run.max_hours=1.0")
    session.seconds_per_step = 1801.0  # half an hour and a second: the second step exceeds the hour
    assert run_loop(session) == Outcome(2, "hours")
    assert session.events[-3:] == ["metrics 1", "evaluate 2", "snapshot 2"]


@pytest.mark.parametrize("stages", range(1, 18))
def test_stop_between_any_two_stages_keeps_the_state_and_starts_nothing(
    tmp_path: Path, stages: int
) -> None:
    whole = FakeSession(tmp_path / "whole", "run.steps=3")
    run_loop(whole)
    stages_run = [e for e in whole.events if e.split()[0] in (*STEP_STAGES, "evaluate")]
    assert len(stages_run) == 17
    session = FakeSession(tmp_path / "run", "run.steps=3")
    watcher = StopAfter(stages)
    outcome = run_loop(session, stop=watcher, watcher=watcher)
    ran = [e for e in session.events if e.split()[0] in (*STEP_STAGES, "evaluate")]
    assert ran == stages_run[:stages]
    updates = sum(e.startswith("update") for e in ran)
    assert sum(e.startswith("metrics") for e in session.events) == updates
    assert outcome == Outcome(updates, "stopped")
    assert session.events[-1] == f"snapshot {updates}"


def test_resume_makes_up_for_what_the_schedule_wants_of_the_state(tmp_path: Path) -> None:
    session = FakeSession(tmp_path / "run", "run.steps=4", first=3)
    assert run_loop(session) == Outcome(4, "steps")
    assert session.events == [
        "prepare 3",
        "evaluate 3",
        *step_events(3),
        "snapshot 4",
        "evaluate 4",
        "snapshot 4",
    ]


def test_resuming_a_complete_run_does_no_step(tmp_path: Path) -> None:
    session = FakeSession(tmp_path / "run", "run.steps=4", first=4)
    assert run_loop(session) == Outcome(4, "steps")
    assert not any(event.startswith("generate") for event in session.events)


def test_the_first_signal_asks_and_the_second_one_interrupts() -> None:
    told: list[str] = []

    class Teller(Watcher):
        def stopping(self) -> None:
            told.append("stopping")

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), StopSwitch([Teller()]) as stop:
        assert not stop()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop()
        os.kill(os.getpid(), signal.SIGINT)
    assert told == ["stopping"]
    assert signal.getsignal(signal.SIGTERM) is before
