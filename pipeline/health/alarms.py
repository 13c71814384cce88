"""Alarms: what the rules find new at a step or an evaluation, with evidence and a command."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.health.evidence import SELECTORS, Selector, evidence_of
from pipeline.health.findings import Sign
from pipeline.health.rules import EVALUATION_RULES, STEP_RULES, Rule
from pipeline.health.shifts import Records
from pipeline.text import command


@dataclass(frozen=True)
class Alarm:
    """A rule that has fired.

    Attributes:
        step: first step, or state evaluated, at which the trouble shows.
        healthy: steps done of the newest state that is not known to be affected.
        message: what was found and what was expected, in numbers.
        evidence: ids of up to five rollouts, those of evaluations begin with e.
        command: shows the evidence.
        severe: whether `run.on_alarm` acts on it.
    """

    rule: str
    step: int
    healthy: int
    message: str
    evidence: tuple[str, ...]
    command: str
    severe: bool

    def to_record(self) -> dict[str, Any]:
        """Return what a step's record keeps."""
        return {**asdict(self), "evidence": list(self.evidence)}


Finding = tuple[Rule[Any], Sign]
"""A rule and what it found."""


def findings_at_step(steps: Records, evaluations: Records) -> list[Finding]:
    """Return what is new at the newest step.

    Args:
        steps: records of steps 0 to now; earlier ones hold their `alarms`.
        evaluations: records of states up to the one before the step, each with `steps_done`.
    """
    known = _known(steps[:-1])
    found = [(rule, rule.find(steps)) for rule in STEP_RULES if rule.name not in known]
    signs: list[Finding] = [(rule, sign) for rule, sign in found if sign is not None]
    return [*signs, *findings_at_evaluation(steps[:-1], evaluations)]


def findings_at_evaluation(steps: Records, evaluations: Records) -> list[Finding]:
    """Return what is new at the newest evaluation, of the state after `steps`."""
    if not evaluations:
        return []
    known = _known(steps)
    rules = [rule for rule in EVALUATION_RULES if rule.name not in known]
    found = [(rule, rule.find(evaluations, steps)) for rule in rules]
    return [(rule, sign) for rule, sign in found if sign is not None]


def _known(records: Records) -> set[str]:
    return {alarm["rule"] for record in records for alarm in record.get("alarms") or []}


def alarm_of(
    rule: Rule[Any], sign: Sign, tables: Mapping[str, pa.Table], step: int, run: Path
) -> Alarm:
    """Return the alarm, with evidence.

    Args:
        tables: those of the step that raises it, and the newest `evaluations`.
        step: the step that raises it.
        run: folder of the run, for the command.
    """
    evidence = evidence_of(rule.evidence, tables)
    command = _command(run, SELECTORS[rule.evidence], step, evidence)
    return Alarm(rule.name, sign.onset, sign.healthy, sign.message, evidence, command, rule.severe)


def _command(run: Path, selector: Selector, step: int, evidence: Sequence[str]) -> str:
    if selector.condition:
        sort = f" --sort={selector.sort}" if selector.sort else ""
        return f'{command("audit", run, "--step", step)} --where "{selector.condition}"{sort}'
    if evidence:
        return command("audit", run, "--rollout", evidence[0])
    return command("view", run)
