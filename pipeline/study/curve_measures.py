"""What the study measures of its runs, with intervals: from rows to numbers.

A measure turns a curve, [..., E], into a number, [...]: of E evaluations, and of what the run had
spent at each of them, steps as a rule, [E] or broadcast against the curve. In each replicate of
the bootstrap it is taken anew of every seed's resampled curve, and then averaged over seeds. So
the interval of a largest value or fall holds what noise adds to it, which differences lose again.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np

from pipeline.run.metrics import Interval
from pipeline.run.pass_at_k import ks_up_to, pass_at_k
from pipeline.study.resampling import (
    Draws,
    Floats,
    draws_of,
    mean_over_drawn_seeds,
    percentile_interval,
    resampled_curves,
)
from pipeline.study.study_row import WINDOW, Row, without_seed

Measure = Callable[[Floats, Floats], Floats]
"""From a curve and what had been spent at each of its evaluations to one number."""
Values = Callable[[Row], Floats]
"""What a curve is of: a number of each evaluation and question, [E, Q]."""
Spent = Callable[[Row], Floats]
"""What a run had spent at each of its evaluations, [E]; at the first, nothing."""

BUDGETS = (Fraction(1, 6), Fraction(1, 2), Fraction(1))
"""Shares of the full budget."""


def at_sixth(curve: Floats, spent: Floats) -> Floats:
    """Return the first value at or after a sixth of all that was spent."""
    first = np.argmax(6 * spent >= spent[..., -1:], axis=-1)
    places = np.broadcast_to(first, curve.shape[:-1])[..., None]
    found: Floats = np.take_along_axis(curve, places, axis=-1)[..., 0]
    return found


def last_third(curve: Floats, spent: Floats) -> Floats:
    """Return the mean over the evaluations after two thirds of all that was spent."""
    late = 3 * spent > 2 * spent[..., -1:]
    found: Floats = np.where(late, curve, 0.0).sum(axis=-1) / late.sum(axis=-1)
    return found


def best(curve: Floats, spent: Floats) -> Floats:
    """Return the highest value, the one before training included."""
    return best_within(curve, spent, np.inf)


def best_within(curve: Floats, spent: Floats, budget: float) -> Floats:
    """Return the highest value reached within a budget, the one before training included."""
    found: Floats = np.where(spent <= budget, curve, -np.inf).max(axis=-1)
    return found


def worst_drop(curve: Floats, spent: Floats) -> Floats:
    """Return the largest fall from a value to a later one; 0 if it never falls."""
    found: Floats = (np.maximum.accumulate(curve, axis=-1) - curve).max(axis=-1)
    return found


def final(curve: Floats, spent: Floats) -> Floats:
    """Return the value after training."""
    return curve[..., -1]


MEASURES: Mapping[str, Measure] = {
    "at_sixth": at_sixth,
    "last_third": last_third,
    "best": best,
    "worst_drop": worst_drop,
    "final": final,
}


def accuracy(row: Row) -> Floats:
    """Return the share of correct answers, avg@n, [E, Q]."""
    return pass_at(1)(row)


def pass_at(k: int) -> Values:
    """Return what gives pass@k of each question, [E, Q]."""

    def values(row: Row) -> Floats:
        found = []
        for evaluation, counts in zip(row.evaluations, row.correct_counts().tolist(), strict=True):
            by_count = {count: pass_at_k(evaluation.answers, count, k) for count in set(counts)}
            found.append([by_count[count] for count in counts])
        return np.array(found)

    return values


def format_rate(row: Row) -> Floats:
    """Return the share of answers in the expected format, [E, 1].

    Rows have its mean over questions alone, so its intervals are over seeds alone.
    """
    return np.array([[evaluation.format_rate] for evaluation in row.evaluations])


def response_tokens(row: Row) -> Floats:
    """Return the mean length of a response, [E, 1]; like `format_rate`, without questions."""
    return np.array([[evaluation.tokens] for evaluation in row.evaluations])


def steps_spent(row: Row) -> Floats:
    """Return the steps done at each evaluation, [E]."""
    return np.array(row.evaluated_steps, dtype=np.float64)


def tokens_spent(row: Row) -> Floats:
    """Return the tokens sampled for training at each evaluation, [E], from means over steps."""
    tokens = np.repeat(np.array(row.means["tokens"], dtype=np.float64), WINDOW)
    return _sums(tokens[: len(row.steps)], row)


def seconds_spent(clocks: Mapping[str, Sequence[float]]) -> Spent:
    """Return what gives the seconds trained at each evaluation, [E].

    Args:
        clocks: of WORLD/VARIANT, the seconds of each step in a run that had the machine alone.

    Raises:
        ValueError: there are none of a row's variant, or of too few steps.
    """

    def spent(row: Row) -> Floats:
        seconds = clocks.get(f"{row.world}/{row.variant}", ())
        if len(seconds) < len(row.steps):
            raise ValueError(
                f"row {row.name}: expected the seconds of {len(row.steps)} steps of "
                f"{row.world}/{row.variant}, found {len(seconds)}; rerun it with the machine alone"
            )
        return _sums(np.array(seconds, dtype=np.float64), row)

    return spent


def _sums(per_step: Floats, row: Row) -> Floats:
    sums: Floats = np.concatenate([[0.0], np.cumsum(per_step)])[row.evaluated_steps]
    return sums


def common_budget(rows: Sequence[Row], spent: Spent = steps_spent) -> float:
    """Return the largest budget that all of the runs have spent."""
    return min(float(spent(row)[-1]) for row in rows)


def first_steps(row: Row, steps: int) -> Row:
    """Return the row that a run would have left had it ended after so many steps.

    No setting but `run.steps` knows where a run ends, so its first steps are a shorter run.

    Raises:
        ValueError: no evaluation followed that step, or means over steps reach beyond it.
    """
    if steps == len(row.steps):
        return row
    if steps not in row.evaluated_steps or steps % WINDOW:
        raise ValueError(
            f"row {row.name}: can't be cut after {steps} steps; expected a multiple of {WINDOW} "
            f"among its evaluated steps, {row.evaluated_steps}"
        )
    return row.model_copy(
        update={
            "steps": row.steps[:steps],
            "evaluations": [e for e in row.evaluations if e.step <= steps],
            "series": {name: values[:steps] for name, values in row.series.items()},
            "means": {name: values[: steps // WINDOW] for name, values in row.means.items()},
            "alarms": [alarm for alarm in row.alarms if int(alarm["raised"]) <= steps],
        }
    )


class Curves(NamedTuple):
    """The runs of one variant.

    Attributes:
        seeds: ascending.
        steps: done at each evaluation, [E].
        spent: at each evaluation, [S, E].
        values: of each question, [S, E, Q].
    """

    seeds: list[int]
    steps: list[int]
    spent: Floats
    values: Floats


def curves_of(rows: Sequence[Row], of: Values = accuracy, spent: Spent = steps_spent) -> Curves:
    """Return the curves of one variant's rows.

    Raises:
        ValueError: there are no rows, they are of several variants, a seed occurs twice, or their
            settings, questions or evaluated steps differ.
    """
    _expect_one_variant(rows)
    _expect_alike(rows)
    ordered = sorted(rows, key=lambda row: row.seed)
    return Curves(
        [row.seed for row in ordered],
        ordered[0].evaluated_steps,
        np.array([spent(row) for row in ordered]),
        np.array([of(row) for row in ordered]),
    )


def interval_of(
    rows: Sequence[Row], measure: Measure, of: Values = accuracy, spent: Spent = steps_spent
) -> Interval:
    """Return the mean over seeds of a measure of one variant, with its interval.

    With one seed it is an interval over questions alone.

    Raises:
        ValueError: as `curves_of`.
    """
    curves = curves_of(rows, of, spent)
    draws = _draws_for(curves)
    mean = float(_per_seed(curves, measure).mean())
    return percentile_interval(mean, mean_over_drawn_seeds(_replicates(curves, measure), draws))


def curve_intervals(rows: Sequence[Row], of: Values = accuracy) -> list[Interval]:
    """Return of each evaluation the mean over seeds, with its interval, each for itself.

    Raises:
        ValueError: as `curves_of`.
    """
    curves = curves_of(rows, of)
    draws = _draws_for(curves)
    found = _curves_by_replicate(curves)
    means = curves.values.mean(axis=-1).mean(axis=0)
    return [
        percentile_interval(float(mean), mean_over_drawn_seeds(found[..., place], draws))
        for place, mean in enumerate(means)
    ]


class Difference(NamedTuple):
    """A measure of one variant minus that of another, mean over the seeds that both have."""

    interval: Interval
    seeds: int
    questions: int


def difference(
    rows_a: Sequence[Row],
    rows_b: Sequence[Row],
    measure: Measure,
    of: Values = accuracy,
    spent: Spent = steps_spent,
) -> Difference:
    """Return a measure of variant a minus that of variant b, paired by seeds and questions.

    Seeds that only one of them has are left out. A replicate draws the same seeds and questions
    for both.

    Raises:
        ValueError: as `curves_of`, of both together; or they have no seed in common.
    """
    for rows in (rows_a, rows_b):
        _expect_one_variant(rows)
    _expect_alike([*rows_a, *rows_b])
    common = {row.seed for row in rows_a} & {row.seed for row in rows_b}
    if not common:
        raise ValueError(
            f"{rows_a[0].name} and {rows_b[0].name}: expected seeds in common, found "
            f"{_seeds(rows_a)} and {_seeds(rows_b)}"
        )
    a, b = (
        curves_of([row for row in rows if row.seed in common], of, spent)
        for rows in (rows_a, rows_b)
    )
    draws = _draws_for(a)
    mean = float((_per_seed(a, measure) - _per_seed(b, measure)).mean())
    differences = _replicates(a, measure) - _replicates(b, measure)
    interval = percentile_interval(mean, mean_over_drawn_seeds(differences, draws))
    return Difference(interval, len(common), _questions(rows_a[0]))


def _draws_for(curves: Curves) -> Draws:
    seeds, _, questions = curves.values.shape
    return draws_of(seeds, questions)


@lru_cache(maxsize=16)
def _resampled(values: bytes, seeds: int, evaluations: int, questions: int) -> Floats:
    """Return resampled curves, [R, S, E], once for all measures of them; read-only."""
    values_SEQ = np.frombuffer(values).reshape(seeds, evaluations, questions)
    found = resampled_curves(values_SEQ, draws_of(seeds, questions))
    found.flags.writeable = False
    return found


def _curves_by_replicate(curves: Curves) -> Floats:
    return _resampled(curves.values.tobytes(), *curves.values.shape)


def _per_seed(curves: Curves, measure: Measure) -> Floats:
    """Return a measure of all questions, [S]."""
    return measure(curves.values.mean(axis=-1), curves.spent)


def _replicates(curves: Curves, measure: Measure) -> Floats:
    """Return a measure of the questions that each replicate drew, [R, S]."""
    return measure(_curves_by_replicate(curves), curves.spent)


@dataclass(frozen=True)
class VariantSummary:
    """The numbers of one variant in one world, for a table.

    Attributes:
        seeds, questions, steps: how many there are.
        accuracy: by measure, those in `MEASURES`.
        best_within: by share of the steps, those in `BUDGETS`.
        pass_at: by k, after training.
        format_rate, response_tokens: after training.
    """

    world: str
    variant: str
    seeds: int
    questions: int
    steps: int
    accuracy: dict[str, Interval]
    best_within: dict[Fraction, Interval]
    pass_at: dict[int, Interval]
    format_rate: Interval
    response_tokens: Interval


def summary_of(rows: Sequence[Row]) -> VariantSummary:
    """Return the numbers of one variant.

    Raises:
        ValueError: as `curves_of`.
    """
    _expect_one_variant(rows)
    first = rows[0]
    steps = len(first.steps)
    within = {share: partial(best_within, budget=float(share * steps)) for share in BUDGETS}
    return VariantSummary(
        world=first.world,
        variant=first.variant,
        seeds=len(rows),
        questions=_questions(first),
        steps=steps,
        accuracy={name: interval_of(rows, measure) for name, measure in MEASURES.items()},
        best_within={share: interval_of(rows, measure) for share, measure in within.items()},
        pass_at={
            k: interval_of(rows, final, pass_at(k)) for k in ks_up_to(first.evaluations[-1].answers)
        },
        format_rate=interval_of(rows, final, format_rate),
        response_tokens=interval_of(rows, final, response_tokens),
    )


def _questions(row: Row) -> int:
    return len(row.evaluations[-1].correct)


def _seeds(rows: Sequence[Row]) -> str:
    return ", ".join(str(row.seed) for row in rows)


def _expect_one_variant(rows: Sequence[Row]) -> None:
    """Refuse rows that are not the seeds of one variant."""
    if not rows:
        raise ValueError("no rows: expected at least one of a variant")
    names = {row.name.rpartition("/")[0] for row in rows}
    if len(names) > 1:
        raise ValueError(
            f"expected rows that differ in seeds alone, found {', '.join(sorted(names))}"
        )
    if len({row.seed for row in rows}) < len(rows):
        raise ValueError(f"{rows[0].name}: expected each seed once, found {_seeds(rows)}")
    expected = without_seed(rows[0].settings)
    for row in rows:
        if (found := without_seed(row.settings)) != expected:
            raise ValueError(
                f"row {row.name}: expected the settings of {rows[0].name}, {' '.join(expected)}, "
                f"found {' '.join(found)}; runs of one variant differ in seeds alone"
            )


def _expect_alike(rows: Sequence[Row]) -> None:
    """Refuse rows that can't be compared question by question and evaluation by evaluation."""
    first = rows[0]
    for row in rows:
        if row.questions != first.questions:
            raise ValueError(
                f"row {row.name}: expected the questions {first.questions} of {first.name}, "
                f"found {row.questions}; compare runs of one world"
            )
        for evaluation in row.evaluations:
            if len(evaluation.correct) != _questions(first):
                raise ValueError(
                    f"row {row.name}, evaluation {evaluation.step}: expected {_questions(first)} "
                    f"questions as in {first.name}, found {len(evaluation.correct)}"
                )
        if row.evaluated_steps != first.evaluated_steps:
            raise ValueError(
                f"row {row.name}: expected evaluations after {first.evaluated_steps} steps as in "
                f"{first.name}, found {row.evaluated_steps}"
            )
        if [row.evaluated_steps[0], row.evaluated_steps[-1]] != [0, len(row.steps)]:
            raise ValueError(
                f"row {row.name}: expected the first evaluation after 0 and the last after "
                f"{len(row.steps)} steps, found {row.evaluated_steps}"
            )
