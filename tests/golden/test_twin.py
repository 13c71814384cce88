"""The twin against numbers worked out by hand, finite differences, and tables with one fault."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from transformers import Qwen3ForCausalLM

from tests.golden import formulas
from tests.golden.formulas import Settings
from tests.golden.tiny import TinyStep, make_step
from tests.golden.twin import StepTwin, compare, compare_gradients, compare_routes, recompute


def logs(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).log()


def near(found: torch.Tensor, expected: list[float]) -> bool:
    return found.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)


# s = (.5, .3, | .1, .1) and q = (.2, .2, | .5, .1): with K = 2 the rest weighs .2 and .6.
@pytest.mark.parametrize(
    ("name", "alpha", "expected"),
    [
        # KL(q || s) = .2 ln .4 + .2 ln(2/3) + .6 ln 3
        ("forward_kl", 0.0, -0.183258146375 - 0.081093021622 + 0.659167373201),
        # KL(s || q) = .5 ln 2.5 + .3 ln 1.5 + .2 ln(1/3)
        ("reverse_kl", 1.0, 0.458145365937 + 0.121639532432 - 0.219722457734),
        # m = (.35, .25, .4); KL(s || m) = .5 ln(10/7) + .3 ln 1.2 + .2 ln .5 = .094404502896,
        # KL(q || m) = .2 ln(4/7) + .2 ln .8 + .6 ln 1.5 = .086727197015
        ("jsd", 0.5, (0.094404502896 + 0.086727197015) / 2),
        # m = .75 s + .25 q = (.425, .275, .3);
        # KL(s || m) = .026269856224, KL(q || m) = .201443201637
        ("jsd", 0.25, 0.75 * 0.026269856224 + 0.25 * 0.201443201637),
    ],
)
def test_divergence_with_a_tail(name: str, alpha: float, expected: float) -> None:
    ids = torch.tensor([[0, 1]])
    s = formulas.buckets(logs(0.5, 0.3, 0.1, 0.1).unsqueeze(0), ids)
    q = formulas.buckets(logs(0.2, 0.2, 0.5, 0.1).unsqueeze(0), ids)
    assert near(s.exp()[0], [0.5, 0.3, 0.2])
    assert formulas.divergence(name, alpha, s, q).item() == pytest.approx(expected, abs=1e-10)
    assert formulas.divergence(name, alpha, s, s).item() == pytest.approx(0.0, abs=1e-15)


def test_the_whole_vocabulary_has_no_tail() -> None:
    logp = logs(0.5, 0.3, 0.2).unsqueeze(0)
    kept = formulas.buckets(logp, torch.tensor([[2, 0, 1]]))
    assert near(kept.exp()[0], [0.2, 0.5, 0.3])


def test_the_tail_never_goes_below_its_floor() -> None:
    # Nothing is left over: log(-expm1(-1e-7)) = log(1e-7 - 5e-15), finite.
    assert near(formulas.tail(logs(0.5, 0.5).unsqueeze(0)), [math.log(1e-7 - 5e-15)])


def test_sampled_token_loss_is_a_score_function() -> None:
    # s = .5, q = .25: coefficient ln 2; loss ln 2 * ln .5; gradient in log s = ln 2, q has none.
    log_s, log_q = logs(0.5).requires_grad_(), logs(0.25).requires_grad_()
    loss = formulas.sampled_token_loss(log_s, log_q)
    assert near(loss.detach(), [-(math.log(2) ** 2)])
    gradient_s, gradient_q = torch.autograd.grad(
        loss.sum(), [log_s, log_q], allow_unused=True, materialize_grads=True
    )
    assert near(gradient_s, [math.log(2)])
    assert near(gradient_q, [0.0])


def test_weights_have_mean_one_over_all_rollouts_together() -> None:
    # H = (ln 2, 0) and (ln 4): raw = .5, 1 and .25, mean 7/12 -> 6/7, 12/7 and 3/7.
    first, second = (-logs(2, 1), -logs(4))
    raw = [formulas.raw_weights(-first, 1.0), formulas.raw_weights(-second, 1.0)]
    one, two = formulas.normalise(raw)
    assert near(one, [6 / 7, 12 / 7])
    assert near(two, [3 / 7])
    assert near(formulas.normalise([formulas.raw_weights(-first, 0.0)])[0], [1.0, 1.0])
    assert formulas.normalise([]) == []


def test_entropy_is_that_of_the_vocabulary() -> None:
    # (1/2, 1/4, 1/4): .5 ln 2 + .5 ln 4 = 1.5 ln 2
    assert near(formulas.entropy(logs(0.5, 0.25, 0.25).unsqueeze(0)), [1.5 * math.log(2)])


def test_advantages() -> None:
    # mean .25; deviations .75, -.25 x 3; squares add to .75; over n - 1 = 3: .25; root .5
    plain = formulas.group_advantages([1, 0, 0, 0], "none")
    assert plain == (0.25, 0.5, [0.75, -0.25, -0.25, -0.25])
    scaled = formulas.group_advantages([1, 0, 0, 0], "group_std")
    assert scaled.values == pytest.approx([0.75 / 0.500001] + [-0.25 / 0.500001] * 3)
    assert formulas.group_advantages([0.5], "group_std").values == [0.0]


# ratios pi / pi_old = .5, 1, 2, 5, with the interval [.8, 1.28]
@pytest.mark.parametrize(
    ("advantage", "dual", "expected"),
    [
        # A = 1: -min(.5, .8), -1, -min(2, 1.28), -min(5, 1.28)
        (1.0, 3.0, [-0.5, -1.0, -1.28, -1.28]),
        # A = -1: -min(-.5, -.8), 1, -min(-2, -1.28), and 5 against the dual clip of 3
        (-1.0, 3.0, [0.8, 1.0, 2.0, 3.0]),
        (-1.0, None, [0.8, 1.0, 2.0, 5.0]),
        (-0.25, 3.0, [0.2, 0.25, 0.5, 0.75]),
    ],
)
def test_grpo_loss(advantage: float, dual: float | None, expected: list[float]) -> None:
    new, old = logs(0.1, 0.2, 0.4, 0.5), logs(0.2, 0.2, 0.2, 0.1)
    loss = formulas.grpo_loss(new, old, advantage, Settings(dual_clip=dual))
    assert near(loss, expected)


def test_grpo_gradient_where_the_ratio_is_one_is_minus_the_advantage() -> None:
    new = logs(0.2, 0.7).requires_grad_()
    loss = formulas.grpo_loss(new, new.detach(), 0.75, Settings())
    assert near(torch.autograd.grad(loss.sum(), new)[0], [-0.75, -0.75])


def test_the_log_ratio_is_held_to_twenty() -> None:
    far = torch.tensor([30.0, -30.0], dtype=torch.float64)
    assert near(formulas.ratio(far, 0 * far) / math.exp(20), [1.0, math.exp(-40)])


def test_tis_and_the_distillation_ratio_are_cut_above_only() -> None:
    # .5 / .25 = 2; .5 / .1 = 5 -> 2; .1 / .5 = .2
    top, bottom = logs(0.5, 0.5, 0.1), logs(0.25, 0.1, 0.5)
    assert near(formulas.tis_weight(top, bottom, 2.0), [2.0, 2.0, 0.2])
    assert near(formulas.sdpo_ratio(top, bottom, 2.0), [2.0, 2.0, 0.2])


def test_one_denominator_for_all_rollouts() -> None:
    # (3 - 1) / (2 + 3) = .4; the mean of means would be (3/2 - 1/3) / 2 = .583
    sums = [torch.tensor(3.0, dtype=torch.float64), torch.tensor(-1.0, dtype=torch.float64)]
    assert formulas.objective(sums, [2, 3]).item() == pytest.approx(0.4)
    assert formulas.objective([], []).item() == 0.0


@pytest.mark.parametrize(
    ("method", "expected"),  # for (c, m) = (1, 1), (1, 0), (0, 1), (0, 0)
    [
        ("srpo", "grpo grpo sdpo grpo"),
        ("grpo", "grpo grpo grpo grpo"),
        ("sdpo", "sdpo none sdpo none"),
        ("sdpo_incorrect_only", "none none sdpo none"),
        ("sdpo_correct_only", "sdpo none none none"),
        ("advantage_mix", "mix mix mix mix"),
    ],
)
def test_routes(method: str, expected: str) -> None:
    cases = [(True, True), (True, False), (False, True), (False, False)]
    assert [formulas.route_of(method, c, m) for c, m in cases] == expected.split()


def test_the_sibling_is_the_first_other_correct_rollout() -> None:
    correct = [False, True, True]
    assert [formulas.first_sibling(correct, index) for index in range(3)] == [1, 2, 1]
    assert formulas.first_sibling([True, False], 0) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>a\nb</think>\n4", "\n4"),
        ("a</think>4", "4"),
        ("<think>a</think>b<think>c</think>d", "bd"),
        ("<think>cut off", "<think>cut off"),
        ("4", "4"),
    ],
)
def test_thinking_is_removed(text: str, expected: str) -> None:
    assert formulas.without_thinking(text) == expected


@pytest.fixture(scope="module")
def step(tmp_path_factory: pytest.TempPathFactory) -> TinyStep:
    return make_step(tmp_path_factory.mktemp("one"), 1)


@pytest.fixture(scope="module")
def twin(step: TinyStep) -> StepTwin:
    return recompute(step.tables, step.policy_dir, step.teacher, Settings(top_k=10))


def test_a_whole_step(step: TinyStep, twin: StepTwin) -> None:
    rows = list(twin.rollouts.values())
    assert [row.route for row in rows] == ["sdpo", "grpo", "sdpo", "grpo", "sdpo", "grpo"]
    # group 0: 0, 1, .25 with mean 1.25 / 3; group 1: 1, 0, 1 with mean 2 / 3
    wanted = [-1.25 / 3, 1.75 / 3, -0.5 / 3, 1 / 3, -2 / 3, 1 / 3]
    assert [row.advantage for row in rows] == pytest.approx(wanted)
    # The prompts of `tiny` are spelled out by hand.
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


def test_the_logits_of_two_teachers_are_added(step: TinyStep) -> None:
    """A quarter and three quarters of one teacher are that teacher."""
    (state, _), *_ = step.teacher
    whole, halves = (
        recompute(step.tables, step.policy_dir, parts, Settings(top_k=10))
        for parts in ([(state, 1.0)], [(state, 0.25), (state, 0.75)])
    )
    assert compare_gradients(whole.batches[0].gradient, halves.batches[0].gradient) < 1e-12


@pytest.mark.parametrize(
    ("method", "divergence", "top_k"),
    [
        ("srpo", "jsd", 10),
        ("sdpo", "forward_kl", 10),
        ("sdpo_incorrect_only", "reverse_kl", 500),
        ("advantage_mix", "jsd", 10),
        ("grpo", "jsd", 10),
    ],
)
def test_gradient_against_finite_differences(
    tmp_path: Path, method: str, divergence: str, top_k: int
) -> None:
    """The second update of a step: pi_old and the weights are fixed, the ratios are not 1.

    Central differences in float64 err by about eps^2; with float32 anywhere in the forward pass
    they would be off by 1e-7 / eps = 1e-2. `sdpo_ratio_clip` is low so that its factor, which has
    no gradient, is a constant.
    """
    step = make_step(tmp_path, 2)
    settings = Settings(method=method, divergence=divergence, top_k=top_k, sdpo_ratio_clip=0.05)
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
            "max_logprob_gap": row.update.logprob_gap.max().item(),
            "mean_divergence": row.update.divergences.mean().item() if row.teacher else None,
        }
        tables["updates"].append(update)
        kept = {"old_logprobs": row.old_logprobs, "student_entropy": row.student_entropy}
        tables["scores"].append(
            {"rollout_id": name} | {n: v.float().tolist() for n, v in kept.items()}
        )
    return tables


def disagreements(twin: StepTwin, tables: dict[str, list[dict[str, Any]]]) -> list[str]:
    arrow = {name: pa.Table.from_pylist(rows) for name, rows in tables.items()}
    return compare(twin, *(arrow[name] for name in ("teacher", "weights", "updates", "scores")))


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
            "teacher_rollout_id": row.sibling,
            "teacher_prompt_text": row.teacher_prompt_text,
            "teacher_prompt_ids": row.teacher_prompt_ids or [],
        }
        for name, row in twin.rollouts.items()
    ]
    assert compare_routes(twin, pa.Table.from_pylist(rows)) == []
    rows[0] |= {"teacher_rollout_id": "000000-0000-02", "advantage": 0.0}
    lines = compare_routes(twin, pa.Table.from_pylist(rows))
    assert [line.split()[0] for line in lines] == ["routes.teacher_rollout_id", "routes.advantage"]


def test_gradients_are_compared_by_their_norms() -> None:
    # (3, 4) against (3, 5): 1 / 5
    one, other = ({"w": torch.tensor(values)} for values in ([3.0, 4.0], [3.0, 5.0]))
    assert compare_gradients(one, other) == pytest.approx(0.2)
    zero = {"w": torch.zeros(2)}
    assert compare_gradients(zero, zero) == 0.0
    assert compare_gradients(zero, one) == math.inf
    with pytest.raises(ValueError, match="parameters differ"):
        compare_gradients(one, {"v": torch.zeros(2)})
