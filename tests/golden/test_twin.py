"""The twin against finite differences, its comparisons against tables with one fault."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from transformers import Qwen3ForCausalLM

from pipeline.twin import formulas
from pipeline.twin.compare_tables import compare, compare_gradients, compare_routes
from pipeline.twin.formulas import Settings
from pipeline.twin.inputs import StepTwin
from pipeline.twin.step import recompute
from pipeline.twin.tolerances import Report
from tests.golden.twin_step import TwinInputs, make_step


def near(found: torch.Tensor, expected: list[float]) -> bool:
    return found.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.fixture(scope="module")
def step(tmp_path_factory: pytest.TempPathFactory) -> TwinInputs:
    return make_step(tmp_path_factory.mktemp("one"), 1)


@pytest.fixture(scope="module")
def twin(step: TwinInputs) -> StepTwin:
    return recompute(step.tables, step.policy_dir, step.teacher, Settings(top_k=10))


def test_a_whole_step(step: TwinInputs, twin: StepTwin) -> None:
    rows = list(twin.rollouts.values())
    assert [row.route for row in rows] == ["sdpo", "grpo", "sdpo", "grpo", "sdpo", "grpo"]
    # group 0: 0, 1, .25 with mean 1.25 / 3; group 1: 1, 0, 1 with mean 2 / 3
    wanted = [-1.25 / 3, 1.75 / 3, -0.5 / 3, 1 / 3, -2 / 3, 1 / 3]
    assert [row.advantage for row in rows] == pytest.approx(wanted)
    # The prompts of `twin_step` are spelled out by hand.
    given = step.tables["routes"]["teacher_prompt_ids"].to_pylist()
    assert [row.teacher_prompt_ids or [] for row in rows] == given
    assert twin.batches[0].tokens == sum(len(row.response_ids) for row in rows)
    taught = torch.cat([row.teacher.weights for row in rows if row.teacher])
    assert taught.mean().item() == pytest.approx(1.0, abs=1e-14)
    sums = [row.update.loss_sum.item() for row in rows if row.update]
    assert twin.batches[0].loss == pytest.approx(sum(sums) / twin.batches[0].tokens)
    # On the first update all ratios are 1: l = -A TIS, or w JSD TIS.
    for row in rows:
        assert row.update is not None and row.old_logprobs is not None
        tis = (row.old_logprobs - row.sampled_logprobs).exp().clamp(max=2.0)
        plain = -row.advantage * torch.ones_like(tis)
        plain = plain if row.teacher is None else row.teacher.weights * row.teacher.jsd
        assert near(row.update.token_losses, (plain * tis).tolist())


def test_the_logits_of_two_teachers_are_added(step: TwinInputs) -> None:
    """A quarter and three quarters of one teacher are that teacher."""
    (state, _), *_ = step.teacher
    whole, halves = (
        recompute(step.tables, step.policy_dir, parts, Settings(top_k=10))
        for parts in ([(state, 1.0)], [(state, 0.25), (state, 0.75)])
    )
    assert compare_gradients(whole.batches[0].gradient, halves.batches[0].gradient) < 1e-12


@pytest.mark.parametrize(
    ("method", "divergence", "top_k", "survival"),
    [
        ("srpo", "jsd", 10, "off"),
        ("srpo", "jsd", 10, "weight"),
        ("srpo", "jsd", 10, "hand_over"),
        ("sdpo", "forward_kl", 10, "off"),
        ("sdpo_incorrect_only", "reverse_kl", 500, "off"),
        ("advantage_mix", "jsd", 10, "off"),
        ("grpo", "jsd", 10, "off"),
        ("rlsd", "jsd", 10, "off"),
    ],
)
def test_gradient_against_finite_differences(
    tmp_path: Path, method: str, divergence: str, top_k: int, survival: str
) -> None:
    """The second update of a step: pi_old and the weights are fixed, the ratios are not 1.

    Central differences in float64 err by about eps^2; with float32 anywhere in the forward pass
    they would be off by 1e-7 / eps = 1e-2. `sdpo_ratio_clip` is low so that its factor, which has
    no gradient, is a constant.
    """
    step = make_step(tmp_path, 2)
    settings = Settings(
        method=method,
        divergence=divergence,
        top_k=top_k,
        survival=survival,
        sdpo_ratio_clip=0.05,
    )
    start = recompute(step.tables, step.policy_dir, step.teacher, settings)
    assert sorted(start.batches) == [0] and sorted(start.batch_tokens) == [0, 1]
    torch.manual_seed(3)
    names = start.batches[0].gradient
    policy = make_policy_state(step.policy_dir)
    moved = {name: value + 0.01 * torch.randn_like(value) for name, value in policy.items()}
    direction = {name: torch.randn_like(value) for name, value in moved.items()}
    assert set(names) == set(moved)

    def run(scale: float) -> StepTwin:
        at = {name: value + scale * direction[name] for name, value in moved.items()}
        return recompute(step.tables, step.policy_dir, step.teacher, settings, {1: at})

    eps = 1e-5
    middle = run(0.0).batches[1]
    slope = (run(eps).batches[1].loss - run(-eps).batches[1].loss) / (2 * eps)
    inner = sum(float((middle.gradient[n] * direction[n]).sum()) for n in direction)
    assert slope == pytest.approx(inner, rel=1e-5)
    assert abs(inner) > 1e-4


def make_policy_state(folder: Path) -> dict[str, torch.Tensor]:
    model = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return {name: value.detach().double() for name, value in model.named_parameters()}


def make_tables(twin: StepTwin) -> dict[str, list[dict[str, Any]]]:
    """The twin's own numbers as rows of float32 tables."""
    tables: dict[str, list[dict[str, Any]]] = {n: [] for n in ("teacher", "weights", "updates")}
    tables["scores"] = []
    for name, row in twin.rollouts.items():
        assert row.old_logprobs is not None and row.student_entropy is not None and row.update
        for t in range(len(row.response_ids) if row.teacher else 0):
            assert row.teacher and row.teacher.student_tail is not None
            assert row.teacher.teacher_tail is not None
            teacher = {
                "topk_ids": row.teacher.topk_ids,
                "student_logprobs": row.teacher.student_topk,
                "teacher_logprobs": row.teacher.teacher_topk,
                "student_tail": row.teacher.student_tail,
                "teacher_tail": row.teacher.teacher_tail,
                "entropy": row.teacher.entropy,
                "student_logprob": row.teacher.student_logprob,
                "teacher_logprob": row.teacher.teacher_logprob,
                "jsd": row.teacher.jsd,
            }
            key = {"rollout_id": name, "position": t}
            floats = {n: v if n == "topk_ids" else v.float() for n, v in teacher.items()}
            tables["teacher"].append(key | {n: v[t].tolist() for n, v in floats.items()})
            weights = {
                "entropy": row.teacher.entropy,
                "raw_weight": row.teacher.raw_weights,
                "weight": row.teacher.weights,
            }
            tables["weights"].append(key | {n: v.float()[t].item() for n, v in weights.items()})
        count = len(row.response_ids)
        update = {
            "rollout_id": name,
            "route": row.route,
            "mini_batch": 0,
            "tokens": count,
            "computed": True,
            "loss_sum": row.update.loss_sum.item(),
            "share": count / twin.batches[0].tokens,
            "mean_ratio": 1.0,
            "clipped_fraction": 0.0,
            "mean_tis": row.update.tis.mean().item(),
            "max_logprob_gap": row.update.logprob_gap.abs().max().item(),
            "mean_logprob_gap": row.update.logprob_gap.abs().mean().item(),
            "engine_kl": formulas.engine_kl(row.update.logprob_gap).mean().item(),
            "tis_cut_fraction": (row.update.logprob_gap.exp() > 2.0).double().mean().item(),
            "mean_divergence": row.update.divergences.mean().item() if row.teacher else None,
        }
        tables["updates"].append(update)
        kept = {"old_logprobs": row.old_logprobs, "student_entropy": row.student_entropy}
        tables["scores"].append(
            {"rollout_id": name} | {n: v.float().tolist() for n, v in kept.items()}
        )
    return tables


