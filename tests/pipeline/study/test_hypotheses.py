"""H1 to H6: each rule at its bounds, and verdicts from rows."""

from collections.abc import Sequence

import pytest

from pipeline.run.metrics import Interval
from pipeline.study.hypotheses import (
    Judgement,
    Verdict,
    a_level_and_smollm2,
    above_zero,
    all_above_zero,
    any_above_zero,
    every_world,
    hypotheses,
    in_level_2,
    judge,
    judgements,
    late_and_steady,
    late_with_format,
)
from pipeline.study.study_row import Row
from tests.builders.study_rows import study_row

SURVIVAL = "srpo-survival-weight"
WORLDS = ("level-1", "level-2", "smollm2")

ABOVE, BELOW, ACROSS = (Interval(0.0, *ends) for ends in ((0.02, 0.1), (-0.1, -0.02), (-0.1, 0.1)))
TOUCHES_FROM_ABOVE, TOUCHES_FROM_BELOW = Interval(0.1, 0.0, 0.2), Interval(-0.1, -0.2, 0.0)
ALMOST, NOT_QUITE = Interval(0.0, -0.01, 0.1), Interval(0.0, -0.0101, 0.1)
SLIGHTLY_LOWER = Interval(-0.005, -0.009, -0.001)
LOWER_BY_A_POINT = Interval(-0.02, -0.03, -0.01)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (ABOVE, "confirmed"),
        (BELOW, "refuted"),
        (ACROSS, "undecided"),
        (TOUCHES_FROM_ABOVE, "undecided"),
        (TOUCHES_FROM_BELOW, "undecided"),
    ],
)
def test_one_interval(found: Interval, expected: Verdict) -> None:
    assert above_zero([found]) == expected


@pytest.mark.parametrize(
    ("late", "spared", "expected"),
    [
        (ABOVE, ABOVE, "confirmed"),
        (ALMOST, ABOVE, "confirmed"),
        (NOT_QUITE, ABOVE, "undecided"),
        (ABOVE, ACROSS, "undecided"),
        (ABOVE, TOUCHES_FROM_ABOVE, "undecided"),
        (BELOW, ABOVE, "refuted"),
        (SLIGHTLY_LOWER, ABOVE, "refuted"),
        (ABOVE, BELOW, "refuted"),
        (ACROSS, TOUCHES_FROM_BELOW, "undecided"),
    ],
)
def test_late_and_steady(late: Interval, spared: Interval, expected: Verdict) -> None:
    assert late_and_steady([late, spared]) == expected


@pytest.mark.parametrize(
    ("one", "other", "all_of_them", "any_of_them"),
    [
        (ABOVE, ABOVE, "confirmed", "confirmed"),
        (ABOVE, ACROSS, "undecided", "confirmed"),
        (ABOVE, BELOW, "refuted", "undecided"),
        (ACROSS, ACROSS, "undecided", "undecided"),
        (BELOW, ACROSS, "refuted", "refuted"),
        (BELOW, BELOW, "refuted", "refuted"),
        (ABOVE, TOUCHES_FROM_ABOVE, "undecided", "confirmed"),
    ],
)
def test_two_intervals(
    one: Interval, other: Interval, all_of_them: Verdict, any_of_them: Verdict
) -> None:
    for pair in ([one, other], [other, one]):
        assert all_above_zero(pair) == all_of_them
        assert any_above_zero(pair) == any_of_them


@pytest.mark.parametrize(
    ("late", "kept", "expected"),
    [
        (ABOVE, ACROSS, "undecided"),
        (ABOVE, ALMOST, "confirmed"),
        (ABOVE, SLIGHTLY_LOWER, "confirmed"),
        (ABOVE, LOWER_BY_A_POINT, "undecided"),
        (ABOVE, BELOW, "refuted"),
        (BELOW, ABOVE, "refuted"),
        (ACROSS, ABOVE, "undecided"),
    ],
)
def test_late_with_format(late: Interval, kept: Interval, expected: Verdict) -> None:
    assert late_with_format([late, kept]) == expected


YES: Verdict = "confirmed"
NO: Verdict = "refuted"
OPEN: Verdict = "undecided"
NONE: Verdict = "no data yet"


