"""Methods side by side on a terminal: norms, cosines, and what becomes of failed and correct."""

from rich.console import Console
from rich.table import Table

from pipeline.compare.side_by_side import SideBySide, parts_of
from pipeline.text import NOTHING, count, number, percent, printable


def print_side_by_side(found: SideBySide, console: Console) -> None:
    """Print both tables; per rollout and token the JSON and the page have all."""
    tokens = sum(len(sample.token_ids) for sample in found.samples)
    _say(
        console,
        f"step {found.step}, policy {found.policy_version}: {count(len(found.samples))} rollouts, "
        f"{count(tokens)} tokens",
    )
    names = [f"{i} {printable(own.label)}" for i, own in enumerate(found.methods, start=1)]
    table = _table("gradients of L, and cosines with those of methods 1, 2, …")
    _add_numbers(table, "N", "L", "norm", *(str(i) for i in range(1, len(names) + 1)))
    for name, method, row in zip(names, found.methods, found.cosines, strict=True):
        cosines = [NOTHING if value is None else f"{value:.3f}" for value in row]
        own = (count(method.tokens), number(method.loss), number(method.norm))
        table.add_row(name, *own, *cosines)
    console.print(table, highlight=False, markup=False)
    table = _table("shares of the sum over all tokens: |loss|, gradient at the logits")
    _add_numbers(table, "rollouts", "", "|loss|", "gradient", "likelier", "less likely")
    for name, method in zip(names, found.methods, strict=True):
        for place, part in enumerate(parts_of(found, method)):
            shares = (part.loss_share, part.size_share, part.raising, part.lowering)
            shown = [percent(share) for share in shares]
            table.add_row("" if place else name, part.outcome, count(part.rollouts), *shown)
    console.print(table, highlight=False, markup=False)


def _table(title: str) -> Table:
    table = Table(box=None, title=title, title_justify="left", padding=(0, 1, 0, 0))
    table.add_column("method", overflow="fold")
    return table


def _add_numbers(table: Table, *headings: str) -> None:
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
