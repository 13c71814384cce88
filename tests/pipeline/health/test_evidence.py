"""Evidence: the rollouts that show it, most telling first, whatever the tables lack."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.health.alarms import alarm_of
from pipeline.health.evidence import LARGEST, SELECTORS, evidence_of
from pipeline.health.findings import Sign
from pipeline.health.rules import EVALUATION_RULES, STEP_RULES, Rule
from tests.builders.tables import IDS, tables, with_column

EXPECTED = {
    "format": [IDS[2]],
    "evaluated_format": [f"e{IDS[2]}"],
    "evaluated_errors": [f"e{IDS[3]}"],
    "evaluated_wrong": [f"e{IDS[2]}", f"e{IDS[1]}"],  # q0 has one right answer
    "longest": [IDS[3], IDS[0], IDS[1], IDS[2]],
    "shortest": [IDS[2], IDS[1], IDS[0], IDS[3]],
    "truncated": [IDS[3]],
    "surest": [IDS[1]],
    "wrong": [IDS[1], IDS[2]],  # the last could not be judged
    "demonstrations": [IDS[0]],
    "duplicates": [IDS[0]],
    "off_path": [IDS[1]],
    "largest_loss": [IDS[0], IDS[1], IDS[2], IDS[3]],
    "largest_gap": [IDS[0], IDS[1]],
    "verifier_errors": [IDS[3]],
    "told_gold": [IDS[1]],
}


@pytest.mark.parametrize("name", SELECTORS)
def test_evidence_is_what_the_tables_show(name: str) -> None:
    made = tables()
    assert list(evidence_of(name, made)) == EXPECTED[name]


@pytest.mark.parametrize("name", SELECTORS)
def test_a_step_that_taught_nothing_has_no_evidence_of_teaching(name: str) -> None:
    made = {**tables(), "teacher": tables()["teacher"].slice(0, 0)}
    made["weights"] = made["weights"].slice(0, 0)
    made["routes"] = with_column(made["routes"], "teacher_rollout_id", [None] * 4)
    expected = [] if name in ("surest", "demonstrations", "off_path") else EXPECTED[name]
    assert list(evidence_of(name, made)) == expected


@pytest.mark.parametrize("rule", STEP_RULES, ids=lambda rule: rule.name)
def test_rules_of_steps_need_no_evaluation(rule: Rule[Any]) -> None:
    made = tables()
    del made["evaluations"]
    assert list(evidence_of(rule.evidence, made)) == EXPECTED[rule.evidence]


def test_of_many_the_first_of_each_question_come_first() -> None:
    """Five rollouts of one question would show one question."""
    verdicts = tables()["verdicts"]
    names = [f"000003-{group:04d}-{sample:02d}" for group in range(4) for sample in range(2)]
    many = verdicts.take(pa.array([1] * 8))
    many = with_column(with_column(many, "rollout_id", names), "format_ok", [False] * 8)
    assert evidence_of("format", {"verdicts": many}) == (
        *(f"000003-{group:04d}-00" for group in range(4)),
        "000003-0000-01",
    )


def test_questions_that_lost_most_come_first() -> None:
    now = tables()["evaluations"]
    before = with_column(now, "correct", [True, True, False, False])
    found = evidence_of("evaluated_wrong", {"evaluations": now, "best_evaluations": before})
    assert found == (f"e{IDS[1]}", f"e{IDS[2]}")


def test_what_diverges_most_off_the_path_comes_first() -> None:
    """Of two rollouts of one token off the path each, w jsd is 0.8 x 0.375 and 1.2 x 0.5."""
    made = {name: pa.concat_tables([tables()[name]] * 2) for name in ("teacher", "weights")}
    for name in made:
        made[name] = with_column(made[name], "rollout_id", [IDS[1]] * 2 + [IDS[2]] * 2)
    made["teacher"] = with_column(made["teacher"], "teacher_logprob", [-9.0, -2.5] * 2)
    made["teacher"] = with_column(made["teacher"], "jsd", [0.6, 0.375, 0.1, 0.5])
    made["weights"] = with_column(made["weights"], "weight", [1.2, 0.8, 0.8, 1.2])
    assert evidence_of("off_path", made) == (IDS[2], IDS[1])


@pytest.mark.parametrize("rule", [*STEP_RULES, *EVALUATION_RULES], ids=lambda rule: rule.name)
def test_every_rule_makes_an_alarm_with_a_command(rule: Rule[Any]) -> None:
    alarm = alarm_of(rule, Sign(2, 1, "what was found"), tables(), 3, Path("runs/a run"))
    assert (alarm.step, alarm.healthy, alarm.severe) == (2, 1, rule.severe)
    assert 0 < len(alarm.evidence) <= LARGEST
    assert alarm.command.startswith("srpo audit 'runs/a run' --")
    assert "--step 3" in alarm.command or alarm.evidence[0] in alarm.command


@pytest.mark.parametrize("rule", EVALUATION_RULES, ids=lambda rule: rule.name)
def test_an_evaluation_has_its_evidence_without_any_steps_tables(rule: Rule[Any]) -> None:
    """An alarm may be raised when an evaluation is made, before the next step has tables."""
    made = {name: tables()["evaluations"] for name in ("evaluations", "best_evaluations")}
    evidence_of(rule.evidence, made)
