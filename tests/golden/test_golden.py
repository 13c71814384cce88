"""A step of ours against the float64 twin, and the twin's power: each broken formula is caught."""

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

import pipeline.forward.projection
import stages.route.scores
import stages.route.solutions
import stages.route.stage
import stages.update.objective
import stages.update.stage
import stages.weigh
from flows.session.session import Session
from pipeline.forward.scoring import Component
from pipeline.policy.policy import Policy
from pipeline.survival import log_survival_of
from pipeline.twin.compare_tables import compare_routes
from pipeline.twin.inputs import StepTwin
from pipeline.twin.step import recompute
from pipeline.twin.tolerances import Report
from stages.update.objective import TokenLosses
from stages.weigh import credit_columns
from tests.builders.tables import with_column
from tests.golden.golden_run import (
    RTOL,
    STEP,
    disagreements,
    make_run,
    run_step,
    teacher_states,
    twin_of,
    twin_settings,
)

Overrides = Mapping[str, Mapping[str, object]]

TWO_UPDATES = {"route": {"mini_batch": 3}}
VARIANTS: dict[str, Overrides] = {
    "srpo": {},
    "srpo, two updates": TWO_UPDATES,
    "srpo, all rescored, K = V": {"route": {"rescore": "all", "top_k": 500}},
    "srpo without weighting": {"weigh": {"beta": 0.0}},
    "survival, weight": {"weigh": {"survival": "weight"}},
    "survival, weights below float32": {"weigh": {"survival": "weight", "beta": 40.0}},
    "survival, unnormalised": {"weigh": {"survival": "unnormalised"}},
    "survival, handed over": {"weigh": {"survival": "hand_over"}},
    "survival, handed over, two updates": {"weigh": {"survival": "hand_over"}, **TWO_UPDATES},
    "srpo, group_std": {"route": {"advantage_scale": "group_std"}},
    "grpo": {"route": {"method": "grpo", "mini_batch": 2}},
    "sdpo": {"route": {"method": "sdpo"}},
    "sdpo_incorrect_only": {"route": {"method": "sdpo_incorrect_only"}},
    "sdpo_correct_only": {"route": {"method": "sdpo_correct_only"}},
    "advantage_mix": {"route": {"method": "advantage_mix", "mini_batch": 3}},
    "rlsd": {"route": {"method": "rlsd", "advantage_scale": "group_std"}},
    "rlsd, two updates, periodic teacher": {
        "route": {"method": "rlsd", "mini_batch": 3, "teacher": "periodic", "teacher_period": 2}
    },
    "rlsd, whole advantage, wide clip, K = V": {
        "route": {"method": "rlsd", "credit_lambda": 1.0, "credit_steps": 5, "top_k": 500},
        "weigh": {"credit_clip": 0.9},
    },
    "forward_kl": {"update": {"divergence": "forward_kl"}},
    "reverse_kl": {"update": {"divergence": "reverse_kl"}},
    "sampled_token": {"update": {"divergence": "sampled_token"}},
    "jsd, alpha 0.3": {"update": {"jsd_alpha": 0.3}},
    "live teacher": {"route": {"teacher": "live"}},
    "frozen teacher": {"route": {"teacher": "frozen"}},
    "trust region": {"route": {"teacher": "trust_region", "trust_region_mix": 0.4}},
}


def open_run(folder: Path, overrides: Overrides) -> Iterator[Session]:
    session = make_run(folder, overrides)
    yield session
    session.close()


@pytest.fixture(scope="module")
def srpo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    yield from open_run(tmp_path_factory.mktemp("srpo"), {})


@pytest.fixture(scope="module")
def srpo_twin(srpo: Session) -> StepTwin:
    return twin_of(srpo, run_step(srpo))


@pytest.mark.parametrize("name", VARIANTS)
def test_a_step_equals_its_twin(name: str, tmp_path: Path) -> None:
    for session in open_run(tmp_path, VARIANTS[name]):
        capture = run_step(session)
        twin = twin_of(session, capture)
        assert disagreements(twin, capture) == []
        assert len(capture.gradients) == len(twin.batches) >= 1
        norms = [sum(float(g.square().sum()) for g in u.values()) for u in capture.gradients]
        assert min(norms) > 0


def partly_judged(session: Session) -> pa.Table:
    """Return the verdicts of the golden step; every third could not be made, and one group's."""
    table = session.run.read("verdicts", STEP)
    rows = table.to_pylist()
    for place, row in enumerate(rows):
        if place % 3 == 0 or place // 5 == 4:
            row |= {"error": "time limit of 1 s exceeded", "reward": 0.0, "correct": False}
    return pa.Table.from_pylist(rows, schema=table.schema)


