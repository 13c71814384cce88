"""Each rule on records by hand: when it fires, since when, and what leaves it silent."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.health.alarms import findings_at_evaluation, findings_at_step
from pipeline.health.evidence import SELECTORS
from pipeline.health.findings import Sign
from pipeline.health.rules import EVALUATION_RULES, STEP_RULES
from pipeline.health.shifts import Point, shift

Record = dict[str, Any]
RULES = {rule.name: rule for rule in STEP_RULES}
EVALUATED = {rule.name: rule for rule in EVALUATION_RULES}
USUAL: Record = {
    "rollouts": 64,
    "format_rate": 0.95,
    "response_tokens_mean": 50.0,
    "demonstrations": 6,
    "demonstration_tokens_mean": 40.0,
    "wrong_tokens_mean": 50.0,
    "teacher_entropy_mean": 0.4,
    "weight_std": 0.3,
    "off_path_share": 0,
    "distils": True,
    "taught_tokens": 800,
    "correct_share": 0.5,
    "truncated_share": 0.02,
    "duplicate_share": 0.0,
    "grad_norm": 0.1,
    "logprob_gap_mean": 0.01,
    "verifier_errors": 0,
    "reward_mean": 0.5,
}
ONSET = 12


def records(steps: int = ONSET, noise: float = 0.05, seed: int = 0) -> list[Record]:
    """Return records of healthy steps: every number within some per cent of the usual."""
    draw = np.random.default_rng(seed)

    def record(step: int) -> Record:
        shaken = {
            key: value * (1 + noise * float(draw.uniform(-1, 1)))
            for key, value in USUAL.items()
            if isinstance(value, float)
        }
        return {**USUAL, **shaken, "step": step, "alarms": []}

    return [record(step) for step in range(steps)]


def followed(after: Sequence[Record], before: list[Record] | None = None) -> list[Record]:
    """Return healthy records, and then some with these numbers changed."""
    start = records() if before is None else before
    return [
        *start,
        *({**USUAL, **new, "step": len(start) + i, "alarms": []} for i, new in enumerate(after)),
    ]


def fired(steps: list[Record], name: str) -> list[tuple[int, Sign]]:
    """Return the steps at which a rule finds something, and what."""
    signs = ((n, RULES[name].find(steps[: n + 1])) for n in range(len(steps)))
    return [(n, sign) for n, sign in signs if sign is not None]


BROKEN: list[tuple[str, Record, str]] = [
    ("format_falls", {"format_rate": 0.5}, "format rate 50%"),
    ("length_grows", {"response_tokens_mean": 120.0}, "120 tokens"),
    ("length_shrinks", {"response_tokens_mean": 20.0}, "20 tokens"),
    ("demonstrations_shrink", {"demonstration_tokens_mean": 20.0}, "demonstrations of 20 tokens"),
    ("teacher_entropy_collapses", {"teacher_entropy_mean": 0.05}, "0.05 nats"),
    ("weights_collapse", {"weight_std": 0.03}, "spread by 0.03"),
    ("truncated", {"truncated_share": 0.4}, "40% of responses are cut"),
    ("duplicate_responses", {"duplicate_share": 0.5}, "50% of responses"),
    ("gradient_spike", {"grad_norm": 2.0}, "gradient norm 2"),
    ("engine_mismatch", {"logprob_gap_mean": 0.9}, "0.90 nats"),
    ("verifier_fails", {"verifier_errors": 9}, "failed on 9 of 64"),
    ("gold_told", {"feedback_gold_share": 1.0}, "tells 100% of the gold answers"),
]


@pytest.mark.parametrize(("name", "change", "text"), BROKEN)
def test_a_rule_fires_within_three_steps_and_names_the_first(
    name: str, change: Record, text: str
) -> None:
    found = fired(followed([change] * 5), name)
    step, sign = found[0]
    assert ONSET <= step <= ONSET + 2
    assert sign.onset == ONSET
    assert sign.healthy in (ONSET - 1, ONSET)
    assert text in sign.message


EDGES: list[tuple[str, str, float, float]] = [
    ("format_falls", "format_rate", 0.81, 0.79),
    ("length_grows", "response_tokens_mean", 99.0, 101.0),
    ("length_shrinks", "response_tokens_mean", 26.0, 24.0),
    ("demonstrations_shrink", "demonstration_tokens_mean", 28.5, 27.5),
    ("teacher_entropy_collapses", "teacher_entropy_mean", 0.101, 0.099),
    ("weights_collapse", "weight_std", 0.076, 0.074),
    ("truncated", "truncated_share", 0.24, 0.25),
    ("duplicate_responses", "duplicate_share", 0.29, 0.30),
    ("gradient_spike", "grad_norm", 0.99, 1.01),
    ("engine_mismatch", "logprob_gap_mean", 0.49, 0.5),
    ("verifier_fails", "verifier_errors", 3, 4),
    ("gold_told", "feedback_gold_share", 0.19, 0.2),
]
"""By rule: a number just inside its limit, and just outside, after a past without any noise."""


@pytest.mark.parametrize(("name", "key", "inside", "outside"), EDGES)
def test_limits_are_where_they_are_said_to_be(
    name: str, key: str, inside: float, outside: float
) -> None:
    steady = followed([{}] * ONSET, before=[])
    assert not fired(followed([{key: inside}] * 5, before=steady), name)
    assert fired(followed([{key: outside}] * 5, before=steady), name)


def test_every_rule_is_tried_here() -> None:
    assert {*(name for name, _, _ in BROKEN), "nothing_taught", "off_path"} == set(RULES)
    used = {rule.evidence for rule in STEP_RULES} | {rule.evidence for rule in EVALUATION_RULES}
    assert used == set(SELECTORS)


@pytest.mark.parametrize(("name", "change", "text"), BROKEN)
def test_one_bad_step_is_none(name: str, change: Record, text: str) -> None:
    immediate = name in ("gradient_spike", "verifier_fails")
    assert bool(fired(followed([change, {}, {}, {}]), name)) is immediate


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("noise", [0.0, 0.02, 0.2])
def test_steady_records_raise_nothing(seed: int, noise: float) -> None:
    steps = records(60, noise, seed)
    assert [fired(steps, name) for name in RULES] == [[]] * len(RULES)


@pytest.mark.parametrize("groups", [2, 8, 32])
@pytest.mark.parametrize("seed", range(5))
def test_shares_and_lengths_of_small_groups_raise_nothing(groups: int, seed: int) -> None:
    """Rates and mean lengths as so few rollouts give them, at any rate of success."""
    draw = np.random.default_rng(seed)
    rollouts = 4 * groups
    steps = followed(
        [
            {
                "rollouts": rollouts,
                "format_rate": draw.binomial(rollouts, 0.9) / rollouts,
                "response_tokens_mean": draw.lognormal(4, 0.5, rollouts).mean(),
                "demonstrations": groups // 2,
                "demonstration_tokens_mean": draw.lognormal(4, 0.5, max(groups // 2, 1)).mean(),
                "wrong_tokens_mean": draw.lognormal(4, 0.5, 2 * groups).mean(),
                "grad_norm": draw.lognormal(-2, 0.5),
            }
            for _ in range(100)
        ],
        before=[],
    )
    assert [fired(steps, name) for name in RULES] == [[]] * len(RULES)


def test_what_is_slow_and_good_raises_nothing() -> None:
    """Entropy, gradient and errors fall, responses grow, over a hundred steps."""
    steps = followed(
        [
            {
                "teacher_entropy_mean": 0.4 * 0.97**n,
                "weight_std": 0.3 * 0.97**n,
                "grad_norm": 0.1 * 0.97**n,
                "response_tokens_mean": 50.0 * 1.02**n,
                "demonstration_tokens_mean": 40.0 * 1.02**n,
                "wrong_tokens_mean": 50.0 * 1.02**n,
                "correct_share": 1 - 0.5 * 0.97**n,
            }
            for n in range(100)
        ]
    )
    assert [fired(steps, name) for name in RULES] == [[]] * len(RULES)


def test_a_slow_fall_of_the_format_is_found() -> None:
    steps = followed([{"format_rate": 0.95 - 0.01 * n} for n in range(60)])
    step, sign = fired(steps, "format_falls")[0]
    assert step - ONSET <= 25
    assert sign.onset >= step - 2


def test_wrong_responses_that_grow_are_no_demonstrations_that_shrink() -> None:
    assert not fired(followed([{"wrong_tokens_mean": 200.0}] * 6), "demonstrations_shrink")


def test_demonstrations_are_found_among_many_correct_responses() -> None:
    """The mean of all other responses would hide it: most of them are correct, and as short."""
    change = {"demonstration_tokens_mean": 20.0, "other_tokens_mean": 23.0, "correct_share": 0.9}
    assert fired(followed([change] * 3), "demonstrations_shrink")


def test_few_demonstrations_show_nothing() -> None:
    change = {"demonstrations": 3, "demonstration_tokens_mean": 10.0}
    assert not fired(followed([change] * 6), "demonstrations_shrink")


def test_nothing_taught_needs_ten_steps_of_a_method_that_distils() -> None:
    idle = {"taught_tokens": 0, "correct_share": 0.1}
    (step, sign), *_ = fired(followed([idle] * 12), "nothing_taught")
    assert (step, sign.onset) == (ONSET + 9, ONSET)
    assert "10%" in sign.message
    for other in ({"distils": False}, {"correct_share": 0.95}):
        assert not fired(followed([{**idle, **other}] * 12), "nothing_taught")
    assert not fired(followed([idle] * 9 + [{}] + [idle] * 9), "nothing_taught")


OFF = {"off_path_share": 0.7}


def test_off_path_needs_five_steps_and_a_format_that_falls() -> None:
    def after(*changes: Record) -> list[tuple[int, Sign]]:
        return fired(followed(changes, before=followed([{}] * ONSET, before=[])), "off_path")

    broken = {**OFF, "format_rate": 0.88}
    (step, sign), *_ = after(*[broken] * 9)
    assert (step, sign.onset, sign.healthy) == (ONSET + 4, ONSET, ONSET - 1)
    assert "70% of the weighted divergence of 5 steps" in sign.message
    assert "format rate is 88%, at best 95%" in sign.message
    for change in ({**OFF, "format_rate": 0.91}, {"off_path_share": 0.45, "format_rate": 0.8}):
        assert not after(*[change] * 9)
    assert not after(*[broken] * 4, {"format_rate": 0.88}, *[broken] * 4)
    assert not after(*[{**broken, "rollouts": 4}] * 9)  # of twenty answers, too few


def test_off_path_needs_five_steps_before_to_fall_from() -> None:
    assert not fired(followed([{**OFF, "format_rate": 0.5}] * 9, before=[]), "off_path")
    sinking = followed([{**OFF, "format_rate": 0.98 - 0.01 * n} for n in range(20)], before=[])
    assert fired(sinking, "off_path")[0][0] in (9, 10)


def test_factors_of_an_advantage_may_become_even_as_their_share_falls() -> None:
    def of_rlsd(share: float) -> Record:
        return {"weight_std": 0.6 * share, "credit_lambda": share, "distils": share > 0}

    start = [{**record, **of_rlsd(0.5)} for record in records()]
    steps = followed([of_rlsd(0.05)] * 5 + [{**of_rlsd(0.0), "taught_tokens": 0}] * 12, start)
    assert not fired(steps, "weights_collapse") and not fired(steps, "nothing_taught")


def test_a_teacher_that_distributes_advantages_may_be_off_its_path() -> None:
    broken = {**OFF, "format_rate": 0.88}
    start = followed([{}] * ONSET, before=[])
    assert fired(followed([broken] * 9, before=start), "off_path")
    assert not fired(followed([{**broken, "credit_lambda": 0.4}] * 9, before=start), "off_path")


def test_the_first_gradient_after_many_of_zero_is_no_spike() -> None:
    steps = followed([{"grad_norm": 0.0}] * 20 + [{"grad_norm": 0.5}], before=[])
    assert not fired(steps, "gradient_spike")


def test_two_errors_of_sixteen_verdicts_are_an_alarm_and_one_is_none() -> None:
    for errors, alarm in ((1, False), (2, True)):
        steps = followed([{"rollouts": 16, "verifier_errors": errors}])
        assert bool(fired(steps, "verifier_fails")) is alarm


def evaluation(steps_done: int, accuracy: float, form: float, questions: int = 100) -> Record:
    half = 0.04
    return {
        "steps_done": steps_done,
        "accuracy": accuracy,
        "low": accuracy - half,
        "high": accuracy + half,
        "format_rate": form,
        "questions": questions,
    }


def test_evaluations_are_compared_with_the_best_before() -> None:
    history = [evaluation(0, 0.5, 0.99), evaluation(10, 0.79, 0.98), evaluation(20, 0.75, 0.97)]
    steps = records(30)
    assert not findings_at_evaluation(steps, history)
    broken = [*history, evaluation(30, 0.07, 0.1)]
    found = {rule.name: sign for rule, sign in findings_at_evaluation(steps, broken)}
    assert set(found) == {"accuracy_falls", "evaluated_format_falls"}
    for sign in found.values():
        assert (sign.onset, sign.healthy) == (30, 20)
    assert "7.0%" in found["accuracy_falls"].message
    assert "training reward is 0.5" in found["accuracy_falls"].message


@pytest.mark.parametrize(
    ("accuracy", "form", "said"),
    [(0.70, 0.98, "accuracy is 70.0%"), (0.79, 0.92, "format rate is 92.0%"), (0.76, 0.94, "")],
)
def test_evaluations_that_fall_while_teachers_are_off_their_path(
    accuracy: float, form: float, said: str
) -> None:
    """Five points, more where noise explains them: here 8, the width of an accuracy's interval."""
    rates = [(0, 0.5, 0.9), (10, 0.79, 0.98), (17, accuracy, form)]
    history = [evaluation(*one, questions=400) for one in rates]
    steps = followed([OFF] * 5)
    found = {rule.name: sign for rule, sign in findings_at_evaluation(steps, history)}
    assert set(found) == ({"evaluated_off_path"} if said else set())
    for sign in found.values():
        assert said in sign.message and (sign.onset, sign.healthy) == (17, 10)
    assert not findings_at_evaluation(followed([OFF] * 4), history)
    wide = [{**record, "low": 0.4, "high": 0.6} for record in history]
    names = [rule.name for rule, _ in findings_at_evaluation(steps, wide)]
    assert names == (["evaluated_off_path"] if "format" in said else [])


