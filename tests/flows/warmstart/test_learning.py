"""The warm start's loss and step, against float64 and by hand."""

import copy
import math

import pytest
import torch
from torch import Tensor

from flows.warmstart.learning import accumulate_gradient, cross_entropy_N, learn_step
from pipeline.errors import NumericalError, PolicyError
from pipeline.forward.packing import TokenSequence
from pipeline.forward.projection import Head
from pipeline.policy.policy import Policy
from tests.conftest import OpenPolicy
from tests.flows.warmstart.small_starts import small_config

SEQUENCES = [
    TokenSequence([5, 9, 30, 31], [40, 41, 42, 2]),
    TokenSequence([5, 9, 33], [50, 2]),
    TokenSequence([5, 9, 33], [51, 52, 53, 54, 55, 56, 2]),
    TokenSequence([7], [60]),
]


def twin(policy: Policy) -> tuple[float, dict[str, Tensor]]:
    """Return loss and gradients in float64, each sequence alone, by transformers' own forward."""
    model = copy.deepcopy(policy.model).double()
    total, tokens = torch.zeros((), dtype=torch.float64), 0
    for prompt, response in SEQUENCES:
        logits = model(input_ids=torch.tensor([prompt + response])).logits[0].double()
        logprobs = logits.log_softmax(-1)
        for place, token in enumerate(response, start=len(prompt) - 1):
            total = total - logprobs[place, token]
            tokens += 1
    loss = total / tokens
    loss.backward()
    return float(loss.detach()), {
        n: p.grad for n, p in model.named_parameters() if p.grad is not None
    }


def gradients(policy: Policy, budget: int, megabytes: float) -> tuple[float, dict[str, Tensor]]:
    loss = accumulate_gradient(policy, SEQUENCES, budget, megabytes)
    return loss, {n: p.grad.clone() for n, p in policy.trainable().items() if p.grad is not None}


def test_loss_and_gradient_are_those_of_the_float64_twin(demo_policy: OpenPolicy) -> None:
    policy = demo_policy(teacher="live")
    expected, wanted = twin(policy)
    loss, found = gradients(policy, 4096, 256)
    assert loss == pytest.approx(expected, rel=1e-6)
    assert found.keys() == wanted.keys()
    largest = max(float(g.abs().max()) for g in wanted.values())
    for name, gradient in wanted.items():
        assert float((found[name].double() - gradient).abs().max()) < 1e-5 * largest, name


@pytest.mark.parametrize(("budget", "megabytes"), [(1, 256), (9, 256), (4096, 0.001), (14, 0.002)])
def test_neither_micro_batches_nor_chunks_change_the_gradient(
    demo_policy: OpenPolicy, budget: int, megabytes: float
) -> None:
    policy = demo_policy(teacher="live")
    loss, whole = gradients(policy, 4096, 256)
    other_loss, parts = gradients(policy, budget, megabytes)
    assert other_loss == pytest.approx(loss, rel=1e-6)
    largest = max(float(g.abs().max()) for g in whole.values())
    for name, gradient in whole.items():
        assert float((parts[name] - gradient).abs().max()) < 2e-6 * largest, name


def test_a_model_that_knows_nothing_loses_log_v_a_token() -> None:
    head = Head(torch.zeros(7, 3), None, bfloat16=False, megabytes=1)
    loss_N = cross_entropy_N(head, torch.ones(2, 3), torch.tensor([0, 6]))
    assert loss_N.tolist() == pytest.approx([math.log(7)] * 2)
    # Logits 0 and log 3: probabilities 1/4 and 3/4.
    head = Head(torch.tensor([[0.0], [math.log(3)]]), None, bfloat16=False, megabytes=1)
    loss_N = cross_entropy_N(head, torch.ones(2, 1), torch.tensor([0, 1]))
    assert loss_N.tolist() == pytest.approx([math.log(4), math.log(4 / 3)])


def test_a_step_is_adamw_on_the_clipped_gradient(demo_policy: OpenPolicy) -> None:
    policy = demo_policy(teacher="live")
    config = small_config("update.max_grad_norm=0.5", "update.weight_decay=0.1")
    _, gradient = twin(policy)
    before = {n: p.detach().double().clone() for n, p in policy.trainable().items()}
    result = learn_step(policy, SEQUENCES, config, "000001-x")
    assert policy.version == "000001-x" and result.tokens == 14
    norm = math.sqrt(sum(float(g.square().sum()) for g in gradient.values()))
    assert result.grad_norm == pytest.approx(norm, rel=1e-5) and norm > 0.5
    rate, eps = config.warmstart.learning_rate, config.update.adam_eps
    for name, parameter in policy.trainable().items():
        g = gradient[name] * 0.5 / norm
        moved = before[name] * (1 - rate * 0.1) - rate * g / (g.abs() + eps)
        clear = g.abs() > 1e-6  # where the first step's sign is beyond rounding
        gap = (parameter.detach().double() - moved).abs()[clear]
        assert gap.numel() == 0 or float(gap.max()) < 1e-2 * rate, name


def test_a_policy_whose_loss_is_not_finite_is_left_unusable(demo_policy: OpenPolicy) -> None:
    policy = demo_policy(teacher="live")
    with torch.no_grad():
        policy.model.get_input_embeddings().weight[40] = torch.nan
    with pytest.raises(NumericalError, match="the loss of the step's worked solutions is nan"):
        learn_step(policy, SEQUENCES, small_config(), "000001-x")
    with pytest.raises(PolicyError, match="an earlier update failed half-way"):
        learn_step(policy, SEQUENCES, small_config(), "000001-x")