@pytest.mark.parametrize("kind", ["weight", "unnormalised", "hand_over"])
def test_survival_in_a_whole_step(step: TwinInputs, twin: StepTwin, kind: str) -> None:
    """Against the twin without survival: ratios are 1, so a GRPO loss is -A TIS."""
    found = recompute(step.tables, step.policy_dir, step.teacher, Settings(top_k=10, survival=kind))
    taught = [row for row in found.rollouts.values() if row.teacher]
    weights = torch.cat([row.teacher.weights for row in taught if row.teacher])
    assert (weights.mean().item() == pytest.approx(1.0)) is (kind == "weight")
    scales = set()
    for row in taught:
        before = twin.rollouts[row.rollout_id]
        assert row.teacher and row.update and before.teacher and before.update
        logs = row.teacher.teacher_logprob - row.teacher.student_logprob
        product = [math.prod(logs[:t].exp().clamp(max=1.0).tolist()) for t in range(len(logs))]
        assert near(row.teacher.survival, product)
        plain = before.update.token_losses * row.teacher.survival
        if kind == "weight":
            scales |= {round(float(x), 9) for x in row.update.token_losses / plain}
            continue
        if kind == "hand_over":
            plain = plain - (1 - row.teacher.survival) * row.advantage * row.update.tis
        assert near(row.update.token_losses, plain.tolist())
    assert len(scales) == (1 if kind == "weight" else 0)  # of one mean


