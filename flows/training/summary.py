"""The table at the end of a training: what it did to the policy, what it cost, how to go on."""

from collections.abc import Sequence
from typing import Any, Protocol

from rich.console import Console
from rich.table import Table

from flows.session.open_run import past_metrics
from flows.training.loop import Outcome, TrainingSession
from flows.training.step_text import interval
from pipeline.run.metrics import tasks_of
from pipeline.run.run import Run
from pipeline.run.step_records import Records
from pipeline.text import command, count, duration, go_on, percent, state_word

ENDINGS = {
    "steps": "all steps done",
    "hours": "run.max_hours used up",
    "stopped": "stopped on request",
    "alarm": "stopped by an alarm",
}


class SummarisedSession(TrainingSession, Protocol):
    """A session, and the run that it writes."""

    run: Run


def print_summary(console: Console, session: SummarisedSession, outcome: Outcome) -> None:
    """Print what the run has become, over all of its sessions."""
    run = session.run
    states = [n for n in range(outcome.steps_done + 1) if run.has("evaluations", n)]
    evaluations = {n: session.evaluation_summary(n) for n in states}
    records = past_metrics(run)
    table = Table(title=f"{run.root}: {ENDINGS[outcome.ended]}", show_header=False, box=None)
    table.add_column(style="bold")
    table.add_column()
    steps = f"{outcome.steps_done} of {run.config.run.steps}"
    table.add_row("steps", f"{steps}, {run.config.route.method}")
    for name, text in _accuracies(evaluations, run.config.evaluate.rollouts):
        table.add_row(name, text)
    table.add_row("training time", duration(session.training_seconds()))
    for name, text in _times(records):
        table.add_row(name, text)
    table.add_row("training tokens", count(sum(r.get("tokens") or 0 for r in records)))
    alarms = [alarm for record in records for alarm in record.get("alarms") or []]
    for alarm in [*alarms, *Records(run).unrecorded()]:
        table.add_row("alarm", f"step {alarm['step']}, {alarm['rule']}: {alarm['message']}")
    console.print(table, highlight=False)
    for label, text in [("run folder", f"{run.root}"), *_next_commands(run, outcome)]:
        # Outside the table, whose cells are cut to the terminal's width: these get copied.
        console.print(f" {label:<16} {text}", highlight=False, markup=False, soft_wrap=True)


def _accuracies(evaluations: dict[int, dict[str, Any]], rollouts: int) -> list[tuple[str, str]]:
    if not evaluations:
        return []
    first, last, k = min(evaluations), max(evaluations), f"avg@{rollouts}"
    best = max(evaluations, key=lambda n: evaluations[n]["accuracy"])
    named = [("before", first), ("after", last), ("best", best)] if last > first else [("", first)]
    rows = []
    for name, n in named:
        rows.append((f"{k} {name}".strip(), f"{interval(evaluations[n])} after {n} steps"))
        rows += [(f"  {t}", interval(evaluations[n], t)) for t in tasks_of(evaluations[n])]
    return rows


def _times(records: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    totals: dict[str, float] = {}
    for record in records:
        for key, value in record.items():
            if key.startswith("seconds_"):
                totals[key] = totals.get(key, 0.0) + (value or 0.0)
    whole = sum(totals.values())
    return [
        (f"  {key.removeprefix('seconds_')}", f"{duration(spent)} ({percent(spent / whole)})")
        for key, spent in totals.items()
        if whole > 0
    ]


def _next_commands(run: Run, outcome: Outcome) -> list[tuple[str, str]]:
    if outcome.ended in ("stopped", "alarm"):
        return [("go on", go_on(run.root))]
    longer = 2 * run.config.run.steps
    return [
        ("train longer", f"{go_on(run.root)} --set run.steps={longer}"),
        ("evaluate again", command("evaluate", state_word(run.root, outcome.steps_done))),
    ]
