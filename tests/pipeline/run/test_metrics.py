"""Metrics of a step and of an evaluation, worked out by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.run.metrics import (
    bootstrap,
    evaluation_metrics,
    majority_correct,
    step_metrics,
)
from pipeline.tables.manifest import Manifest
from tests.builders.evaluations import answers
from tests.builders.tables import COST, IDS, STEP, origin, tables, with_column

FACTS = {"loss": [0.5, 0.25], "grad_norm": [2.0, 4.0], "learning_rate": 5e-6, "tokens": [6, 4]}
STAGES = {
    "rollouts": ("generate", 4.0, 10),
    "verdicts": ("verify", 1.0, 0),
    "routes": ("route", 2.0, 5),
    "scores": ("route", 2.0, 5),
    "weights": ("weigh", 0.5, 0),
    "updates": ("update", 8.0, 10),
}


SETTINGS = {"route": {"method": "srpo"}}


def manifests() -> dict[str, Manifest]:
    return {
        table: Manifest(
            origin=origin(table, stage=stage, settings=SETTINGS),
            rows=4,
            bytes=1,
            sha256="",
            facts=FACTS if table == "updates" else {},
            index=None,
            cost=COST.model_copy(update={"seconds": seconds, "tokens": tokens}),
        )
        for table, (stage, seconds, tokens) in STAGES.items()
    }


EXPECTED = {
    "step": STEP,
    "rollouts": 4,
    "reward_mean": 0.25,
    "correct_share": 0.25,
    "format_rate": 0.5,
    "verifier_errors": 1,
    "truncated_share": 0.25,
    "response_tokens_mean": 2.5,  # (3 + 2 + 1 + 4) / 4
    "response_tokens_max": 4,
    "duplicate_share": 0.0,
    "share_grpo": 0.75,
    "share_sdpo": 0.25,
    "share_mix": 0.0,
    "share_none": 0.0,
    "teacher_available": 0.25,
    "distils": True,
    "silent_questions": 0.5,  # nothing is learned from the second
    "demonstrations": 1,
    "demonstration_tokens_mean": 3.0,  # rollout 0 teaches rollout 1
    "other_tokens_mean": 7 / 3,
    "correct_tokens_mean": 3.0,
    "wrong_tokens_mean": 7 / 3,
    "taught_tokens": 2,
    "teacher_entropy_mean": 0.75,
    "jsd_mean": 0.25,
    "weight_std": 0.2,  # of 1.2 and 0.8
    "weight_max": 1.2,
    "effective_tokens": 4 / 2.08,  # 2^2 over 1.44 + 0.64
    "off_path_share": 0.0,  # the teacher finds both tokens likelier than the student
    "loss": 0.375,
    "grad_norm": 3.0,
    "learning_rate": 5e-6,
    "updates": 2,
    "routed_tokens": 10,
    "computed_tokens": 5,  # the first two rollouts
    "logprob_gap_max": 0.25,
    "logprob_gap_token_mean": 0.1,  # of 3 tokens with 0.125 and 2 with 0.0625
    "engine_kl": 0.11875,  # of 3 tokens with 0.03125 and 2 with 0.25
    "tis_cut_share": 0.2,  # of 5 tokens, 1
    "logprob_gap_mean": 0.1875,  # of 0.25 and 0.125
    "clipped_fraction": 0.25,
    "seconds_generate": 4.0,
    "seconds_verify": 1.0,
    "seconds_route": 2.0,
    "seconds_weigh": 0.5,
    "seconds_update": 8.0,
    "seconds": 15.5,
    "tokens": 10,
}


def test_divergence_off_the_teachers_path_by_hand() -> None:
    """S = 1, e^-3 < 0.1; w jsd = 1.2 x 0.125 and 0.8 x 0.375."""
    made = tables()
    made["teacher"] = with_column(made["teacher"], "teacher_logprob", [-4.25, -2.5])
    assert step_metrics(made, manifests())["off_path_share"] == pytest.approx(0.3 / 0.45)
    made |= {name: made[name].slice(0, 0) for name in ("teacher", "weights")}
    found = step_metrics(made, manifests())
    names = ("off_path_share", "weight_max", "effective_tokens")
    assert [found[name] for name in names] == [None] * 3


OF_TASKS = (
    "rollouts", "reward_mean", "correct_share", "format_rate", "verifier_errors",
    "truncated_share", "response_tokens_mean", "share_sdpo", "teacher_available",
)  # fmt: skip


def test_a_step_by_hand() -> None:
    found = step_metrics(tables(), manifests())
    assert found.keys() == EXPECTED.keys()
    assert found == pytest.approx(EXPECTED, rel=1e-6)


def test_a_step_that_leaves_out_what_could_not_be_judged() -> None:
    """The last of four rollouts has an error: right 1 of 3, lengths of the wrong ones 2 and 1."""
    made = manifests()
    newer = made["routes"].origin.model_copy(update={"stage_version": 4})
    made["routes"] = made["routes"].model_copy(update={"origin": newer})
    found = step_metrics(tables(), made)
    changed = {
        "reward_mean": 1 / 3,
        "correct_share": 1 / 3,
        "format_rate": 2 / 3,
        "wrong_tokens_mean": 1.5,
        "judged": 3,
    }
    assert found == pytest.approx({**EXPECTED, **changed}, rel=1e-6)


@pytest.mark.parametrize("setting", ["feedback", "feedback_alone"])
def test_what_feedback_tells_of_the_gold_answers(setting: str) -> None:
    """One teacher is shown `It is 4.`; the verdict on the third rollout is shown to nobody."""
    made = manifests()
    settings = {"route": {"method": "srpo", setting: True}}
    fed = made["routes"].origin.model_copy(update={"settings": settings})
    made["routes"] = made["routes"].model_copy(update={"origin": fed})
    assert step_metrics(tables(), made)["feedback_gold_share"] == 1.0
    harmless = with_column(tables()["verdicts"], "feedback", [None, "It is not 5.", None, None])
    untold = {**tables(), "verdicts": harmless}
    assert step_metrics(untold, made)["feedback_gold_share"] is None  # in no teacher's prompt
    prompts = [None, "taught: It is not 5.", None, None]
    untold["routes"] = with_column(tables()["routes"], "teacher_prompt_text", prompts)
    assert step_metrics(untold, made)["feedback_gold_share"] == 0.0


def test_evaluations_count_the_unjudged_as_wrong_and_report_their_share() -> None:
    found = evaluation_metrics(tables()["evaluations"])
    assert found["accuracy"] == 0.25  # questions with 1 of 2 and 0 of 2
    assert (found["verifier_errors"], found["unjudged_share"]) == (1, 0.25)


def test_an_answer_that_could_not_be_judged_has_no_vote() -> None:
    made = answers("4555")
    assert evaluation_metrics(made)["maj_at_k"] == 0.0  # three votes for 5, one for 4
    errors = [None, "timed out", None, "timed out"]
    found = evaluation_metrics(with_column(made, "error", errors))
    assert found["maj_at_k"] == 0.5  # one vote each


def test_entries_of_each_task_by_hand() -> None:
    found = tables()
    found["rollouts"] = with_column(found["rollouts"], "task", ["a", "a", "b", "b"])
    record = step_metrics(found, manifests(), ["a", "b", "c"])
    own = {task: {k: record.pop(f"{k}/{task}") for k in OF_TASKS} for task in ("a", "b", "c")}
    assert record == pytest.approx(EXPECTED, rel=1e-6)
    assert own["a"]["rollouts"] == own["b"]["rollouts"] == 2
    for key in ("reward_mean", "correct_share", "share_sdpo", "response_tokens_mean"):
        assert (own["a"][key] + own["b"][key]) / 2 == pytest.approx(EXPECTED[key])
    assert (own["a"]["reward_mean"], own["a"]["share_sdpo"]) == (0.5, 0.5)  # one is right, one SDPO
    counts = ("rollouts", "verifier_errors")
    assert own["c"] == {key: 0 if key in counts else None for key in OF_TASKS}


def test_saved_work_is_that_of_route_and_update() -> None:
    made = manifests()
    for table, computed, naive in (("scores", 30, 90), ("updates", 20, 110)):
        facts = {**made[table].facts, "tokens_computed": computed, "tokens_naive": naive}
        made[table] = made[table].model_copy(update={"facts": facts})
        found = step_metrics(tables(), made)
        assert ("tokens_naive" in found) == (table == "updates")  # older steps counted neither
    assert (found["tokens_computed"], found["tokens_naive"]) == (50, 200)
    assert found["work_share"] == 0.25


def test_long_texts_that_recur_across_questions_are_duplicates() -> None:
    made = tables()["rollouts"]  # two questions of two rollouts
    for texts, lengths, share in (
        (["same", "same", "other", "more"], [20] * 4, 0.0),  # within a group: natural
        (["same", "x", "same", "y"], [20] * 4, 0.5),
        (["same", "x", "same", "y"], [15] * 4, 0.0),  # short answers recur
        (["same"] * 4, [20, 20, 20, 3], 0.75),
    ):
        table = with_column(made, "response_text", texts)
        table = with_column(table, "response_ids", [[1] * n for n in lengths])
        found = step_metrics({**tables(), "rollouts": table}, manifests())
        assert found["duplicate_share"] == share


def test_a_step_without_taught_or_computed_rollouts() -> None:
    made = tables()
    made["teacher"], made["weights"] = made["teacher"].slice(0, 0), made["weights"].slice(0, 0)
    updates = with_column(made["updates"], "computed", [False] * 4)
    for column in ("clipped_fraction", "max_logprob_gap", "engine_kl"):
        updates = with_column(updates, column, [None] * 4)
    found = step_metrics({**made, "updates": updates}, manifests())
    assert (found["taught_tokens"], found["computed_tokens"]) == (0, 0)
    for key in ("teacher_entropy_mean", "jsd_mean", "weight_std", "logprob_gap_max", "engine_kl"):
        assert found[key] is None
    assert found["clipped_fraction"] is None


def test_an_evaluation_by_hand() -> None:
    # avg@4: (2/4 + 1/4 + 0) / 3; pass@4: 2 of 3; maj@4: 4 ties with 5 (1/2), 5 wins (0), 0
    found = evaluation_metrics(answers("4455", "4555", "5..."))
    assert found["accuracy"] == pytest.approx(0.25)
    assert found["pass_at_k"] == pytest.approx(2 / 3)
    assert found["maj_at_k"] == pytest.approx(0.5 / 3)
    assert found["format_rate"] == pytest.approx(0.75)
    assert (found["questions"], found["rollouts"]) == (3, 4)
    for name in ("", "pass_at_k_", "maj_at_k_"):
        mean = found[name.removesuffix("_") or "accuracy"]
        assert found[f"{name}low"] <= mean <= found[f"{name}high"]


def test_the_made_up_evaluation() -> None:
    found = evaluation_metrics(tables()["evaluations"])
    assert found["truncated_share"] == 0.25
    assert found["response_tokens"] == 2.5
    assert found["accuracy"] == 0.25  # group 0: 1/2, group 1: 0
    assert found["pass_at_k"] == 0.5
    assert found["maj_at_k"] == 0.25  # "4" and "5" tie in group 0


def test_questions_weigh_the_same_whatever_their_number_of_answers() -> None:
    found = evaluation_metrics(answers("4", "555"))
    assert found["accuracy"] == 0.5
    assert found["rollouts"] == 3


@pytest.mark.parametrize(
    ("given_answers", "expected"),
    [
        ([("4", True), ("4", True), ("5", False)], 1.0),
        ([("4", True), ("5", False), ("5", False)], 0.0),
        ([("4", True), ("5", False)], 0.5),  # two tie
        ([("4", True), ("5", False), ("6", False)], 1 / 3),  # three tie
        ([("4", True), ("", False), ("", False)], 1.0),  # no prediction has no vote
        ([(None, False)], 0.0),
        ([], 0.0),
        ([("5", False)], 0.0),
    ],
)
def test_majorities_by_hand(given_answers: list[tuple[str | None, bool]], expected: float) -> None:
    assert majority_correct(given_answers) == pytest.approx(expected)


@given(st.lists(st.tuples(st.sampled_from(["4", "5", "6", None]), st.none()), max_size=12))
def test_majorities_do_not_depend_on_order(drawn: list[tuple[str | None, None]]) -> None:
    judged = [(prediction, prediction == "4") for prediction, _ in drawn]
    assert majority_correct(judged) == majority_correct(judged[::-1])
    assert 0 <= majority_correct(judged) <= 1


def test_the_bootstrap_is_seeded() -> None:
    values = [0.0, 0.25, 1.0, 0.5]
    assert bootstrap(values) == bootstrap(values)
    assert bootstrap([v / 2 for v in values]) == pytest.approx([x / 2 for x in bootstrap(values)])


def test_equal_values_have_no_spread() -> None:
    assert bootstrap([0.5] * 7) == (0.5, 0.5, 0.5)
    assert bootstrap([0.25]) == (0.25, 0.25, 0.25)


def test_the_bootstrap_is_near_the_normal_interval() -> None:
    """400 coin flips: mean 1/2, deviation of the mean 1/40, so 1/2 -+ 1.96 / 40."""
    mean, low, high = bootstrap([0.0, 1.0] * 200)
    assert mean == 0.5
    assert low == pytest.approx(0.5 - 1.96 / 40, abs=0.005)
    assert high == pytest.approx(0.5 + 1.96 / 40, abs=0.005)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_intervals_hold_their_mean_and_stay_within_the_values(values: list[float]) -> None:
    mean, low, high = bootstrap(values)
    slack = 1e-12
    assert mean == pytest.approx(float(np.mean(values)))
    assert min(values) - slack <= low <= high <= max(values) + slack
    assert not math.isnan(low)


def test_ids_of_the_made_up_evaluation_begin_with_e() -> None:
    assert tables()["evaluations"]["rollout_id"].to_pylist() == [f"e{i}" for i in IDS]
