"""Methods side by side on a terminal: norms, cosines, and what becomes of failed and correct."""

from rich.console import Console
from rich.table import Table

from pipeline.compare.side_by_side import SideBySide, parts_of
from pipeline.text import count, number, percent, printable


def print_side_by_side(found: SideBySide, console: Console) -> None:
    """Print both tables; per rollout and token the JSON and the page have all."""
    tokens = sum(len(sample.token_ids) for sample in found.samples)
    _say(
        console,
        f"step {found.step}, policy {found.policy_version}: {count(len(found.samples))} rollouts, "
        f"{count(tokens)} tokens",
    )
    names = [printable(method.label) for method in found.methods]
    table = _table("the gradient of L, and its cosine with those of the others")
    for heading in ("N", "L", "norm", *names):
        table.add_column(heading, justify="right")
    for name, method, row in zip(names, found.methods, found.cosines, strict=True):
        cosines = ["-" if value is None else f"{value:.3f}" for value in row]
        table.add_row(
            name, count(method.tokens), number(method.loss), number(method.norm, 4), *cosines
        )
    console.print(table, highlight=False, markup=False)
    table = _table("shares of the sum over all tokens: |loss|, gradient at the logits")
    for heading in ("rollouts", "", "|loss|", "gradient", "likelier", "less likely"):
        table.add_column(heading, justify="right")
    for name, method in zip(names, found.methods, strict=True):
        for place, part in enumerate(parts_of(found, method)):
            shares = (part.loss_share, part.size_share, part.raising, part.lowering)
            shown = [percent(share) for share in shares]
            table.add_row("" if place else name, part.outcome, count(part.rollouts), *shown)
    console.print(table, highlight=False, markup=False)


def _table(title: str) -> Table:
    table = Table(box=None, title=title, title_justify="left")
    table.add_column("method", no_wrap=True)
    return table


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
