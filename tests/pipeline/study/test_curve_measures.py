"""Measures of a curve by hand; their intervals, and what can't be compared."""

from fractions import Fraction
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.run.metrics import Interval
from pipeline.study.curve_measures import (
    BUDGETS,
    MEASURES,
    Measure,
    accuracy,
    at_sixth,
    best,
    best_within,
    common_budget,
    curve_intervals,
    curves_of,
    difference,
    final,
    first_steps,
    format_rate,
    interval_of,
    last_third,
    pass_at,
    response_tokens,
    seconds_spent,
    steps_spent,
    summary_of,
    tokens_spent,
    worst_drop,
)
from pipeline.study.resampling import draws_of
from pipeline.study.study_row import Row
from tests.builders.study_rows import seeds_of, study_row

STEPS = np.array([0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0])
CURVE = np.array([0.2, 0.3, 0.6, 0.5, 0.55, 0.25, 0.4])


@pytest.mark.parametrize(
    ("measure", "expected"),
    [
        (at_sixth, 0.3),  # 10 of 60 steps
        (last_third, 0.325),  # after step 40: (0.25 + 0.4) / 2
        (best, 0.6),
        (partial(best_within, budget=10), 0.3),  # the one at 10 still counts
        (partial(best_within, budget=9.9), 0.2),  # the one before training
        (worst_drop, 0.35),  # from 0.6 to 0.25
        (final, 0.4),
    ],
)
def test_measures_by_hand(measure: Measure, expected: float) -> None:
    assert measure(CURVE, STEPS) == pytest.approx(expected)
    # Along any axes before the last, as in the bootstrap.
    stacked = measure(np.stack([[CURVE, CURVE[::-1]]] * 4), np.stack([STEPS, STEPS]))
    assert stacked.shape == (4, 2)
    assert stacked[3, 0] == pytest.approx(expected)
    assert stacked[3, 1] == pytest.approx(measure(CURVE[::-1], STEPS))


def test_a_sixth_that_is_not_evaluated_is_the_evaluation_after_it() -> None:
    steps = np.array([0.0, 15.0, 20.0, 100.0])  # a sixth: 16.7
    assert at_sixth(np.array([0.1, 0.2, 0.3, 0.4]), steps) == 0.3


def test_a_third_begins_after_two_thirds() -> None:
    assert last_third(np.array([0.1, 0.2, 0.3, 0.5]), np.array([0.0, 6.0, 7.0, 9.0])) == 0.4
    assert last_third(np.array([0.1, 0.5]), np.array([0.0, 9.0])) == 0.5


def test_a_curve_that_never_falls_has_no_drop() -> None:
    assert worst_drop(np.array([0.1, 0.1, 0.4]), STEPS[:3]) == 0.0


def test_each_run_has_a_clock_of_its_own() -> None:
    """The second run is slower: by its own sixth it has got as far, by one budget it has not."""
    curves = np.array([[0.1, 0.2, 0.3], [0.1, 0.2, 0.3]])
    seconds = np.array([[0.0, 10.0, 60.0], [0.0, 20.0, 120.0]])
    assert at_sixth(curves, seconds).tolist() == [0.2, 0.2]
    assert best_within(curves, seconds, 60.0).tolist() == [0.3, 0.2]


