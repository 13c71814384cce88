"""The equations of the twin against numbers worked out by hand."""

import math

import pytest
import torch

from pipeline.twin import formulas, routing
from pipeline.twin.formulas import Settings


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
    plain = routing.group_advantages([1, 0, 0, 0], "none")
    assert plain == (0.25, 0.5, [0.75, -0.25, -0.25, -0.25])
    scaled = routing.group_advantages([1, 0, 0, 0], "group_std")
    assert scaled.values == pytest.approx([0.75 / 0.500001] + [-0.25 / 0.500001] * 3)
    assert routing.group_advantages([0.5], "group_std").values == [0.0]


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


def test_credit() -> None:
    # q / s = 2, 1.1, 1/4 with A > 0; turned over with A < 0; lambda .25, epsilon .2
    log_q, log_s = logs(0.4, 0.55, 0.1), logs(0.2, 0.5, 0.4)
    rewarded = formulas.raw_credit(log_q, log_s, 0.3)
    assert near(rewarded, [2.0, 1.1, 0.25])
    assert near(formulas.credit(rewarded, 0.25, 0.2), [1.05, 1.025, 0.95])
    blamed = formulas.raw_credit(log_q, log_s, -0.3)
    assert near(blamed, [0.5, 1 / 1.1, 4.0])
    assert near(formulas.credit(blamed, 0.25, 0.2), [0.95, 0.75 + 0.25 / 1.1, 1.05])
    assert [routing.credit_at(s, 0.5, 50) for s in (0, 25, 50, 60)] == [0.5, 0.25, 0.0, 0.0]


def test_each_token_may_have_an_advantage_of_its_own() -> None:
    # ratios .5, 2 and 5; A = 1, -1 and -.25
    new, old = logs(0.1, 0.4, 0.5), logs(0.2, 0.2, 0.1)
    own = torch.tensor([1.0, -1.0, -0.25], dtype=torch.float64)
    assert near(formulas.grpo_loss(new, old, own, Settings()), [-0.5, 2.0, 0.75])


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
        ("rlsd", "grpo grpo grpo grpo"),
    ],
)
def test_routes(method: str, expected: str) -> None:
    cases = [(True, True), (True, False), (False, True), (False, False)]
    assert [routing.route_of(method, c, m) for c, m in cases] == expected.split()


def test_the_sibling_is_the_first_other_correct_rollout() -> None:
    correct = [False, True, True]
    assert [routing.sibling_of("first", correct, [1] * 3, index) for index in range(3)] == [1, 2, 1]
    assert routing.sibling_of("first", [True, False], [1, 1], 0) is None
    lengths = [5, 9, 9]
    assert [routing.sibling_of("longest", [True] * 3, lengths, i) for i in range(3)] == [1, 2, 1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>a\nb</think>\n4", "4"),
        ("<think>a</think>\n\n 4 \n", "4 \n"),
        ("a</think>\n\t4", "4"),
        ("a</think>b</think> c", "c"),
        (" 4 ", " 4 "),
        ("<think>a</think>\n", ""),
        ("a</think>4", "4"),
        ("<think>a</think>b<think>c</think>d", "bd"),
        ("<think>cut off", "<think>cut off"),
        ("4", "4"),
    ],
)
def test_thinking_is_removed(text: str, expected: str) -> None:
    assert routing.without_thinking(text) == expected