@pytest.mark.parametrize(
    "name",
    ["srpo", "srpo, two updates", "srpo, group_std", "grpo", "sdpo", "advantage_mix", "rlsd"],
)
def test_what_could_not_be_judged_is_left_out_as_the_twin_says(name: str, tmp_path: Path) -> None:
    for session in open_run(tmp_path, VARIANTS[name]):
        verdicts = partly_judged(session)
        capture = run_step(session, verdicts=verdicts)
        twin = twin_of(session, capture)
        assert disagreements(twin, capture) == []
        lost = {r["rollout_id"] for r in verdicts.to_pylist() if r["error"]}
        routes = capture.tables["routes"].to_pylist()
        assert lost and {r["route"] for r in routes if r["rollout_id"] in lost} == {"none"}
        earlier = replace(twin_settings(session.config), early_routing=True)
        report = Report(RTOL)
        folder, states = session.run.snapshot_path(STEP), teacher_states(session)
        compare_routes(
            report, recompute(capture.tables, folder, states, earlier), capture.tables["routes"]
        )
        assert report.lines


def test_a_padding_token_in_every_prompt_learns_as_its_twin_says(tmp_path: Path) -> None:
    session = make_run(tmp_path, {}, padding="<user>")
    capture = run_step(session)
    twin = twin_of(session, capture)
    assert disagreements(twin, capture) == []
    settings = replace(twin_settings(session.config), padding_masked=True)
    masked = recompute(
        capture.tables, session.run.snapshot_path(STEP), teacher_states(session), settings
    )
    assert any("gradient" in line for line in disagreements(masked, capture))
    name, row = "model.embed_tokens.weight", session.resident.require().encode("<user>")[0]
    assert not torch.allclose(
        twin.batches[0].gradient[name][row], masked.batches[0].gradient[name][row]
    )
    session.close()


def test_the_golden_step_is_worth_testing(srpo: Session) -> None:
    tables = run_step(srpo).tables
    routes = tables["routes"]["route"].to_pylist()
    assert {"grpo", "sdpo"} <= set(routes)
    lengths = [len(ids) for ids in tables["rollouts"]["response_ids"].to_pylist()]
    assert len(set(lengths)) >= 5
    assert srpo.run.manifest("updates", 1).facts["learning_rate"] == pytest.approx(1e-2)
    assert tables["teacher"].schema.field("topk_ids").type.list_size == 16
    padded = 64 * len(lengths)
    assert padded > 2 * srpo.config.update.micro_batch_tokens  # several micro-batches


def top_k_entropy(cooled_NV: Tensor, weights_NV: Tensor) -> Tensor:
    kept = cooled_NV.log_softmax(-1).topk(16).values
    return -(kept.exp() * kept).sum(-1)


def no_tail(logprobs_NK: Tensor, log_tail_N: Tensor | None) -> Tensor:
    return logprobs_NK


def per_micro_batch(original: Callable[..., TokenLosses]) -> Callable[..., TokenLosses]:
    """Make each micro-batch a mean of its own, as if the step's loss were their sum."""

    def broken(model: Any, batch: Any, *rest: Any) -> TokenLosses:
        losses = original(model, batch, *rest)
        scale = 300 / len(losses.loss_N)
        return TokenLosses(losses.loss_N * scale, *losses[1:])

    return broken


def student_only_temperature(original: Callable[..., Any]) -> Callable[..., Any]:
    def broken(components: Any, sequences: Any, temperature_N: Tensor, *rest: Any) -> Any:
        return original(components, sequences, torch.ones_like(temperature_N), *rest)

    return broken


def live_teacher(policy: Policy) -> list[Component]:
    return [Component(policy.model, 1.0)]


BREAKAGES: dict[str, tuple[list[tuple[Any, str, Any]], str]] = {
    "entropy over top-K": ([(pipeline.forward.projection, "entropy_N", top_k_entropy)], "entropy"),
    "normalisation per micro-batch": (
        [
            (
                stages.update.stage,
                "token_losses",
                per_micro_batch(stages.update.stage.token_losses),
            )
        ],
        "gradient",
    ),
    "weights without normaliser": (
        [(stages.weigh, "normalised_weights_N", lambda log_raw, batch: np.exp(log_raw))],
        "weight ",
    ),
    "live instead of EMA teacher": ([(Policy, "teacher_components", live_teacher)], "teacher"),
    "no tail bucket": (
        [
            (stages.route.scores, "buckets_NC", no_tail),
            (stages.update.objective, "buckets_NC", no_tail),
        ],
        "jsd",
    ),
    "temperature only on the student": (
        [
            (
                stages.route.scores,
                "score_teacher",
                student_only_temperature(stages.route.scores.score_teacher),
            )
        ],
        "teacher",
    ),
}


@pytest.mark.parametrize("name", BREAKAGES)
def test_a_broken_formula_is_caught(
    name: str, srpo: Session, srpo_twin: StepTwin, monkeypatch: pytest.MonkeyPatch
) -> None:
    patches, where = BREAKAGES[name]
    for owner, attribute, broken in patches:
        monkeypatch.setattr(owner, attribute, broken)
    found = disagreements(srpo_twin, run_step(srpo))
    assert any(where in line for line in found), found[:5]


