"""H1 to H6: what the study set out to find, and the rules by which rows decide.

Every rule reads 95% intervals of differences, paired by seeds and questions
(`pipeline.study.curve_measures.difference`). An interval lies above 0 if its lower end is greater
than 0, and below 0 if its upper end is less than 0. In a world a hypothesis is confirmed, refuted
or undecided, or has no data yet: a variant that it compares has no rows, or both have fewer than
`SEEDS_NEEDED` seeds in common. Nothing else is decided by looking at numbers.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from pipeline.run.metrics import Interval
from pipeline.study.curve_measures import (
    Measure,
    Values,
    accuracy,
    at_sixth,
    best,
    difference,
    final,
    first_steps,
    format_rate,
    last_third,
    worst_drop,
)
from pipeline.study.study_row import Row

Verdict = Literal["confirmed", "refuted", "undecided", "no data yet"]

GROUPS = ("main", "ablation")
"""Groups whose rows decide. Two variants that are compared come from the first of these in which
both are; else each from the first in which it is, longer runs cut to the steps of the shorter."""
SEEDS_NEEDED = 3
MARGIN = 0.01
"""A point: what is lower by less is not lower."""
LEVEL_1, LEVEL_2, SMOLLM2 = "level-1", "level-2", "smollm2"


def above_zero(differences: Sequence[Interval]) -> Verdict:
    """Confirmed if the interval lies above 0; refuted if it lies below 0; else undecided."""
    (found,) = differences
    return "confirmed" if found.low > 0 else "refuted" if found.high < 0 else "undecided"


def late_and_steady(differences: Sequence[Interval]) -> Verdict:
    """Judge the last third, and the fall that is spared.

    Refuted if either interval lies below 0. Else confirmed if the lower end of the first is at
    least -0.01 and the second lies above 0. Else undecided.
    """
    late, spared = differences
    if late.high < 0 or spared.high < 0:
        return "refuted"
    return "confirmed" if late.low >= -MARGIN and spared.low > 0 else "undecided"


def all_above_zero(differences: Sequence[Interval]) -> Verdict:
    """Refuted if any interval lies below 0; confirmed if all lie above 0; else undecided."""
    if any(found.high < 0 for found in differences):
        return "refuted"
    return "confirmed" if all(found.low > 0 for found in differences) else "undecided"


def any_above_zero(differences: Sequence[Interval]) -> Verdict:
    """Confirmed (helps) if an interval lies above 0 and none below 0.

    Refuted (harms) if an interval lies below 0 and none above 0. Else undecided.
    """
    above = any(found.low > 0 for found in differences)
    below = any(found.high < 0 for found in differences)
    if above == below:
        return "undecided"
    return "confirmed" if above else "refuted"


def late_with_format(differences: Sequence[Interval]) -> Verdict:
    """Judge the last third, and the format rate after training.

    Refuted if the first interval lies below 0, or the upper end of the second is less than -0.01.
    Else confirmed if the first lies above 0 and the lower end of the second is at least -0.01.
    Else undecided.
    """
    late, kept = differences
    if late.high < 0 or kept.high < -MARGIN:
        return "refuted"
    return "confirmed" if late.low > 0 and kept.low >= -MARGIN else "undecided"


def a_level_and_smollm2(worlds: Mapping[str, Verdict]) -> Verdict:
    """Judge all worlds together.

    Confirmed if confirmed in level-1 or level-2, and in smollm2; refuted if refuted in all three;
    else undecided. No data yet while a world has none.
    """
    if "no data yet" in worlds.values():
        return "no data yet"
    levels = (worlds[LEVEL_1], worlds[LEVEL_2])
    if "confirmed" in levels and worlds[SMOLLM2] == "confirmed":
        return "confirmed"
    return "refuted" if set(worlds.values()) == {"refuted"} else "undecided"


def every_world(worlds: Mapping[str, Verdict]) -> Verdict:
    """Judge all worlds together.

    Refuted if refuted in any; confirmed if confirmed in every one; else undecided. No data yet
    while a world has none.
    """
    if "no data yet" in worlds.values():
        return "no data yet"
    if "refuted" in worlds.values():
        return "refuted"
    return "confirmed" if set(worlds.values()) == {"confirmed"} else "undecided"


def in_level_2(worlds: Mapping[str, Verdict]) -> Verdict:
    """Judge by level-2 alone, the world with many groups that are all wrong."""
    return worlds[LEVEL_2]


class Contrast(NamedTuple):
    """A measure of the rows of one variant minus that of another."""

    what: str
    plus: str
    minus: str
    measure: Measure
    of: Values = accuracy


@dataclass(frozen=True)
class Hypothesis:
    """What was claimed before the runs.

    Attributes:
        worlds: where it is judged.
        contrasts: whose intervals decide, in the order in which the rule reads them.
        rule: the verdict of a world.
        together: the verdict of all of them.
    """

    key: str
    claim: str
    worlds: tuple[str, ...]
    contrasts: tuple[Contrast, ...]
    rule: Callable[[Sequence[Interval]], Verdict]
    together: Callable[[Mapping[str, Verdict]], Verdict]


def hypotheses(survival: str) -> tuple[Hypothesis, ...]:
    """Return H1 to H6.

    Args:
        survival: the variant with survival that the pilot chose.
    """
    levels, everywhere = (LEVEL_1, LEVEL_2), (LEVEL_1, LEVEL_2, SMOLLM2)
    return (
        Hypothesis(
            "H1",
            "Early, SRPO is ahead of GRPO",
            everywhere,
            (Contrast("accuracy at a sixth of the steps", "srpo", "grpo", at_sixth),),
            above_zero,
            a_level_and_smollm2,
        ),
        Hypothesis(
            "H2",
            "Late, SRPO is no worse than SDPO, and falls less",
            everywhere,
            (
                Contrast("accuracy in the last third", "srpo", "sdpo", last_third),
                Contrast("worst drop of accuracy", "sdpo", "srpo", worst_drop),
            ),
            late_and_steady,
            every_world,
        ),
        Hypothesis(
            "H3",
            "Within the full budget, SRPO's best is above that of both",
            everywhere,
            (
                Contrast("best accuracy", "srpo", "grpo", best),
                Contrast("best accuracy", "srpo", "sdpo", best),
            ),
            all_above_zero,
            every_world,
        ),
        Hypothesis(
            "H4",
            "The weights of SRPO help",
            levels,
            (
                Contrast("accuracy in the last third", "srpo", "srpo-unweighted", last_third),
                Contrast("best accuracy", "srpo", "srpo-unweighted", best),
            ),
            any_above_zero,
            every_world,
        ),
        Hypothesis(
            "H5",
            "The bank helps where groups are all wrong",
            levels,
            (Contrast("accuracy in the last third", "srpo-bank", "srpo", last_third),),
            above_zero,
            in_level_2,
        ),
        Hypothesis(
            "H6",
            "On the real model, survival is ahead of plain SRPO late, and keeps the format",
            (SMOLLM2,),
            (
                Contrast("accuracy in the last third", survival, "srpo", last_third),
                Contrast("format rate after training", survival, "srpo", final, format_rate),
            ),
            late_with_format,
            every_world,
        ),
    )


class Part(NamedTuple):
    """One difference that a verdict rests on: what of which world, of how many seeds."""

    world: str
    what: str
    interval: Interval
    seeds: int
    questions: int


@dataclass(frozen=True)
class Judgement:
    """What rows say of a hypothesis: of all its worlds together, and of each."""

    key: str
    claim: str
    verdict: Verdict
    worlds: dict[str, Verdict]
    parts: list[Part]


def judgements(rows: Sequence[Row], survival: str) -> list[Judgement]:
    """Return what the rows of a study say of H1 to H6.

    Raises:
        ValueError: rows that a hypothesis compares can't be compared.
    """
    return [judge(hypothesis, rows) for hypothesis in hypotheses(survival)]


def judge(hypothesis: Hypothesis, rows: Sequence[Row]) -> Judgement:
    """Return what rows say of a hypothesis.

    Raises:
        ValueError: rows that it compares can't be compared.
    """
    worlds: dict[str, Verdict] = {}
    parts: list[Part] = []
    for world in hypothesis.worlds:
        found = [_part(contrast, world, rows) for contrast in hypothesis.contrasts]
        known = [part for part in found if part is not None]
        complete = len(known) == len(found)
        intervals = [part.interval for part in known]
        worlds[world] = hypothesis.rule(intervals) if complete else "no data yet"
        parts += known
    verdict = hypothesis.together(worlds)
    return Judgement(hypothesis.key, hypothesis.claim, verdict, worlds, parts)


def _part(contrast: Contrast, world: str, rows: Sequence[Row]) -> Part | None:
    """Return a difference; None if there is too little to compare."""
    plus, minus = _compared(contrast, [row for row in rows if row.world == world])
    common = {row.seed for row in plus} & {row.seed for row in minus}
    if len(common) < SEEDS_NEEDED:
        return None
    found = difference(plus, minus, contrast.measure, contrast.of)
    return Part(world, f"{contrast.plus} - {contrast.minus}: {contrast.what}", *found)


def _compared(contrast: Contrast, rows: Sequence[Row]) -> list[list[Row]]:
    """Return the rows of the two variants of one world, from the groups that decide."""
    by_group = [
        [
            [row for row in rows if (row.group, row.variant) == (group, variant)]
            for variant in (contrast.plus, contrast.minus)
        ]
        for group in GROUPS
    ]
    for both in by_group:
        if all(both):
            return both
    found: list[list[Row]] = [
        next(filter(None, of_variant), []) for of_variant in zip(*by_group, strict=True)
    ]
    fewest = min((len(row.steps) for of_variant in found for row in of_variant), default=0)
    return [[first_steps(row, fewest) for row in of_variant] for of_variant in found]
