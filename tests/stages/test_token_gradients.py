"""What a loss does to a token, by hand on four tokens, by small steps, and over whole steps."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.config.sections import UpdateSection
from pipeline.forward.packing import TokenSequence
from pipeline.policy.policy import Policy
from stages.update.batch import FlatBatch, Rollout, Taught, flatten, rollouts_of
from stages.update.clipping import gradient_dot, gradient_norm
from stages.update.stage import STAGE, accumulate_gradient
from stages.update.token_gradients import TokenGradients, logit_gradients, token_gradients
from tests.stages.steps import config_of, open_tiny, routed, run_one

S = [0.5, 0.25, 0.125, 0.125]
Q = [0.25, 0.25, 0.25, 0.25]
N = 4


def one_token(
    route: str, token: int, advantage: float = 0.0, weight: float = 1.0, temperature: float = 1.0
) -> FlatBatch:
    """Return a batch of one token that the live policy sampled, taught by Q if not on GRPO."""
    logprob = np.log(np.array([S[token]], dtype=np.float32))
    taught = Taught(
        topk_ids_TK=np.arange(4, dtype=np.int32)[None],
        teacher_logprobs_TK=np.log(np.array([Q], dtype=np.float32)),
        teacher_tail_T=np.array([-np.inf], dtype=np.float32),
        teacher_logprob_T=np.log(np.array([Q[token]], dtype=np.float32)),
        weight_T=np.array([weight], dtype=np.float32),
    )
    rollout = Rollout(
        rollout_id="a",
        sequence=TokenSequence([0], [token]),
        temperature=temperature,
        route=route,
        mini_batch=0,
        advantage=advantage,
        sampled_logprobs_T=logprob,
        old_source="live",
        old_logprobs_T=None,
        taught=None if route == "grpo" else taught,
        computed=True,
    )
    return flatten([rollout], 4, torch.device("cpu"))


def of_logits(
    batch: FlatBatch, logits: Sequence[float], **settings: object
) -> tuple[float, float, float]:
    update = UpdateSection(**settings)  # type: ignore[arg-type]
    found = logit_gradients(torch.tensor([logits]), batch, N, update)
    loss, size, push = (float(column[0]) for column in found)
    return loss, size, push


LOGITS = [math.log(p) for p in S]


@pytest.mark.parametrize("advantage", [0.5, -0.5])
def test_grpo_by_hand(advantage: float) -> None:
    # g = -A (e_y - s) / N with e_y - s = (-1/2, 3/4, -1/8, -1/8): its square is 27/32.
    loss, size, push = of_logits(one_token("grpo", 1, advantage), LOGITS)
    assert loss == pytest.approx(-advantage / 4)
    assert size == pytest.approx(0.125 * math.sqrt(27 / 32))
    assert push == pytest.approx(advantage / 4 * 27 / 32)  # -<g, e_y - s>


def test_forward_kl_by_hand() -> None:
    # KL(q || s): g = w (s - q) / N = 2 (1/4, 0, -1/8, -1/8) / 4, and <s, g> = 2 (3/32) / 4.
    batch = one_token("sdpo", 0, weight=2.0)
    loss, size, push = of_logits(batch, LOGITS, divergence="forward_kl")
    kl = sum(q * math.log(q / s) for q, s in zip(Q, S, strict=True))
    assert loss == pytest.approx(2 * kl / 4)
    assert size == pytest.approx(0.5 * math.sqrt(3 / 32))
    assert push == pytest.approx(0.5 * (3 / 32 - 1 / 4))  # the teacher likes it less: below 0
    assert of_logits(one_token("sdpo", 2), LOGITS, divergence="forward_kl")[2] > 0


def test_a_mix_adds_both() -> None:
    settings = {"divergence": "forward_kl", "mix_lambda": 0.75}
    mixed = of_logits(one_token("mix", 0, advantage=0.5), LOGITS, **settings)
    grpo = of_logits(one_token("grpo", 0, advantage=0.5), LOGITS)
    sdpo = of_logits(one_token("sdpo", 0), LOGITS, divergence="forward_kl")
    for place in (0, 2):  # losses and pushes are linear in the gradient, sizes are not
        expected = 0.75 * grpo[place] + 0.25 * sdpo[place]
        assert mixed[place] == pytest.approx(expected, rel=1e-5)


def test_logits_are_those_before_the_temperature() -> None:
    # The same s from logits half as large: dL/dx = 2 dL/d(x / tau), and so is d log s / dx.
    halved = [x / 2 for x in LOGITS]
    warm = of_logits(one_token("grpo", 1, 0.5, temperature=0.5), halved)
    plain = of_logits(one_token("grpo", 1, 0.5), LOGITS)
    assert warm == pytest.approx((plain[0], 2 * plain[1], 4 * plain[2]), rel=1e-5)


def divergence_of(kind: str, x_V: Tensor) -> Tensor:
    s_V, q_V = torch.softmax(x_V / 0.8, -1), torch.tensor(Q, dtype=torch.float64)
    m_V = (s_V + q_V) / 2
    parts = {
        "jsd": s_V * (s_V / m_V).log() / 2 + q_V * (q_V / m_V).log() / 2,
        "forward_kl": q_V * (q_V / s_V).log(),
        "reverse_kl": s_V * (s_V / q_V).log(),
    }
    return parts[kind].sum()


@pytest.mark.parametrize("divergence", ["jsd", "forward_kl", "reverse_kl"])
@pytest.mark.parametrize("token", range(4))
def test_the_push_is_what_a_small_step_does(divergence: str, token: int) -> None:
    """Slopes of the plain formula by differences, and a step of 1e-4 against them."""
    x_V = torch.tensor([0.3, -1.0, 0.7, 0.1], dtype=torch.float64)
    log_s_V = torch.log_softmax(x_V / 0.8, -1)
    batch = one_token("sdpo", token, temperature=0.8)
    batch = replace(batch, sampled_logprob_N=log_s_V[[token]])  # no correction
    steps = 1e-5 * torch.eye(4, dtype=torch.float64)
    slope_V = torch.stack(
        [
            (divergence_of(divergence, x_V + e) - divergence_of(divergence, x_V - e)) / 2e-5
            for e in steps
        ]
    )
    update = UpdateSection(divergence=divergence)  # type: ignore[arg-type]
    found = logit_gradients(x_V[None], batch, 1, update)
    assert float(found.size_N[0]) == pytest.approx(float(slope_V.norm()), rel=1e-5)
    stepped_V = torch.log_softmax((x_V - 1e-4 * slope_V) / 0.8, -1)
    change = float(stepped_V[token] - log_s_V[token]) / 1e-4
    assert float(found.push_N[0]) == pytest.approx(change, rel=1e-3, abs=1e-6)


GROUPS = [
    [("ab", 1.0), ("cd", 0.0), ("abc", 0.0)],
    [("efgh", 0.0), ("ij", 1.0)],
    [("kl", 1.0), ("mno", 1.0)],
]


def learned(policy: Policy, method: str) -> tuple[list[Rollout], int, UpdateSection]:
    config = config_of(route={"method": method})
    tables = routed(policy, config, GROUPS)
    kept = tables["teacher"].schema.field("topk_ids").type.list_size
    return rollouts_of(tables, on_policy=True), kept, config.update


def gradient(
    policy: Policy, rollouts: list[Rollout], kept: int, update: UpdateSection
) -> list[Tensor]:
    accumulate_gradient(policy, rollouts, kept, update)
    return [p.grad.clone() for p in policy.trainable().values() if p.grad is not None]


@pytest.mark.parametrize("method", ["grpo", "sdpo", "srpo", "advantage_mix"])
def test_losses_add_up_to_the_updates(method: str, tmp_path: Path) -> None:
    policy = open_tiny(tmp_path / "policy")
    rollouts, kept, update = learned(policy, method)
    before = gradient(policy, rollouts, kept, update)
    found = token_gradients(policy, rollouts, kept, update)
    after = [p.grad for p in policy.trainable().values() if p.grad is not None]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert set(found) == {r.rollout_id for r in rollouts if r.computed}
    small = update.model_copy(update={"projection_mb": 1e-3, "micro_batch_tokens": 1})
    for name, own in token_gradients(policy, rollouts, kept, small).items():
        for one, other in zip(own, found[name], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-8)
    tables = routed(policy, config_of(route={"method": method}), GROUPS)
    facts = run_one(STAGE, tables, policy, config_of(route={"method": method}))
    (loss,), (tokens,) = facts["loss"], facts["tokens"]
    total = math.fsum(float(own.loss_N.sum()) for own in found.values())
    assert total == pytest.approx(loss, rel=1e-5, abs=1e-9)
    sums = dict(
        zip(*(tables["updates"][c].to_pylist() for c in ("rollout_id", "loss_sum")), strict=True)
    )
    for name, own in found.items():
        assert float(own.loss_N.sum()) * tokens == pytest.approx(sums[name], rel=1e-5, abs=1e-9)


def test_grpo_pushes_by_the_sign_of_the_advantage(tmp_path: Path) -> None:
    policy = open_tiny(tmp_path / "policy")
    rollouts, kept, update = learned(policy, "grpo")
    found = token_gradients(policy, rollouts, kept, update)
    for rollout in rollouts:
        if rollout.computed:
            own: TokenGradients = found[rollout.rollout_id]
            assert (own.push_N * rollout.advantage > 0).all() and (own.size_N > 0).all()
        else:
            assert rollout.advantage == 0 and rollout.rollout_id not in found


def test_doubled_advantages_double_the_gradient(tmp_path: Path) -> None:
    policy = open_tiny(tmp_path / "policy")
    rollouts, kept, update = learned(policy, "grpo")
    plain = gradient(policy, rollouts, kept, update)
    double = [replace(rollout, advantage=2 * rollout.advantage) for rollout in rollouts]
    larger = gradient(policy, double, kept, update)
    norms = gradient_norm(plain), gradient_norm(larger)
    assert norms[1] == pytest.approx(2 * norms[0], rel=1e-6)
    assert gradient_dot(plain, larger) / (norms[0] * norms[1]) == pytest.approx(1, abs=1e-6)
    sizes, doubled = (
        torch.cat([own.size_N for own in token_gradients(policy, r, kept, update).values()])
        for r in (rollouts, double)
    )
    torch.testing.assert_close(doubled, 2 * sizes)
