"""Which alarms came before which losses: by runs made up so that the answers can be seen."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from pipeline.errors import StoreError
from pipeline.health import findings
from pipeline.health import thresholds as product
from pipeline.health.rules import STEP_RULES
from pipeline.study.alarm_study import (
    GRIDS,
    NOT_AGAIN,
    Loss,
    Tally,
    evaluation_tallies,
    fate,
    found_again,
    loss_of,
    records_of,
    step_tallies,
    table_of,
    tally,
    tally_rules,
    thresholds,
    tune,
    tuning_table_of,
)
from pipeline.study.study_row import Row
from tests.builders.study_rows import study_row

QUESTIONS = 1000
"""With so many the width of an interval is below 7 points."""
STEADY = {0: 0.3, 20: 0.5, 40: 0.5, 60: 0.5, 80: 0.5, 100: 0.5}
RULES = {rule.name: rule for rule in STEP_RULES}


def row_of(
    curve: Mapping[int, float],
    alarms: Sequence[tuple[str, int]] = (),
    seed: int = 0,
    variant: str = "srpo",
    questions: int = QUESTIONS,
    series: Mapping[str, Sequence[float]] | None = None,
) -> Row:
    raised: list[dict[str, str | int | bool]] = [
        {"rule": rule, "step": done - 1, "healthy": 0, "severe": True, "raised": done}
        for rule, done in alarms
    ]
    name = f"main/level-1/{variant}/{seed}"
    row = study_row(name, curve, questions=questions, alarms=raised)
    settings = [f"route.method={variant}", f"run.seed={seed}"]
    return row.model_copy(update={"series": {**row.series, **(series or {})}, "settings": settings})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, None),
        ({60: 0.41, 80: 0.41, 100: 0.41}, None),  # 9 points
        ({60: 0.35, 80: 0.36, 100: 0.3}, Loss(0, 40, 60, 0.5, 0.35)),
        ({60: 0.35, 80: 0.36}, None),  # made up by the second evaluation after it
        (
            {60: 0.35, 80: 0.45, 100: 0.3},
            Loss(40, 80, 100, 0.5, 0.3),
        ),  # not made up as far as we see
        ({40: 0.46, 60: 0.43, 80: 0.39, 100: 0.3}, Loss(20, 60, 80, 0.5, 0.39)),  # slowly
    ],
)
def test_a_loss_is_ten_points_below_the_best_and_stays(
    changes: dict[int, float], expected: Loss | None
) -> None:
    found = loss_of(row_of(STEADY | changes))
    assert (found is None) == (expected is None)
    assert found is None or found == pytest.approx(expected)


@pytest.mark.parametrize("best", [0.2, 0.3, 0.4, 0.5, 0.6, 0.7])
def test_a_fall_of_exactly_ten_points_is_one_whatever_rounding_does(best: float) -> None:
    """0.3 - 0.1 is less than 0.2 in binary fractions. One answer of 8000 less is none."""
    lower = best - 0.1
    assert loss_of(row_of({0: best, 20: lower, 40: lower})) is not None
    answers = round(lower * QUESTIONS * 8) + 1
    counts = [min(8, max(0, answers - 8 * question)) for question in range(QUESTIONS)]
    row = study_row("main/level-1/srpo/0", {0: best, 20: counts}, questions=QUESTIONS)
    assert loss_of(row) is None


def test_a_loss_is_wider_than_the_interval() -> None:
    """Six of ten questions always right: s = sqrt(0.24 * 10/9), and 3.92 s / sqrt(10) = 0.64.

    All wrong or all right have no width.
    """
    assert loss_of(row_of({0: 0.9, 20: 0.6}, questions=10)) is None
    assert loss_of(row_of({0: 0.9, 20: 0.2}, questions=10)) == Loss(0, 0, 20, 0.9, 0.2)  # 0.523
    assert loss_of(row_of({0: 0.2, 20: 0.0}, questions=10)) == Loss(0, 0, 20, 0.2, 0.0)


def test_an_alarm_precedes_a_loss_by_three_evaluations_at_most() -> None:
    loss = Loss(140, 180, 200, 0.5, 0.3)
    assert [fate(done, loss) for done in (139, 140, 200, 201)] == [
        "false",
        "precedes",
        "precedes",
        "late",
    ]
    assert fate(200, None) == "false"


def test_tallies_count_alarms_and_losses() -> None:
    """Of five runs three have a loss: two are preceded, by 10 and 50 steps, one alarm is late."""
    loss = Loss(140, 180, 200, 0.5, 0.3)
    found = tally("off_path", [(loss, 190), (loss, 150), (loss, 220), (None, 7), (None, None)])
    assert found == Tally("off_path", runs=5, losses=3, leads=(10, 50), late=1, false=1)
    assert (found.raised, found.missed, found.score) == (4, 1, 1)
    assert table_of([found])[2:] == ["| off path | yes | 4 of 5 | 2 of 3 | 30 | 1 | 1 | 1 |"]


def test_of_several_rules_the_first_alarm_of_a_run_counts() -> None:
    falls = STEADY | {100: 0.3}
    rows = [
        row_of(falls, [("off_path", 30), ("format_falls", 90)]),  # 70 steps ahead: false
        row_of(falls, [("format_falls", 90), ("accuracy_falls", 100)]),
        row_of(STEADY, [("gradient_spike", 5)]),  # not severe
    ]
    by_name = {found.name: found for found in step_tallies(rows)}
    assert by_name["any severe one"] == Tally("any severe one", 3, 2, (10,), late=0, false=1)
    assert by_name["format_falls"] == Tally("format_falls", 3, 2, (10, 10), late=0, false=0)
    assert by_name["gradient_spike"] == Tally("gradient_spike", 3, 2, (), late=0, false=1)
    assert {found.name: found.leads for found in evaluation_tallies(rows)} == {
        "evaluated_verifier_fails": (),
        "evaluated_format_falls": (),
        "evaluated_off_path": (),
        "accuracy_falls": (0,),
    }
    assert tally_rules([], "off_path", ["off_path"]) == Tally("off_path", 0, 0, (), 0, 0)


def test_records_have_what_rules_read() -> None:
    """1000 tokens a step of 60 a response are 17 responses."""
    first = records_of(row_of(STEADY))[0]
    assert (first["step"], first["rollouts"], first["judged"]) == (0, 17, 17)
    assert first["distils"] is True and "credit_lambda" not in first
    assert records_of(row_of(STEADY, variant="grpo"))[0]["distils"] is False
    credit = [
        (r["distils"], r["credit_lambda"]) for r in records_of(row_of(STEADY, variant="rlsd"))
    ]
    assert [credit[step] for step in (0, 25, 50)] == [(True, 0.5), (True, 0.25), (False, 0.0)]
    empty = row_of(STEADY).model_copy(update={"steps": []})
    with pytest.raises(StoreError, match="main/level-1/srpo/0: expected the numbers of its steps"):
        records_of(empty)


def collapsing(steps: int) -> list[dict[str, Any]]:
    """Return the records of a run that comes to ruin in its last 30 steps."""
    generator = np.random.default_rng(0)
    ruin = np.clip((np.arange(steps) - (steps - 30)) / 20, 0, 1)
    noise = {
        key: np.exp(generator.normal(0, 0.05, steps))
        for key in ("length", "demonstration", "wrong", "entropy", "spread", "gradient")
    }
    judged = 128
    columns: dict[str, Any] = {
        "correct_share": generator.binomial(judged, 0.6 - 0.5 * ruin) / judged,
        "format_rate": generator.binomial(judged, 0.97 - 0.7 * ruin) / judged,
        "truncated_share": generator.binomial(judged, 0.01 + 0.8 * ruin) / judged,
        "duplicate_share": generator.binomial(judged, 0.6 * ruin) / judged,
        "response_tokens_mean": 61.234567 * noise["length"] * (1 - 0.8 * ruin),
        "wrong_tokens_mean": 66.54321 * noise["wrong"],
        "demonstration_tokens_mean": 57.345678 * noise["demonstration"] * (1 - 0.8 * ruin),
        "demonstrations": generator.integers(6, 16, steps),
        "taught_tokens": (3123.4 * noise["length"] * (ruin < 1)).astype(int),
        "teacher_entropy_mean": 0.31234567 * noise["entropy"] * (1 - 0.95 * ruin),
        "weight_std": 0.21234567 * noise["spread"] * (1 - 0.95 * ruin),
        "off_path_share": np.clip(0.3 + 0.4 * ruin, 0, 1) * noise["spread"],
        "grad_norm": 0.081234567 * noise["gradient"] * (1 + 30 * (ruin > 0.5)),
    }
    return [
        {"step": step, "rollouts": judged, "judged": judged, "distils": True}
        | {key: float(values[step]) for key, values in columns.items()}
        for step in range(steps)
    ]


def test_rules_find_in_a_row_what_they_find_in_the_run() -> None:
    """At the same steps, though a row has three digits and no number of rollouts."""
    records = collapsing(100)
    curve = {0: 0.3, len(records): 0.1}
    series = {
        key: [float(f"{record[key]:.3g}") for record in records] for key in study_row().series
    }
    lengths = [128 * record["response_tokens_mean"] for record in records]
    tokens = [sum(lengths[start : start + 10]) / 10 for start in range(0, len(lengths), 10)]
    row = row_of(curve, series=series)
    row = row.model_copy(update={"means": {**row.means, "tokens": tokens}})
    assert records_of(row)[0]["rollouts"] == 128
    found = {}
    for name, rule in RULES.items():
        if name not in NOT_AGAIN:
            again, then = found_again(rule, records_of(row)), found_again(rule, records)
            found[name] = then and then[0]
            assert (again and (again[0], again[1][:2])) == (then and (then[0], then[1][:2])), name
    assert {name for name, done in found.items() if done is None} == {"length_grows"}


def test_present_thresholds_stand_first_in_each_grid() -> None:
    assert set(GRIDS) == {rule.name for rule in STEP_RULES if rule.severe}
    for rule, grid in GRIDS.items():
        for name, value in grid[0].items():
            assert value == pytest.approx(getattr(product, name)), (rule, name)
            assert getattr(findings, name) == getattr(product, name)


def test_other_thresholds_last_as_long_as_asked_for() -> None:
    records = records_of(row_of(STEADY, series={"duplicate_share": [0.0] * 90 + [0.2] * 10}))
    rule = RULES["duplicate_responses"]
    assert found_again(rule, records) is None
    with pytest.raises(ZeroDivisionError), thresholds({"DUPLICATES": 0.2}):
        found = found_again(rule, records)
        raise ZeroDivisionError
    assert found is not None and (found[0], found[1].onset) == (93, 90)  # the third step of those
    assert vars(findings)["DUPLICATES"] == product.DUPLICATES
    with pytest.raises(AttributeError), thresholds({"NO_SUCH": 1}):
        pass


def test_thresholds_are_chosen_on_odd_seeds_and_judged_on_even_ones() -> None:
    """0.3 finds nothing, 0.05 takes the steady run for one that fails, 0.1 is right on odd seeds.

    On even seeds 0.1 finds one of two losses and takes the steady run for one that fails.
    """
    falls = STEADY | {100: 0.3}
    some, few, none = ([0.0] * 70 + [share] * 30 for share in (0.2, 0.07, 0.0))
    odd = [(falls, some), (falls, some), (STEADY, few)]
    even = [(falls, some), (falls, none), (STEADY, some)]
    rows = [
        row_of(curve, seed=2 * n + 1, series={"duplicate_share": s})
        for n, (curve, s) in enumerate(odd)
    ]
    rows += [
        row_of(curve, seed=2 * n, series={"duplicate_share": s})
        for n, (curve, s) in enumerate(even)
    ]
    found = {tuned.rule: tuned for tuned in tune(rows)}["duplicate_responses"]
    assert found.chosen == {"DUPLICATES": 0.1}
    assert [(values["DUPLICATES"], score) for values, score in found.tried] == [
        (0.3, 0),
        (0.05, 1),
        (0.1, 2),
        (0.5, 0),
    ]
    name = "duplicate_responses"  # raised when step 72 is done, 27 steps ahead
    assert found.odd == Tally(name, 3, 2, (27, 27), late=0, false=0)
    assert found.even == Tally(name, 3, 2, (27,), late=0, false=1)
    assert found.odd_before == found.even_before == Tally(name, 3, 2, (), late=0, false=0)
    assert tuning_table_of([found])[2:] == [
        "| duplicate responses | 0.3 | DUPLICATES 0.1 | 0 of 2, 0 false | 2 of 2, 0 false "
        "| 0 of 2, 0 false | 1 of 2, 1 false |"
    ]
