"""Responses of one token and of 8,192, side by side; bfloat16; steps that nobody learns from."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from pipeline.machine.peak_memory import PeakMemory
from pipeline.policy.policy import Policy
from stages.update import STAGE as UPDATE
from stages.update.batch import rollouts_of
from stages.update.stage import accumulate_gradient
from tests.stages.steps import Group, config_of, open_tiny, routed, run_one, updated

LONGEST = 8192
MEGABYTES = 500
"""Room for 8,192 tokens; without chunks and blocks one attention matrix alone would be 512."""

EXTREMES: dict[str, tuple[str, list[Group]]] = {
    "one token each": ("srpo", [[("", 0.0), ("", 1.0), ("", 0.0)]]),
    "all cut, all wrong": ("srpo", [[("ab|", 0.0), ("cde|", 0.0)]]),
    "nobody has a teacher": ("srpo", [[("ab", 1.0), ("b", 1.0)], [("c", 0.0), ("d", 0.0)]]),
    "everybody has a teacher": ("sdpo", [[("ab", 1.0), ("b", 1.0), ("a", 0.0)]]),
    "nobody is routed": ("sdpo", [[("ab", 0.0), ("b", 0.0)]]),
    "a group of one": ("grpo", [[("ab", 1.0)], [("c", 0.0)]]),
}


def finite(tables: Mapping[str, pa.Table]) -> None:
    for name, columns in {"teacher": ("entropy", "jsd"), "updates": ("loss_sum", "share")}.items():
        for column in columns:
            assert np.isfinite(tables[name][column].to_numpy()).all(), (name, column)


def gradient(policy: Policy) -> Tensor:
    found = [p.grad.double().ravel() for p in policy.trainable().values() if p.grad is not None]
    return torch.cat(found)


@pytest.mark.slow
def test_a_response_of_8192_tokens_takes_bounded_memory(tmp_path: Path) -> None:
    policy = open_tiny(tmp_path)
    small = {"projection_mb": 1.0}
    config = config_of(route=small, update=small)
    memory = PeakMemory()
    before = memory.megabytes()
    tables = routed(policy, config, [[("a" * (LONGEST - 1), 0.0), ("b", 1.0), ("", 0.0)]])
    run_one(UPDATE, tables, policy, config)
    assert memory.megabytes() - before < MEGABYTES
    assert tables["teacher"].num_rows == LONGEST + 1
    assert tables["weights"]["weight"].to_numpy().mean() == pytest.approx(1.0, abs=1e-5)
    finite(tables)


@pytest.mark.slow
def test_a_long_rollout_among_63_of_one_token_is_one_sum_in_any_packing(tmp_path: Path) -> None:
    policy = open_tiny(tmp_path)
    config = config_of()
    group: Group = [("ab" * 1000, 0.0), ("b", 1.0), *[("", float(i % 2)) for i in range(62)]]
    tables = routed(policy, config, [group])
    rollouts = rollouts_of(tables, on_policy=True)
    found = []
    for tokens, megabytes in ((1, 0.01), (300, 0.001), (10**6, 100.0)):
        change = {"micro_batch_tokens": tokens, "projection_mb": megabytes}
        settings = config.update.model_copy(update=change)
        total = accumulate_gradient(policy, rollouts, 16, settings)
        assert total.tokens == 2001 + 2 + 62
        loss = sum(s.loss_sum for s in total.statistics.values()) / total.tokens
        found.append((loss, gradient(policy)))
    for loss, flat in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-6)
        assert float((flat - found[0][1]).norm() / found[0][1].norm()) < 1e-5


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", EXTREMES)
def test_steps_of_extremes(name: str, precision: str, tmp_path: Path) -> None:
    method, groups = EXTREMES[name]
    policy = open_tiny(tmp_path, precision=precision)
    before = {n: p.detach().clone() for n, p in policy.trainable().items()}
    config = config_of(route={"method": method}, generate={"rollouts": 2 - (method == "grpo")})
    tables = updated(policy, config, groups)
    finite(tables)
    counted = sum(tables["updates"]["share"].to_pylist())
    assert counted == pytest.approx(0.0 if name == "nobody is routed" else 1.0)
    learned = any(tables["updates"]["computed"].to_pylist())
    assert learned == (name in ("one token each", "everybody has a teacher"))
    group = policy.optimizer.param_groups[0]
    decay = 1 - group["lr"] * group["weight_decay"]
    for key, parameter in policy.trainable().items():
        assert bool(parameter.isfinite().all()), key
        if not learned:
            assert torch.allclose(parameter, before[key] * decay, rtol=1e-6, atol=1e-9), key


def test_bfloat16_is_near_float32(tmp_path: Path) -> None:
    groups: list[Group] = [[("abcd", 0.0), ("b", 1.0), ("", 0.0)], [("c|", 1.0), ("dd", 0.0)]]
    steps = [
        updated(open_tiny(tmp_path / p, precision=p), config_of(), groups)
        for p in ("float32", "bfloat16")
    ]
    for column in ("entropy", "teacher_logprob", "student_logprob"):
        exact, rounded = (step["teacher"][column].to_numpy() for step in steps)
        assert rounded == pytest.approx(exact, rel=0.02)
    for column in ("jsd", "teacher_tail", "student_tail"):
        assert np.isfinite(steps[1]["teacher"][column].to_numpy()).all()