@pytest.mark.parametrize("name", ["accuracy_falls", "evaluated_format_falls"])
def test_a_few_questions_show_little(name: str) -> None:
    rule = EVALUATED[name]
    for questions, alarm in ((2, False), (100, True)):
        history = [evaluation(0, 0.8, 0.95, questions), evaluation(10, 0.4, 0.6, questions)]
        assert bool(rule.find(history, [])) is alarm


def test_an_alarm_is_raised_once_and_stays_known() -> None:
    steps = followed([{"format_rate": 0.5}] * 8)
    raised = []
    for now in range(len(steps)):
        found = findings_at_step(steps[: now + 1], [])
        raised += [(now, rule.name) for rule, _ in found]
        steps[now]["alarms"] = [{"rule": rule.name} for rule, _ in found]
    assert raised == [(ONSET + 1, "format_falls")]


def test_evaluations_are_judged_with_the_step_that_follows() -> None:
    history = [evaluation(0, 0.8, 0.99), evaluation(12, 0.1, 0.99)]
    found = findings_at_step(records(13), history)
    assert [rule.name for rule, _ in found] == ["accuracy_falls"]
    steps = records(13)
    steps[12]["alarms"] = [{"rule": "accuracy_falls"}]
    assert not findings_at_step([*steps, *followed([{}], before=steps)[-1:]], history)