def test_self_teaching_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def first_correct(_: str, correct_G: list[bool], tokens_G: list[int], index: int) -> int | None:
        return next((j for j, correct in enumerate(correct_G) if correct), None)

    for session in open_run(tmp_path, {"route": {"method": "sdpo"}}):
        twin = twin_of(session, run_step(session))
        monkeypatch.setattr(stages.route.solutions, "demonstrating_sibling", first_correct)
        found = disagreements(twin, run_step(session))
        assert any("teacher_rollout_id" in line for line in found)


def with_own_token(teacher: pa.Table) -> Any:
    """S with the token's own factor in it."""
    shifted = log_survival_of(teacher)
    own = teacher["teacher_logprob"].to_numpy() - teacher["student_logprob"].to_numpy()
    return shifted + np.minimum(own.astype(np.float64), 0.0)


def without_a_cap(teacher: pa.Table) -> Any:
    """Ratios above 1 make up for others."""
    own = teacher["teacher_logprob"].to_numpy() - teacher["student_logprob"].to_numpy()
    starts = np.flatnonzero(teacher["position"].to_numpy() == 0)
    parts = np.split(own.astype(np.float64), starts[1:])
    return np.concatenate([np.r_[0.0, np.cumsum(part)[:-1]] for part in parts])


@pytest.mark.parametrize("broken", [with_own_token, without_a_cap])
def test_a_broken_survival_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: Callable[[pa.Table], Any]
) -> None:
    for session in open_run(tmp_path, VARIANTS["survival, handed over"]):
        twin = twin_of(session, run_step(session))
        monkeypatch.setattr(stages.weigh, "log_survival_of", broken)
        found = disagreements(twin, run_step(session))
        for column in ("weights.survival", "weights.reward_weight", "weight ", "gradient"):
            assert any(column in line for line in found), column


@pytest.fixture(scope="module")
def rlsd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """A run whose teacher is the initial policy at the golden step: n = 3."""
    route = {"method": "rlsd", "teacher": "periodic", "teacher_period": 3}
    yield from open_run(tmp_path_factory.mktemp("rlsd"), {"route": route})


@pytest.fixture(scope="module")
def rlsd_twin(rlsd: Session) -> StepTwin:
    return twin_of(rlsd, run_step(rlsd))


def wrong_sign(log_ratio: Any, advantage: Any, *rest: Any) -> Any:
    return credit_columns(log_ratio, -advantage, *rest)


def of_another_token(log_ratio: Any, *rest: Any) -> Any:
    return credit_columns(np.roll(log_ratio, 1), *rest)


def unclipped(log_ratio: Any, advantage: Any, credit: Any, clip: float) -> Any:
    return credit_columns(log_ratio, advantage, credit, 1.0)


def not_decayed(method: str, start: float, steps: int, step: int) -> float:
    return start


RLSD_BREAKAGES: dict[str, tuple[Any, str, Any, str]] = {
    "wrong sign": (stages.weigh, "credit_columns", wrong_sign, "weight "),
    "stale values: another token's": (stages.weigh, "credit_columns", of_another_token, "weight "),
    "stale values: another teacher's": (Policy, "teacher_components", live_teacher, "teacher"),
    "no clip": (stages.weigh, "credit_columns", unclipped, "weight "),
    "lambda does not fall": (stages.route.stage, "credit_lambda", not_decayed, "credit_lambda"),
}


@pytest.mark.parametrize("name", RLSD_BREAKAGES)
def test_a_broken_part_of_rlsd_is_caught(
    name: str, rlsd: Session, rlsd_twin: StepTwin, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert disagreements(rlsd_twin, run_step(rlsd)) == []
    owner, attribute, broken, where = RLSD_BREAKAGES[name]
    monkeypatch.setattr(owner, attribute, broken)
    found = disagreements(rlsd_twin, run_step(rlsd))
    assert any(where in line for line in found), found[:5]


def test_a_raw_weight_beyond_float32_is_its_largest_number(
    rlsd: Session, rlsd_twin: StepTwin
) -> None:
    capture, twin = run_step(rlsd), deepcopy(rlsd_twin)
    weights = capture.tables["weights"]
    first = twin.rollouts[weights["rollout_id"][0].as_py()].teacher
    assert first is not None
    first.raw_weights[0] = 1e43
    largest = float(np.finfo(np.float32).max)
    raw = [largest, *weights["raw_weight"].to_pylist()[1:]]
    capture.tables["weights"] = with_column(weights, "raw_weight", raw)
    assert disagreements(twin, capture) == []


def test_a_periodic_teacher_that_is_not_renewed_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At step 2 with n = 2 it is the policy after 2 steps; the twin takes it from there."""
    monkeypatch.setattr(Policy, "_copies_now", lambda *_: False)
    for session in open_run(tmp_path, VARIANTS["rlsd, two updates, periodic teacher"]):
        capture = run_step(session)
        found = disagreements(twin_of(session, capture), capture)
        assert any("teacher_logprob" in line for line in found), found[:5]