@pytest.mark.parametrize(
    ("verdicts", "a_level", "every"),
    [
        ((YES, YES, YES), YES, YES),
        ((YES, NO, YES), YES, NO),
        ((OPEN, YES, YES), YES, OPEN),
        ((YES, YES, OPEN), OPEN, OPEN),
        ((OPEN, OPEN, YES), OPEN, OPEN),
        ((YES, YES, NO), OPEN, NO),
        ((NO, NO, NO), NO, NO),
        ((NO, NO, OPEN), OPEN, NO),
        ((YES, NONE, YES), NONE, NONE),
        ((NO, NO, NONE), NONE, NONE),
    ],
)
def test_all_worlds_together(
    verdicts: tuple[Verdict, Verdict, Verdict], a_level: Verdict, every: Verdict
) -> None:
    worlds = dict(zip(WORLDS, verdicts, strict=True))
    assert a_level_and_smollm2(worlds) == a_level
    assert every_world(worlds) == every
    assert in_level_2(worlds) == verdicts[1]


STEPS = range(0, 13, 2)
STEADY = (0.3, 0.5, 0.6, 0.65, 0.7, 0.72, 0.74)
SLOW = (0.3, 0.32, 0.4, 0.45, 0.5, 0.55, 0.58)
FALLS = (0.3, 0.5, 0.6, 0.65, 0.6, 0.4, 0.35)
CURVES = {
    "srpo": STEADY, "grpo": SLOW, "sdpo": FALLS, "srpo-unweighted": SLOW, "srpo-bank": STEADY,
    SURVIVAL: STEADY,
}  # fmt: skip


def rows_of(
    variant: str,
    curve: Sequence[float] = (),
    worlds: Sequence[str] = WORLDS,
    seeds: int = 3,
    group: str = "main",
    format_rate: float = 1.0,
) -> list[Row]:
    """Return rows of which questions and seeds differ, in all variants alike.

    Of 20 questions the first is the easiest; a seed adds to each count what it adds elsewhere.
    """
    found = []
    for world in worlds:
        for seed in range(seeds):
            counts = {
                step: [
                    min(36, max(0, round(28 * value) + (q % 5) - 2 + seed - 1)) for q in range(20)
                ]
                for step, value in zip(STEPS, curve or CURVES[variant], strict=True)
            }
            name = f"{group}/{world}/{variant}/{seed}"
            row = study_row(name, counts, answers=35, format_rate=format_rate)
            found.append(row)
    return found


def all_rows() -> list[Row]:
    return [row for variant in CURVES for row in rows_of(variant)]


def judged(rows: Sequence[Row]) -> dict[str, Judgement]:
    return {found.key: found for found in judgements(rows, SURVIVAL)}


def test_verdicts_from_rows() -> None:
    found = judged(all_rows())
    assert {key: judgement.verdict for key, judgement in found.items()} == {
        "H1": "confirmed",  # 0.5 above 0.32 after 2 of 12 steps
        "H2": "confirmed",  # 0.73 above 0.375 in the last third; falls by 0 and by 0.3
        "H3": "confirmed",  # 0.74 above 0.58 and 0.65
        "H4": "confirmed",
        "H5": "undecided",  # the same curve
        "H6": "undecided",
    }
    (part, *_) = found["H1"].parts
    assert (part.world, part.what) == ("level-1", "srpo - grpo: accuracy at a sixth of the steps")
    assert (part.seeds, part.questions) == (3, 20)
    # round(28 x 0.5) - round(28 x 0.32) = 5 of 35 answers to every question, in every seed
    assert part.interval == pytest.approx((5 / 35, 5 / 35, 5 / 35))
    assert [part.what.partition(":")[0] for part in found["H2"].parts] == [
        "srpo - sdpo", "sdpo - srpo"
    ] * 3  # fmt: skip
    assert found["H2"].worlds == dict.fromkeys(WORLDS, "confirmed")
    assert list(found["H4"].worlds) == ["level-1", "level-2"]


def test_what_speaks_against_the_claims() -> None:
    """SRPO does as SDPO is feared to, everywhere; SDPO stays steady."""
    turned = {**CURVES, "srpo": FALLS, "sdpo": STEADY, "grpo": STEADY, SURVIVAL: FALLS}
    rows = [row for variant, curve in turned.items() for row in rows_of(variant, curve)]
    found = judged(rows)
    assert {key: found[key].verdict for key in ("H1", "H2", "H3", "H5", "H6")} == {
        "H1": "undecided",  # they have the same start
        "H2": "refuted",
        "H3": "refuted",
        "H5": "confirmed",
        "H6": "undecided",
    }