NUMBERS = st.one_of(
    st.none(),
    st.floats(allow_nan=True, allow_infinity=True),
    st.integers(-(2**70), 2**70),
    st.sampled_from([0, 1, -1, 1e308, -1e308, 5e-324, math.nan, "text", True, [], {}]),
)
RECORD = st.dictionaries(st.sampled_from([*USUAL, "unknown"]), NUMBERS)
EVALUATION = st.dictionaries(
    st.sampled_from(["accuracy", "low", "high", "format_rate", "format_rate_low", "questions"]),
    NUMBERS,
)


@given(st.lists(RECORD, min_size=1, max_size=30), st.lists(EVALUATION, max_size=5))
def test_no_record_breaks_a_rule(drawn: list[Record], evaluated: list[Record]) -> None:
    steps = [{**record, "step": n} for n, record in enumerate(drawn)]
    evaluations = [{**record, "steps_done": 2 * n} for n, record in enumerate(evaluated)]
    for rule, sign in findings_at_step(steps, evaluations):
        assert sign.message and rule.name
        assert 0 <= sign.healthy <= sign.onset <= max(len(steps), 2 * len(evaluations))


@given(st.sampled_from([*USUAL]), NUMBERS, st.integers(1, 40))
def test_constant_records_are_no_shift(key: str, value: Any, steps: int) -> None:
    found = findings_at_step(followed([{key: value}] * steps, before=[]), [])
    absolute = {"truncated", "duplicate_responses", "engine_mismatch", "verifier_fails"}
    assert {rule.name for rule, _ in found} <= {*absolute, "nothing_taught"}


