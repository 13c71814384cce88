"""The heat map of a response: a colour for each token and quantity, and the ends of the scale.

A colour is a level: 0 to 31 of one hue, or -16 to 16 of two hues for quantities around a centre.
Each level is a class in rollout.css, so that pages need no style text, which their
Content-Security-Policy forbids.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

import numpy as np

LEVELS = 31
"""Highest level of one hue."""
SIDE = 16
"""Highest level on each side of zero."""
_MANY_TOKENS, _QUANTILE = 50, 0.98
"""Responses of this many tokens reach the strongest colour at this quantile rather than at the
largest value: one outlier would leave all others pale."""


@dataclass(frozen=True)
class Quantity:
    """A quantity that a heat map can show.

    Attributes:
        key: field of a token's record.
        kind: which values are strongly coloured: `high`, `low`, or both sides `around` the centre.
    """

    key: str
    label: str
    unit: str
    kind: str
    meaning: str
    centre: float = 0.0


QUANTITIES = (
    Quantity("teacher_entropy", "Teacher entropy", "nats", "high", "H of the teacher, 0: certain"),
    Quantity("student_entropy", "Student entropy", "nats", "high", "H of the policy, 0: certain"),
    Quantity("weight", "Weight", "", "high", "factor of the token's divergence, mean 1"),
    Quantity("credit", "Credit", "", "around", "Â/A, the token's factor of the advantage", 1.0),
    Quantity("jsd", "Divergence", "nats", "high", "student against teacher, JSD at α = 0.5"),
    Quantity("advantage", "Advantage", "", "around", "reward minus the group's mean"),
    Quantity("student_logprob", "Student log-prob", "nats", "low", "of the sampled token"),
    Quantity("teacher_logprob", "Teacher log-prob", "nats", "low", "of the sampled token"),
    Quantity("share", "Loss share", "", "high", "part of this rollout's sum of |token loss|"),
    Quantity("survival", "Survival", "", "high", "S: how far the teacher, too, would have come"),
)


@dataclass(frozen=True)
class Layer:
    """One quantity over the tokens of a response.

    Attributes:
        levels: one per token; None where nothing is recorded.
        pale: value of the palest colour.
        strong: value at which the strongest colour begins; as far on the other side if `around`.
        extreme: the value farthest from `pale`, if it lies beyond `strong`.
        missing: why nothing is recorded; empty if something is.
    """

    quantity: Quantity
    levels: list[int | None]
    pale: float
    strong: float
    extreme: float | None
    missing: str

    def to_dict(self) -> dict[str, Any]:
        """Return what the page's script needs."""
        return {**asdict(self.quantity), **{k: v for k, v in vars(self).items() if k != "quantity"}}


def colour(
    quantity: Quantity, values: Sequence[float | None], missing: str, least_end: float = 0.0
) -> Layer:
    """Colour the tokens of a response by one quantity.

    Args:
        values: one per token; None and values that are not finite get no colour.
        missing: the reason to give if there are no values.
        least_end: the scale reaches at least this far.
    """
    known = [value for value in values if value is not None and isfinite(value)]
    if not known:
        return Layer(quantity, [None] * len(values), 0.0, 0.0, None, missing or "not recorded")
    sizes = np.abs(np.subtract(known, quantity.centre))
    end = float(np.quantile(sizes, _QUANTILE)) if len(known) >= _MANY_TOKENS else 0.0
    end = max(end if end > 0 else float(sizes.max()), least_end)
    highest = SIDE if quantity.kind == "around" else LEVELS
    levels = [_level(value, quantity.centre, end, highest) for value in values]
    if quantity.kind != "around":
        levels = [None if level is None else abs(level) for level in levels]
    extreme, size = known[int(sizes.argmax())], float(sizes.max())
    strong = quantity.centre + (-end if quantity.kind == "low" else end)
    return Layer(quantity, levels, quantity.centre, strong, extreme if size > end else None, "")


def css_class(quantity: Quantity, level: int | None) -> str:
    """Return the CSS class of a level: h0 to h31, or n16 to n1 and p0 to p16; hx for none."""
    if level is None:
        return "hx"
    if quantity.kind != "around":
        return f"h{level}"
    return f"n{-level}" if level < 0 else f"p{level}"


def first_shown(layers: Iterable[Layer]) -> str:
    """Return the key of the first layer whose tokens differ, else of the first with values."""
    listed = list(layers)
    known = [one for one in listed if not one.missing]
    differing = [one for one in known if len(set(one.levels)) > 1]
    return (differing or known or listed)[0].quantity.key


def _level(value: float | None, centre: float, end: float, highest: int) -> int | None:
    if value is None or not isfinite(value):
        return None
    return round(highest * max(-1.0, min(1.0, (value - centre) / end))) if end > 0 else 0
