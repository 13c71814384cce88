"""What `python -m flows.study explain` prints of a run: its fall, what moved, what was taught."""

from rich.console import Console

from flows.terminal.tables import cell, line, plain_table
from pipeline.study.alarm_study import Fate
from pipeline.study.explain import Explanation, Heard
from pipeline.text import number

_FATES: dict[Fate, str] = {
    "precedes": "before the loss",
    "late": "after the loss",
    "false": "no loss followed",
}


def print_explanation(console: Console, found: Explanation) -> None:
    """Print an explanation in plain tables."""
    console.print(line(found.name, "bold"))
    console.print(_fall_text(found))
    _print_alarms(console, found)
    if found.moved:
        _print_moved(console, found)
    for heard in found.heard:
        _print_heard(console, heard)
    console.print()


def _fall_text(found: Explanation) -> str:
    if found.fall is None:
        return "accuracy never fell from one evaluation to a later one"
    fall = found.fall
    kind = "a loss" if found.lost else "no loss, the largest fall"
    return (
        f"{kind}: accuracy {fall.now:.1%} after {fall.shown} steps, at best {fall.best:.1%} "
        f"before, lost in steps {fall.onset} to {fall.shown - 1}"
    )


def _print_alarms(console: Console, found: Explanation) -> None:
    if not found.alarms:
        console.print("no alarm was raised")
        return
    table = plain_table([("alarm", "left"), ("after steps", "right"), ("which is", "left")], ())
    for rule, done, fate in found.alarms:
        shows = found.lost and found.fall is not None and done == found.fall.shown
        table.add_row(cell(rule), cell(done), "as the loss is shown" if shows else _FATES[fate])
    console.print(table)


def _print_moved(console: Console, found: Explanation) -> None:
    names = ("first", "before", "fall", "after", "moved at")
    table = plain_table([("number", "left"), *((name, "right") for name in names)], ())
    for moved in found.moved:
        table.add_row(cell(moved.name), *map(cell, moved[1:]))
    console.print(table)


def _print_heard(console: Console, heard: Heard) -> None:
    whose = "correct" if heard.correct else "wrong"
    tokens = plain_table(
        [(f"taught tokens of {whose} rollouts", "left"), ("of the divergence", "right"),
         ("times", "right"), ("off the path", "right")],
        (),
    )  # fmt: skip
    for token in heard.tokens:
        tokens.add_row(cell(repr(token.text)), f"{token.share:.1%}", cell(token.times),
                       f"{token.off_path:.0%}")  # fmt: skip
    console.print(tokens)
    for rollout in heard.rollouts:
        where = f"{number(100 * rollout.share)}% of its step, most at token {rollout.position}"
        console.print(f"{rollout.command}   # {where}, {rollout.text!r}", soft_wrap=True)