def disagreements(twin: StepTwin, tables: dict[str, list[dict[str, Any]]]) -> list[str]:
    arrow = {name: pa.Table.from_pylist(rows) for name, rows in tables.items()}
    report = Report()
    compare(report, twin, *(arrow[n] for n in ("teacher", "weights", "updates", "scores")))
    return report.lines


def test_the_twin_agrees_with_itself(twin: StepTwin) -> None:
    assert disagreements(twin, make_tables(twin)) == []
    tables = make_tables(twin)
    tables["scores"][0] |= {"old_logprobs": [], "student_entropy": []}
    assert disagreements(twin, tables) == []


def scale(table: str, row: int, column: str, factor: float) -> Callable[[Any], None]:
    def change(tables: dict[str, list[dict[str, Any]]]) -> None:
        value = tables[table][row][column]
        changed = [v * factor for v in value] if isinstance(value, list) else value * factor
        tables[table][row][column] = changed

    return change


def swap_ids(tables: dict[str, list[dict[str, Any]]]) -> None:
    ids = tables["teacher"][0]["topk_ids"]
    ids[0], ids[1] = ids[1], ids[0]


FAULTS = {
    "jsd": scale("teacher", 0, "jsd", 1.001),
    "teacher.entropy": scale("teacher", 0, "entropy", 1.0001),
    "teacher_logprobs": scale("teacher", 1, "teacher_logprobs", 1.0001),
    "student_tail": scale("teacher", 1, "student_tail", 1.001),
    "topk_ids": swap_ids,
    "weights.entropy": scale("weights", 0, "entropy", 1.0001),
    "weight (mean)": scale("weights", 0, "weight", 1.001),
    "updates.loss_sum": scale("updates", 1, "loss_sum", 1.0001),
    "updates.share": scale("updates", 0, "share", 1.001),
    "updates.mean_tis": scale("updates", 2, "mean_tis", 1.0001),
    "updates.mean_logprob_gap": scale("updates", 2, "mean_logprob_gap", 1.01),
    "updates.engine_kl": scale("updates", 2, "engine_kl", 1.01),
    "updates.tis_cut_fraction": lambda tables: tables["updates"][0].update(tis_cut_fraction=0.99),
    "updates.clipped_fraction": lambda tables: tables["updates"][0].update(clipped_fraction=0.5),
    "updates.route": lambda tables: tables["updates"][0].update(route="grpo"),
    "updates.computed": lambda tables: tables["updates"][0].update(computed=False),
    "teacher (rows)": lambda tables: tables["teacher"].pop(),
    "scores.old_logprobs": scale("scores", 0, "old_logprobs", 1.0001),
}


@pytest.mark.parametrize("what", FAULTS)
def test_one_fault_is_named(twin: StepTwin, what: str) -> None:
    tables = make_tables(twin)
    FAULTS[what](tables)
    lines = disagreements(twin, tables)
    assert any(line.startswith(what) for line in lines), lines
    assert {line.split()[0] for line in lines} <= {what.split()[0], "topk_ids"} | {
        f"{who}_logprobs" for who in ("student", "teacher")
    } | {"weight", "jsd"}


def test_a_negative_divergence_is_named(twin: StepTwin) -> None:
    tables = make_tables(twin)
    tables["teacher"][0]["jsd"] = -1e-12
    assert any("never below 0" in line for line in disagreements(twin, tables))


def test_routes_are_compared(twin: StepTwin) -> None:
    rows = [
        {
            "rollout_id": name,
            "correct": row.correct,
            "route": row.route,
            "reward": row.reward,
            "advantage": row.advantage,
            "group_mean": row.group_mean,
            "group_std": row.group_std,
            "teacher_available": row.available,
            "teacher_rollout_id": row.demonstrator,
            "teacher_source": row.source,
            "teacher_prompt_text": row.teacher_prompt_text,
            "teacher_prompt_ids": row.teacher_prompt_ids or [],
        }
        for name, row in twin.rollouts.items()
    ]
    report = Report()
    compare_routes(report, twin, pa.Table.from_pylist(rows))
    assert report.lines == [] and report.numbers == 6 * 9 + 5 * 2  # five have a prompt
    rows[0] |= {"teacher_rollout_id": "000000-0000-02", "advantage": 0.0}
    compare_routes(report, twin, pa.Table.from_pylist(rows))
    assert [line.split()[0] for line in report.lines] == [
        "routes.teacher_rollout_id",
        "routes.advantage",
    ]


def test_gradients_are_compared_by_their_norms() -> None:
    # (3, 4) against (3, 5): 1 / 5
    one, other = ({"w": torch.tensor(values)} for values in ([3.0, 4.0], [3.0, 5.0]))
    assert compare_gradients(one, other) == pytest.approx(0.2)
    zero = {"w": torch.zeros(2)}
    assert compare_gradients(zero, zero) == 0.0
    assert compare_gradients(zero, one) == math.inf
    with pytest.raises(ValueError, match="parameters differ"):
        compare_gradients(one, {"v": torch.zeros(2)})