def test_what_a_curve_is_of() -> None:
    row = study_row(
        evaluations={0: [0, 1, 4], 2: [2, 4, 4]}, answers=4, format_rate=0.75, response_tokens=50.0
    )
    assert accuracy(row).tolist() == [[0.0, 0.25, 1.0], [0.5, 1.0, 1.0]]
    # 2 of 4 correct: 1 - C(2, 2) / C(4, 2) = 5 / 6; 1 of 4: 1 - C(3, 2) / C(4, 2) = 1 / 2
    assert pass_at(2)(row).tolist() == [[0.0, 0.5, 1.0], [5 / 6, 1.0, 1.0]]
    assert pass_at(4)(row).tolist() == [[0.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    assert format_rate(row).tolist() == [[0.75], [0.75]]
    assert response_tokens(row).tolist() == [[50.0], [50.0]]


def test_what_had_been_spent() -> None:
    row = study_row("main/level-1/srpo/0", {0: 0.5, 8: 0.5, 12: 0.5})
    row = row.model_copy(update={"means": {**row.means, "tokens": [100.0, 200.0]}})
    assert steps_spent(row).tolist() == [0.0, 8.0, 12.0]
    assert tokens_spent(row).tolist() == [0.0, 800.0, 1400.0]  # 10 x 100 + 2 x 200
    seconds = seconds_spent({"level-1/srpo": [0.5] * 6 + [1.0] * 6})
    assert seconds(row).tolist() == [0.0, 5.0, 9.0]  # 6 x 0.5 + 2 x 1; then 4 more
    short = study_row("main/level-1/srpo/1", {0: 0.5, 10: 0.5})
    assert common_budget([row, short]) == 10.0
    assert common_budget([row, short], tokens_spent) == 1400.0


def test_without_enough_seconds_there_is_no_clock() -> None:
    for clocks in ({}, {"level-1/srpo": [0.5] * 11}):
        with pytest.raises(ValueError, match=r"main/level-1/srpo/0: expected the seconds of 12 st"):
            seconds_spent(clocks)(study_row())


def test_the_first_steps_of_a_run_are_a_shorter_run() -> None:
    alarms = [
        {"rule": "r", "step": 9, "healthy": 3, "severe": False, "raised": r} for r in (10, 11)
    ]
    long = study_row(evaluations={0: 0.1, 10: 0.2, 15: 0.4, 30: 0.6}, alarms=alarms)
    short = study_row(evaluations={0: 0.1, 10: 0.2}, alarms=alarms[:1])
    cut = first_steps(long, 10)
    assert cut.evaluations == short.evaluations and cut.steps == short.steps
    assert cut.alarms == short.alarms and cut.means == short.means
    assert {len(values) for values in cut.series.values()} == {10}
    assert tokens_spent(cut).tolist() == [0.0, 10_000.0]
    assert first_steps(short, 10) == short
    for steps in (15, 20, 40):  # no window ends; not evaluated; not done
        with pytest.raises(ValueError, match=rf"srpo/0: can't be cut after {steps} steps; exp"):
            first_steps(long, steps)


def test_curves_are_ordered_by_seed() -> None:
    rows = seeds_of("main/level-1/srpo", [{0: 0.1, 6: 0.2}, {0: 0.3, 6: 0.4}])
    curves = curves_of(rows[::-1])
    assert curves.seeds == [0, 1] and curves.steps == [0, 6]
    assert curves.values.mean(axis=-1) == pytest.approx(np.array([[0.1, 0.2], [0.3, 0.4]]))
    assert curves.spent.tolist() == [[0.0, 6.0]] * 2


def counts(rng: np.random.Generator, questions: int = 12) -> dict[int, list[int]]:
    return {step: rng.integers(0, 9, questions).tolist() for step in range(0, 61, 10)}


def some_rows(variant: str, seeds: int = 3, questions: int = 12, first: int = 0) -> list[Row]:
    rng = np.random.default_rng([len(variant), ord(variant[0])])
    return [
        study_row(f"main/level-1/{variant}/{first + seed}", counts(rng, questions))
        for seed in range(seeds)
    ]


@pytest.mark.parametrize("name", MEASURES)
def test_differences_draw_by_draw(name: str) -> None:
    """In plain loops over explicit draws: the same questions and the same seeds for both."""
    a, b = some_rows("srpo"), some_rows("grpo")
    draws = draws_of(3, 12)
    few = 40
    expected = []
    for replicate in range(few):
        drawn = [q for q in range(12) for _ in range(int(draws.questions[replicate][q]))]
        gaps = []
        for row_a, row_b in zip(a, b, strict=True):
            one, other = (
                [sum(int(e.correct[q]) / 8 for q in drawn) / 12 for e in row.evaluations]
                for row in (row_a, row_b)
            )
            gaps.append(by_loops(name, one) - by_loops(name, other))
        times = draws.seeds[replicate]
        expected.append(sum(t * gap for t, gap in zip(times, gaps, strict=True)) / 3)
    found = replicates_of(a, b, MEASURES[name])[:few]
    assert np.abs(found - expected).max() < 1e-12


def by_loops(name: str, curve: list[float]) -> float:
    """Measure a curve over 60 steps, evaluated every 10."""
    if name == "worst_drop":
        return max(max(curve[i] - later for later in curve[i:]) for i in range(len(curve)))
    late = [value for step, value in zip(range(0, 61, 10), curve, strict=True) if step > 40]
    return {
        "at_sixth": curve[1],
        "last_third": sum(late) / len(late),
        "best": max(curve),
        "final": curve[-1],
    }[name]


def replicates_of(a: list[Row], b: list[Row], measure: Measure) -> np.ndarray:
    """Return all replicates of a difference, caught on their way to the interval."""
    caught: list[np.ndarray] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "pipeline.study.curve_measures.percentile_interval",
            lambda mean, replicates: caught.append(replicates),
        )
        difference(a, b, measure)
    return caught[0]


@pytest.mark.parametrize("measure", MEASURES.values(), ids=list(MEASURES))
def test_nothing_differs_from_itself(measure: Measure) -> None:
    rows = some_rows("srpo")
    assert difference(rows, rows, measure) == (Interval(0.0, 0.0, 0.0), 3, 12)


@pytest.mark.parametrize("measure", MEASURES.values(), ids=list(MEASURES))
def test_the_other_way_round_it_is_the_negative(measure: Measure) -> None:
    a, b = some_rows("srpo"), some_rows("grpo")
    found, back = difference(a, b, measure).interval, difference(b, a, measure).interval
    assert found == pytest.approx((-back.mean, -back.high, -back.low))
    assert found.low < found.high


@pytest.mark.parametrize("measure", MEASURES.values(), ids=list(MEASURES))
def test_the_mean_of_a_difference_is_that_of_means(measure: Measure) -> None:
    a, b = some_rows("srpo"), some_rows("grpo")
    gap = interval_of(a, measure).mean - interval_of(b, measure).mean
    assert difference(a, b, measure).interval.mean == pytest.approx(gap)


def test_where_all_is_equal_there_is_no_doubt() -> None:
    rows = seeds_of("main/level-1/srpo", [{0: [4] * 6, 6: [2] * 6}] * 3)
    for name, expected in {"at_sixth": 0.25, "best": 0.5, "worst_drop": 0.25}.items():
        assert interval_of(rows, MEASURES[name]) == Interval(expected, expected, expected)


@settings(max_examples=10, deadline=None)
@given(st.permutations(range(12)))
def test_equal_shifts_of_all_questions_have_no_width(order: list[int]) -> None:
    """All questions gain one answer of eight: whatever is drawn, and in any order, an eighth."""
    low = [order[q] % 7 for q in range(12)]
    b = seeds_of("main/level-1/grpo", [{0: low, 6: low}] * 3)
    a = seeds_of("main/level-1/srpo", [{0: low, 6: [count + 1 for count in low]}] * 3)
    assert difference(a, b, final).interval == pytest.approx((0.125, 0.125, 0.125))


def permuted(row: Row, order: list[int]) -> Row:
    evaluations = [
        e.model_copy(update={"correct": "".join(e.correct[q] for q in order)})
        for e in row.evaluations
    ]
    return row.model_copy(update={"evaluations": evaluations})


def test_the_order_of_questions_does_not_matter() -> None:
    """But for which are drawn when: the mean is the same, and the interval nearly."""
    rows = some_rows("srpo", questions=40)
    order = np.random.default_rng(0).permutation(40).tolist()
    found = interval_of(rows, last_third)
    again = interval_of([permuted(row, order) for row in rows], last_third)
    assert again.mean == pytest.approx(found.mean)
    assert (again.low, again.high) == pytest.approx((found.low, found.high), abs=0.005)


def test_pairing_takes_away_what_questions_and_seeds_have_in_common() -> None:
    rng = np.random.default_rng(3)
    base = [rng.integers(0, 8, 60).tolist() for _ in range(4)]
    a = seeds_of(
        "main/level-1/srpo", [{0: c, 6: [n + (q % 4 == 0) for q, n in enumerate(c)]} for c in base]
    )
    b = seeds_of("main/level-1/grpo", [{0: c, 6: c} for c in base])
    alone, gap = interval_of(a, final), difference(a, b, final).interval
    assert gap.mean == pytest.approx(0.25 / 8)
    assert gap.high - gap.low < (alone.high - alone.low) / 2
    assert gap.low > 0


def test_only_seeds_in_common_are_paired() -> None:
    a, b = some_rows("srpo", seeds=5), some_rows("grpo", seeds=3, first=2)
    found = difference(a, b, final)
    assert (found.seeds, found.questions) == (3, 12)
    assert found == difference(a[2:], b[::-1], final)


def test_without_seeds_in_common_there_is_no_difference() -> None:
    a, b = some_rows("srpo", seeds=2), some_rows("grpo", seeds=2, first=2)
    with pytest.raises(ValueError, match=r"srpo/0 .* seeds in common, found 0, 1 and 2, 3"):
        difference(a, b, final)


def test_the_interval_of_each_evaluation() -> None:
    rows = some_rows("srpo")
    found = curve_intervals(rows)
    assert len(found) == 7
    assert found[-1] == interval_of(rows, final)


def test_what_has_no_questions_is_resampled_by_seeds() -> None:
    """Of three seeds one draws the best alone in 1 of 27 replicates, more than 2.5%."""
    rows = [
        study_row(f"main/level-1/srpo/{seed}", {0: 0.5, 6: 0.5}, format_rate=rate)
        for seed, rate in enumerate((0.7, 0.8, 0.9))
    ]
    assert interval_of(rows, final, format_rate) == pytest.approx((0.8, 0.7, 0.9))


def test_a_summary() -> None:
    rows = seeds_of("main/level-1/srpo", [{0: [0, 0], 1: [2, 0], 3: [8, 4], 6: [4, 4]}] * 2)
    found = summary_of(rows)
    assert (found.world, found.variant) == ("level-1", "srpo")
    assert (found.seeds, found.questions, found.steps) == (2, 2, 6)
    assert {name: interval.mean for name, interval in found.accuracy.items()} == {
        "at_sixth": 0.125, "last_third": 0.5, "best": 0.75, "worst_drop": 0.25, "final": 0.5
    }  # fmt: skip
    best_of = {share: interval.mean for share, interval in found.best_within.items()}
    assert best_of == dict(zip(BUDGETS, (0.125, 0.75, 0.75), strict=True))
    assert list(found.pass_at) == [1, 2, 4, 8]
    assert found.pass_at[2].mean == pytest.approx(1 - 6 / 28)  # 1 - C(4, 2) / C(8, 2)
    assert found.format_rate == (1.0, 1.0, 1.0)
    assert found.response_tokens == (60.0, 60.0, 60.0)


def other_questions(row: Row) -> Row:
    return row.model_copy(update={"questions": "f" * 64})


def without_last_step(row: Row) -> Row:
    return row.model_copy(update={"steps": row.steps[:-1]})


def with_other_settings(row: Row) -> Row:
    return row.model_copy(update={"settings": ["route.method=grpo", *row.settings[1:]]})


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (other_questions(study_row("main/level-1/srpo/1")), r"srpo/1: expected the questions .* f"),
        (study_row("main/level-1/srpo/1", questions=9), r"srpo/1, evaluation 0: expected 10 .* 9$"),
        (
            study_row("main/level-1/srpo/1", {0: 0.1, 12: 0.2}),
            r"srpo/1: expected evaluations after \[0, 2, .* found \[0, 12\]$",
        ),
        (study_row("main/level-1/grpo/1"), r"differ in seeds alone, found .*grpo, .*srpo$"),
        (study_row("main/level-2/srpo/1"), r"differ in seeds alone"),
        (study_row("pilot/level-1/srpo/1"), r"differ in seeds alone"),
        (
            with_other_settings(study_row("main/level-1/srpo/1")),
            r"srpo/1: expected the settings of main/level-1/srpo/0, route.method=srpo, found rou",
        ),
        (study_row(), r"expected each seed once, found 0, 0$"),
        (
            without_last_step(study_row("main/level-1/srpo/1")),
            r"srpo/1: expected the first evaluation after 0 and the last after 11 steps, found",
        ),
    ],
)
def test_what_is_not_comparable_is_refused(second: Row, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        interval_of([study_row(), second], final)
    assert "\n" not in str(error.value)


def test_differences_too_are_of_one_world() -> None:
    with pytest.raises(ValueError, match=r"level-2/grpo/0: expected the questions"):
        difference([study_row()], [study_row("main/level-2/grpo/0")], final)
    with pytest.raises(ValueError, match="no rows"):
        difference([study_row()], [], final)


def test_more_correct_answers_than_answers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"pass@1 of 2 answers, 3 of them correct"):
        interval_of([study_row(evaluations={0: [1, 2], 6: [3, 1]}, answers=2)], final)


def test_budgets_are_the_three() -> None:
    assert (Fraction(1, 6), Fraction(1, 2), 1) == BUDGETS
