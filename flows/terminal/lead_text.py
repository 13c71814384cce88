"""The teacher's lead on the terminal: a table, and a sentence that a newcomer can act on."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pipeline.run.lead_record import lead_word
from pipeline.text import percent

_WARMSTART = "A supervised start may help: srpo warmstart (docs/warmstart.md)."
_SHOWN = {"gold": "a gold answer", "feedback": "feedback"}
"""What a source shows that is no demonstration."""
_MOSTLY_RIGHT = 0.9
"""Accuracy with a teacher prompt from which on nobody says that the policy can't use it."""


def print_lead(console: Console, path: Path, record: Mapping[str, Any]) -> None:
    """Print a measurement, what it means, and where its answers are."""
    figures, rollouts = record["figures"], record["settings"]["generate"]["rollouts"]
    asked = f"{figures['questions']} training questions, {rollouts} answers each"
    title = f"the teacher's lead after {record['steps_done']} steps: {asked}"
    console.print(title, style="bold", highlight=False, soft_wrap=True)
    table = Table(show_header=False, box=None)
    table.add_column(style="bold")
    table.add_column()
    table.add_row("policy", interval(figures["policy"]))
    for source, found in figures["sources"].items():
        table.add_row(f"source {source}", f"{_questions(found)}, as many answers each")
        form = {part: f"format {percent(found[f'format_{part}'])}" for part in ("alone", "taught")}
        table.add_row("  teacher alone", f"{interval(found['alone'])}, {form['alone']}")
        copied = found["copied"]
        words = "" if copied is None else f", {percent(copied)} copied"
        table.add_row("  teacher prompt", f"{interval(found['taught'])}, {form['taught']}{words}")
        table.add_row("  difference", points(found["difference"]))
        if found["not_judged"]:
            table.add_row("  not judged", f"{found['not_judged']} answers, counted as wrong")
    console.print(table, highlight=False)
    files = f"answers and prompts: {path.with_suffix('.arrow')}, figures: {path.name}"
    for sentence in [*lead_sentences(figures, rollouts), files]:
        console.print(sentence, highlight=False, soft_wrap=True)


def lead_sentences(figures: Mapping[str, Any], rollouts: int) -> Iterator[str]:
    """Yield what a measurement means, in plain words."""
    sources, asked, right = figures["sources"], figures["questions"], figures["all_right"]
    for source, found in sources.items():
        yield _of_source(source, found)
    wrong = asked - right
    if not sources:
        if not wrong:
            yield f"Nothing to teach: all answers to all {asked} questions are right."
            return
        yield (
            f"NO LEAD: of {wrong} questions with a wrong answer none has anything to show, such as "
            f"a correct one among its {rollouts} answers, so nothing would be taught. {_WARMSTART}"
        )
        return
    yield (
        f"Of {asked} questions {right} had no wrong answer, and {figures['without_source']} a "
        "wrong one and nothing to show for it. The teacher may copy what it is shown: a lead says "
        "that it uses it, not that it could solve the question."
    )


def _of_source(source: str, found: Mapping[str, Any]) -> str:
    alone, taught = percent(found["alone"]["mean"]), percent(found["taught"]["mean"])
    word, change = lead_word(found), f"accuracy from {alone} to {taught}"
    if word == "lead":
        return f"A teacher prompt ({source}) lifts {change}: the teacher has a lead."
    if word == "unclear":
        return (
            f"NO LEAD beyond chance: on {_questions(found)} a teacher prompt ({source}) moves "
            f"{change}. Ask more of them: srpo evaluate --taught --questions."
        )
    no_lead = f"NO LEAD: a teacher prompt ({source}) moves {change}"
    if found["taught"]["mean"] >= _MOSTLY_RIGHT:
        return f"{no_lead}: the policy is right without one."
    shown = _SHOWN.get(source, "a demonstration")
    return (
        f"{no_lead}: the policy can't use {shown}, so its teacher has nothing to teach. "
        f"{_WARMSTART}"
    )


def _questions(found: Mapping[str, Any]) -> str:
    return f"{found['questions']} question{'' if found['questions'] == 1 else 's'}"


def interval(found: Mapping[str, float]) -> str:
    """Return an accuracy with its interval."""
    return f"{percent(found['mean'])} ({percent(found['low'])} to {percent(found['high'])})"


def points(found: Mapping[str, float]) -> str:
    """Return a difference of accuracies with its interval, in points."""
    mean, low, high = (f"{100 * found[name]:+.1f}" for name in ("mean", "low", "high"))
    return f"{mean} points ({low} to {high})"
