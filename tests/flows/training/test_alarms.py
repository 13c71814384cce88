"""Alarms on their way: from tables to records, to the display, to the summary."""

import io
import shlex
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from rich.console import Console

from flows.training.loop import Outcome
from flows.training.progress import Lines, Screen
from flows.training.summary import print_summary
from pipeline.housekeeping.run_listing import overview
from pipeline.run.run import Run
from pipeline.run.step_layout import STEP_TABLES
from pipeline.run.step_records import Records
from tests.builders.tables import COST, config, origin, tables, with_column
from tests.flows.training.fake_session import FakeSession

FACTS = {"loss": [0.5], "grad_norm": [2.0], "learning_rate": 5e-6, "tokens": [10]}
SETTINGS = {"route": {"method": "srpo"}}
QUESTIONS = 40


def evaluation(broken: int) -> pa.Table:
    """Return one answer to each of 40 questions, of which the first ones have lost their form."""
    table = tables()["evaluations"].take(pa.array([0] * QUESTIONS))
    formed = [question >= broken for question in range(QUESTIONS)]
    columns: dict[str, list[Any]] = {
        "rollout_id": [f"e000000-{question:04d}-00" for question in range(QUESTIONS)],
        "group": list(range(QUESTIONS)),
        "prompt_id": [f"q{question}" for question in range(QUESTIONS)],
        "format_ok": formed,
        "correct": formed,
    }
    for name, values in columns.items():
        table = with_column(table, name, values)
    return table


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Return a run of one step, whose format breaks at the evaluation after it."""
    made = Run.create(tmp_path / "a run", config(), {})
    for table in STEP_TABLES:
        facts = FACTS if table == "updates" else {}
        made.commit(origin(table, step=0, settings=SETTINGS), tables()[table], facts, COST)
    for state, broken in ((0, 0), (1, 30)):
        made.commit(origin("evaluations", step=state), evaluation(broken), {}, COST)
    return made


def test_an_evaluation_is_judged_when_it_is_made(run: Run) -> None:
    records = Records(run)
    assert records.evaluation(0)["alarms"] == []
    assert [alarm["rule"] for alarm in records.finish(0)["alarms"]] == []
    form, accuracy = records.evaluation(1)["alarms"]
    assert (form["rule"], form["step"], form["healthy"]) == ("evaluated_format_falls", 1, 0)
    assert form["evidence"] == [f"e000000-{question:04d}-00" for question in range(5)]
    assert "25%" in form["message"] and "100%" in form["message"]
    assert accuracy["rule"] == "accuracy_falls"
    assert shlex.split(form["command"]) == [
        "srpo",
        "audit",
        str(run.root),
        "--rollout",
        form["evidence"][0],
    ]


def test_alarms_of_the_last_evaluation_are_counted_until_a_step_records_them(run: Run) -> None:
    records = Records(run)
    records.finish(0)
    assert overview(run.root)["alarms"] == 2
    unrecorded = records.unrecorded()
    for table in STEP_TABLES:
        facts = FACTS if table == "updates" else {}
        run.commit(origin(table, step=1, settings=SETTINGS), tables()[table], facts, COST)
    recorded = records.finish(1)["alarms"]
    rules = ("evaluated_format_falls", "accuracy_falls")
    assert [alarm for alarm in recorded if alarm["rule"] in rules] == unrecorded
    assert records.unrecorded() == []
    assert overview(run.root)["alarms"] == len(recorded)


def test_a_record_is_written_once(run: Run) -> None:
    first = Records(run).finish(0)
    path = run.metrics_path(0)
    written = path.read_bytes()
    assert Records(run).finish(0) == first == run.metrics(0)
    assert path.read_bytes() == written


def alarm(rule: str) -> dict[str, Any]:
    """Return an alarm as records keep it."""
    return {
        "rule": rule,
        "step": 3,
        "healthy": 2,
        "message": f"{rule} [bold]happened",
        "evidence": ["000003-0000-00"],
        "command": "srpo audit RUN --rollout 000003-0000-00",
        "severe": True,
    }


SUMMARY = {"accuracy": 0.5, "low": 0.4, "high": 0.6, "alarms": [alarm("evaluated")]}
STEP = {"reward_mean": 0.5, "alarms": [alarm("evaluated"), alarm("stepped")]}


def test_lines_tell_each_alarm_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines(FakeSession(tmp_path / "run"))
    lines.evaluated(3, SUMMARY)
    told = capsys.readouterr().out
    assert "ALARM evaluated, step 3: evaluated [bold]happened; srpo audit RUN" in told
    lines.step_ended(4, STEP)
    told = capsys.readouterr().out
    assert "ALARM evaluated" not in told and "ALARM stepped" in told


def test_the_screen_keeps_alarms_in_view(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=200)
    with Screen(FakeSession(tmp_path / "run"), "run", console) as screen:
        screen.evaluated(3, SUMMARY)
        screen.step_ended(4, STEP)
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert shown.count("ALARM evaluated, step 3: evaluated [bold]happened") == 1
    assert "alarms: evaluated, stepped" in shown


class Finished(FakeSession):
    """Plays a session of a run that is there."""

    def __init__(self, run: Run) -> None:
        self.run, self.config = run, run.config

    def training_seconds(self) -> float:
        return 1.0

    def evaluation_summary(self, steps_done: int) -> dict[str, Any]:
        return Records(self.run).evaluation(steps_done)


def test_the_summary_lists_alarms_of_steps_and_of_the_last_evaluation(run: Run) -> None:
    Records(run).finish(0)
    console = Console(file=io.StringIO(), width=200)
    print_summary(console, Finished(run), Outcome(1, "steps"))
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert "step 1, evaluated_format_falls: format rate 25%" in shown
    assert "step 1, accuracy_falls: accuracy 25.0%" in shown