@given(
    st.lists(st.floats(0.5, 2.0), min_size=8, max_size=40),
    st.floats(1e-3, 1e3),
    st.floats(0.1, 0.9),
)
def test_a_shift_does_not_depend_on_the_unit(
    values: list[float], unit: float, factor: float
) -> None:
    series = [Point(n, v) for n, v in enumerate([*values, 0.01, 0.01, 0.01])]
    scaled = [Point(n, v * unit) for n, v in series]
    one, other = shift(series, factor, 0.0), shift(scaled, factor, 0.0)
    assert (one is None) == (other is None)
    if one is not None and other is not None:
        assert one.onset == other.onset == len(values)
        assert other.was == pytest.approx(one.was * unit)


def test_a_shift_is_the_furthest_of_three_limits() -> None:
    steady = [Point(n, 10.0) for n in range(8)]
    assert shift([*steady, *(Point(8 + n, 6.9) for n in range(3))], 0.7, 0.0) is not None
    assert shift([*steady, *(Point(8 + n, 7.1) for n in range(3))], 0.7, 0.0) is None
    assert shift([*steady, *(Point(8 + n, 6.9) for n in range(3))], 0.7, 5.0) is None
    restless = [Point(n, 11.0 if n % 2 else 10.0) for n in range(8)]
    # from one to the next a factor of 1.1: a deviation of 0.1, four of which are a factor of 0.67
    limit = 10.5 * 1.1 ** (-4 * 1.4826 / math.sqrt(2))
    for value, found in ((limit * 1.01, False), (limit * 0.99, True)):
        fallen = [*restless, *(Point(8 + n, value) for n in range(3))]
        assert (shift(fallen, 0.7, 0.0) is not None) is found
        assert shift(fallen, 0.5, 0.0) is None


