"""What pilots chose: a learning rate for each method, and one of the settings of survival.

The rule (docs/STUDY.md): the rate with the highest accuracy in the last third of its pilot; of
rates within a point of it, the lowest. Of the settings of survival, the one with the highest mean
over the worlds that piloted all of them, each at its own rate.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from pipeline.study.study_results import VariantResult, WorldResult

SURVIVAL = "srpo-survival"
"""How the names of variants with survival begin."""
WITHIN = 0.01
_ROUNDING = 1e-9
"""What a mean may lack of its number: far less than one answer makes."""


class Pilots(NamedTuple):
    """The pilots of one method in one world.

    Attributes:
        late: accuracy in the last third by learning rate as names have it; None: not finished.
    """

    variant: str
    late: Mapping[str, float | None]

    @property
    def chosen(self) -> str | None:
        """Return the rate that the rule takes; None while a pilot is missing."""
        known = {rate: share for rate, share in self.late.items() if share is not None}
        if len(known) < len(self.late):
            return None
        least = max(known.values()) - WITHIN - _ROUNDING
        return min((rate for rate, share in known.items() if share >= least), key=float)

    @property
    def best(self) -> float | None:
        """Return the accuracy at the chosen rate."""
        return None if self.chosen is None else self.late[self.chosen]


def pilots_of(world: WorldResult) -> list[Pilots]:
    """Return a world's pilots, in the plan's order."""
    by_variant: dict[str, dict[str, float | None]] = {}
    for result in world.results:
        if result.group not in world.compared:
            name, _, rate = result.name.partition("@")
            by_variant.setdefault(name, {})[rate] = _late(result)
    return [Pilots(variant, late) for variant, late in by_variant.items()]


def _late(result: VariantResult) -> float | None:
    if result.finished is None or len(result.finished.rows) < len(result.runs):
        return None
    return result.finished.summary.accuracy["last_third"].mean


def survival_means(worlds: Sequence[Sequence[Pilots]]) -> dict[str, float | None]:
    """Return of each setting of survival the mean over worlds, at the chosen rate of each.

    It is None while a pilot is missing.

    Args:
        worlds: the pilots of each.
    """
    found: dict[str, list[float | None]] = {}
    for pilots in worlds:
        for one in pilots:
            if one.variant.startswith(SURVIVAL):
                found.setdefault(one.variant, []).append(one.best)
    return {variant: _mean(shares) for variant, shares in found.items()}


def _mean(shares: Sequence[float | None]) -> float | None:
    known = [share for share in shares if share is not None]
    return fmean(known) if len(known) == len(shares) else None