def test_survival_is_judged_by_accuracy_and_format() -> None:
    plain = [*rows_of("srpo", SLOW), *rows_of("grpo"), *rows_of("sdpo")]
    (hypothesis,) = (h for h in hypotheses(SURVIVAL) if h.key == "H6")
    kept = judge(hypothesis, [*plain, *rows_of(SURVIVAL, format_rate=0.995)])
    lost = judge(hypothesis, [*plain, *rows_of(SURVIVAL, format_rate=0.9)])
    assert (kept.verdict, lost.verdict) == ("confirmed", "refuted")
    assert lost.parts[1].interval == pytest.approx((-0.1, -0.1, -0.1))


def test_there_is_no_verdict_without_rows() -> None:
    assert {found.verdict for found in judgements([], SURVIVAL)} == {"no data yet"}
    rows = [row for row in all_rows() if (row.world, row.variant) != ("smollm2", "grpo")]
    found = judged(rows)["H1"]
    assert found.verdict == "no data yet"
    assert found.worlds == {"level-1": YES, "level-2": YES, "smollm2": NONE}
    assert len(found.parts) == 2


def test_two_seeds_are_too_few() -> None:
    rows = [row for row in all_rows() if (row.variant, row.seed) != ("grpo", 1)]
    found = judged(rows)
    assert (found["H1"].verdict, found["H2"].verdict) == ("no data yet", "confirmed")
    # Of H3 what is known is told, and not judged.
    assert found["H3"].verdict == "no data yet"
    assert [part.what for part in found["H3"].parts] == ["srpo - sdpo: best accuracy"] * 3


def test_pilots_do_not_decide() -> None:
    rows = [row for variant in CURVES for row in rows_of(variant, group="pilot")]
    assert {found.verdict for found in judgements(rows, SURVIVAL)} == {"no data yet"}


def test_ablations_are_compared_with_their_own_group_first() -> None:
    """There SRPO has rows too, of which this variant is the equal; else those in main are taken."""
    main = rows_of("srpo", SLOW, seeds=5)
    ablation = rows_of("srpo-unweighted", STEADY, group="ablation")
    (hypothesis,) = (h for h in hypotheses(SURVIVAL) if h.key == "H4")
    across = judge(hypothesis, [*main, *ablation])
    assert across.verdict == "refuted"
    assert {part.seeds for part in across.parts} == {3}
    within = judge(hypothesis, [*main, *ablation, *rows_of("srpo", STEADY, group="ablation")])
    assert within.verdict == "undecided"


def test_shorter_ablations_are_compared_with_the_first_steps_of_main_runs() -> None:
    """After 20 of 40 steps they are equal; by then the long ones have not got better."""
    early, whole = {0: 0.2, 10: 0.3, 20: 0.4}, {0: 0.2, 10: 0.3, 20: 0.4, 40: 0.9}
    runs = {"main": ("srpo", whole), "ablation": ("srpo-bank", early)}
    rows = [
        study_row(f"{group}/{world}/{variant}/{seed}", curve)
        for group, (variant, curve) in runs.items()
        for world in ("level-1", "level-2")
        for seed in range(3)
    ]
    found = judged(rows)["H5"]
    assert found.verdict == "undecided"
    assert {part.interval for part in found.parts} == {Interval(0.0, 0.0, 0.0)}


def test_rows_that_cannot_be_compared_are_no_verdict() -> None:
    short = [
        study_row(f"main/{world}/grpo/{seed}", {0: 0.1, 6: 0.2}, questions=20)
        for world in WORLDS
        for seed in range(3)
    ]
    with pytest.raises(ValueError, match=r"expected evaluations after"):
        judgements([*rows_of("srpo"), *short], SURVIVAL)


def test_each_hypothesis_has_a_place_of_its_own() -> None:
    found = hypotheses(SURVIVAL)
    assert [h.key for h in found] == ["H1", "H2", "H3", "H4", "H5", "H6"]
    assert {world for h in found for world in h.worlds} == set(WORLDS)
    assert found[5].contrasts[0].plus == SURVIVAL