def test_a_fall_is_found_whatever_the_noise_of_the_past() -> None:
    """On a linear scale four deviations of 30% would be more than all there is."""
    draw = np.random.default_rng(0)
    noisy = [Point(n, float(v)) for n, v in enumerate(50 * draw.lognormal(0, 0.3, 20))]
    assert shift([*noisy, *(Point(20 + n, 5.0) for n in range(3))], 0.5, 8.0) is not None


def test_a_slow_fall_is_measured_from_the_best_window_of_the_past() -> None:
    falling = [Point(n, 100.0 * 0.99**n) for n in range(150)]
    first = next(n for n in range(150) if shift(falling[:n], 0.5, 8.0) is not None)
    assert falling[first].value > 0.4 * falling[0].value
    assert not any(shift(falling[:n], 0.5, 8.0, ever=False) for n in range(150))
    rising = [Point(n, 100.0 * 1.02**n) for n in range(150)]
    assert not any(shift(rising[:n], 2.0, 20.0) for n in range(150))


def test_verdicts_that_fail_are_no_format_that_falls() -> None:
    """A verdict that fails counts as broken format, and says nothing about it."""
    failing = {"verifier_errors": 20, "format_rate": 0.95 * 44 / 64}
    steps = followed([failing] * 4)
    assert not fired(steps, "format_falls")
    assert fired(steps, "verifier_fails")[0][0] == ONSET
    broken = evaluation(30, 0.55, 0.7)
    history = [evaluation(0, 0.8, 0.99), {**broken, "rollouts": 4, "verifier_errors": 110}]
    assert [r.name for r, _ in findings_at_evaluation(steps, history)] == [
        "evaluated_verifier_fails"
    ]
    history = [evaluation(0, 0.8, 0.99), {**broken, "rollouts": 4, "verifier_errors": 0}]
    assert {r.name for r, _ in findings_at_evaluation(steps, history)} == {
        "accuracy_falls",
        "evaluated_format_falls",
    }
