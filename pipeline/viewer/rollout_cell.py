"""A rollout in one small cell, and its part of the loss, for all pages that list rollouts.

Rows have the columns of `pipeline.audit.listing`.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from pipeline.tables.schemas import Row
from pipeline.text import number, percent, printable

_SHOWN = 120
"""Characters of a prediction or a question's name that are shown."""


def with_loss_shares(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Add `loss` (its part of the update's loss) and `loss_share` to rows of the listing.

    The part is loss_sum / N. The share is of the sum of all parts' sizes, as parts can cancel;
    both are None where there are no updates.
    """
    totals: Counter[int] = Counter()
    sizes: Counter[int] = Counter()
    for row in rows:
        if row["loss_sum"] is not None:
            totals[row["mini_batch"]] += row["response_tokens"] if row["share"] else 0
            sizes[row["mini_batch"]] += abs(row["loss_sum"])
    found = []
    for row in rows:
        loss = share = None
        if row["loss_sum"] is not None:
            loss = row["loss_sum"] / (totals[row["mini_batch"]] or 1)
            share = abs(row["loss_sum"]) / (sizes[row["mini_batch"]] or 1.0)
        found.append({**row, "loss": loss, "loss_share": share})
    return found


def cell(row: Row, index: int = 0) -> dict[str, Any]:
    """Return what a cell of the grid needs: its mark, its classes and what is read aloud."""
    reward, correct = row["reward"], row["correct"]
    mark = "·" if reward is None else number(reward, 2)
    unjudged = row.get("error") is not None
    if unjudged:
        mark = "?"
    elif reward in (0.0, 1.0):
        mark = "✓" if correct else "✗"
    cut, broken = row["finish_reason"] == "length", row["format_ok"] is False and not unjudged
    looks = {
        row["route"] or "": True,
        "right": correct is True,
        "wrong": correct is False and not unjudged,
        "cut": cut,
        "idle": row["computed"] is False,
    }
    words = [
        row["rollout_id"],
        f"route {row['route'] or 'not decided'}",
        verdict(row),
        *(["cut at the limit"] if cut else []),
        *(["broken format"] if broken else []),
    ]
    return {
        "index": index,
        "rollout_id": row["rollout_id"],
        "reward": None if unjudged else reward,
        "mark": mark + "…" * cut + "!" * broken,
        "look": " ".join(look for look, on in looks.items() if on and look),
        "label": ", ".join(words),
    }


def verdict(row: Row) -> str:
    """Return right or wrong, and the reward; or that it could not be judged."""
    if row["reward"] is None:
        return "not verified"
    if row.get("error") is not None:
        return "not judged"
    return f"{'right' if row['correct'] else 'wrong'}, reward {number(row['reward'])}"


def verdict_word(row: Row) -> str | None:
    """Return right, wrong or not judged; None before stage verify."""
    if row.get("error") is not None:
        return "not judged"
    return {True: "right", False: "wrong"}.get(row["correct"])


def short(text: str) -> str:
    """Return untrusted text on one line, not longer than a name or a prediction should be."""
    return printable(text, _SHOWN)


def small_share(value: float | None) -> str:
    """Return a share in percent; one that would round to 0.0% is told apart from nothing."""
    return "<0.1%" if value and value < 0.0005 else percent(value)
