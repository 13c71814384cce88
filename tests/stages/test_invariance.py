"""Loss and gradient don't depend on micro-batches, order or padding (docs/method.md, section 8).

Neither with adapters, whose B is no longer 0 at the step that is looked at, nor where a teacher
distributes advantages.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from flows.session.session import Session
from pipeline.config.sections import UpdateSection
from stages.update.batch import Rollout, rollouts_of
from stages.update.stage import accumulate_gradient
from tests.golden.golden_run import STEP, make_run, run_step

PARAMS: dict[str, dict[str, dict[str, object]]] = {
    "full": {},
    "lora": {"model": {"lora": {"rank": 4}}},
    "rlsd": {"route": {"method": "rlsd"}},
}


@pytest.fixture(scope="module", params=PARAMS)
def session(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Session]:
    session = make_run(tmp_path_factory.mktemp("invariance"), PARAMS[request.param])
    yield session
    session.close()


@pytest.fixture(scope="module")
def rollouts(session: Session) -> list[Rollout]:
    return rollouts_of(run_step(session).tables, on_policy=True)


class Gradient:
    """Loss and gradient of some rollouts under the policy that starts the golden step."""

    def __init__(self, session: Session, rollouts: list[Rollout], **changes: float) -> None:
        session.resident.policy = session.resident.open_snapshot(STEP)
        policy = session.resident.require()
        settings: UpdateSection = session.config.update.model_copy(update=changes)
        self.tokens, _, statistics = accumulate_gradient(policy, rollouts, 16, settings)
        self.loss = sum(s.loss_sum for s in statistics.values()) / self.tokens
        grads = [p.grad for p in policy.trainable().values()]
        self.flat: Tensor = torch.cat([g.double().ravel() for g in grads if g is not None])

    def off(self, other: "Gradient") -> float:
        return float((self.flat - other.flat).norm() / other.flat.norm())


@pytest.fixture(scope="module")
def whole(session: Session, rollouts: list[Rollout]) -> Gradient:
    """The gradient of one micro-batch of all rollouts."""
    return Gradient(session, rollouts, micro_batch_tokens=10**9)


# 44 tokens hold one of the longest rollouts; 132 hold three of them or more.
@pytest.mark.parametrize("budget", [1, 132, 400, 10**9])
def test_micro_batches_change_nothing(
    session: Session, rollouts: list[Rollout], whole: Gradient, budget: int
) -> None:
    found = Gradient(session, rollouts, micro_batch_tokens=budget)
    assert found.off(whole) < 1e-6
    assert found.loss == pytest.approx(whole.loss, rel=1e-6)
    assert found.tokens == whole.tokens


def test_chunks_of_the_projection_change_nothing(
    session: Session, rollouts: list[Rollout], whole: Gradient
) -> None:
    few = 7.5 * 53 * 4 / 2**20  # MiB: the logits of seven positions
    assert Gradient(session, rollouts, projection_mb=few).off(whole) < 1e-6


@pytest.mark.parametrize("seed", [0, 1])
def test_order_changes_nothing(
    session: Session, rollouts: list[Rollout], whole: Gradient, seed: int
) -> None:
    order = np.random.default_rng(seed).permutation(len(rollouts))
    found = Gradient(session, [rollouts[i] for i in order], micro_batch_tokens=400)
    assert found.off(whole) < 1e-6
    assert found.loss == pytest.approx(whole.loss, rel=1e-6)


def test_rollouts_without_gradient_only_count_in_n(
    session: Session, rollouts: list[Rollout]
) -> None:
    by_reward = [r for r in rollouts if r.route == "grpo"]
    idle = [replace(r, advantage=0.0, computed=False) for r in by_reward[:2]]
    busy = [r for r in rollouts if r.computed and r.rollout_id not in {i.rollout_id for i in idle}]
    both, alone = Gradient(session, busy + idle), Gradient(session, busy)
    assert alone.tokens == both.tokens - sum(r.tokens for r in idle)
    rescaled = alone.flat * alone.tokens / both.tokens
    assert float((rescaled - both.flat).norm() / both.flat.norm()) < 1e-6
    pushed_through = Gradient(session, busy + [replace(r, computed=True) for r in idle])
    assert pushed_through.off(both) < 1e-6  # not computing them was exact
