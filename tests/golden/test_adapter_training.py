"""Training adapters: against the float64 twin, and against A and B trained in a few plain lines."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from transformers import Qwen3ForCausalLM

import stages.update.stage
from flows.session.session import Session
from pipeline.config.sections import LoraSection
from pipeline.forward.scoring import Component
from pipeline.policy.adapters import AdaptedLinear
from pipeline.policy.policy import Policy
from pipeline.twin import merging
from pipeline.twin.inputs import StepTwin
from tests.golden.golden_run import disagreements, make_run, run_step, twin_of
from tests.stages.steps import config_of, open_tiny, updated

LORA = {"lora": {"rank": 4, "alpha": 6.0}}
ROUNDED = {**LORA, "base_dtype": "bfloat16"}
VARIANTS: dict[str, Mapping[str, Mapping[str, object]]] = {
    "srpo, two updates": {"route": {"mini_batch": 3}},
    "some layers": {"model": {"lora": {"rank": 3, "targets": ["q_proj", "1.mlp.down_proj"]}}},
    "bfloat16 base": {"model": ROUNDED},
    "bfloat16 base, trust region, two updates": {
        "model": ROUNDED,
        "route": {"teacher": "trust_region", "trust_region_mix": 0.4, "mini_batch": 3},
    },
    "frozen teacher, advantage_mix": {"route": {"teacher": "frozen", "method": "advantage_mix"}},
    "live teacher, forward_kl": {
        "route": {"teacher": "live"},
        "update": {"divergence": "forward_kl"},
    },
}


def test_the_twins_merging_and_chain_rule_by_hand() -> None:
    base = {"l.weight": torch.tensor([[1.0, 2.0], [3.0, 4.0]]).double()}
    state = {"l.lora_A": torch.tensor([[1.0, -1.0]]), "l.lora_B": torch.tensor([[2.0], [3.0]])}
    # B A = [[2, -2], [3, -3]], halved
    assert merging.merged(base, state, 0.5)["l.weight"].tolist() == [[2.0, 1.0], [4.5, 2.5]]
    whole = {"l.weight": torch.tensor([[1.0, 0.0], [0.0, 2.0]]).double()}
    found = merging.gradient_of_adapters(state, whole, 0.5)
    assert found["l.lora_A"].tolist() == [[1.0, 3.0]]  # B^T dW = (2, 6)
    assert found["l.lora_B"].tolist() == [[0.5], [-1.0]]  # dW A^T = (1, -2)
    with pytest.raises(ValueError, match="without"):
        merging.adapted({"l.lora_A": state["l.lora_A"]})


@pytest.mark.parametrize("name", VARIANTS)
def test_a_step_equals_its_twin(name: str, tmp_path: Path) -> None:
    session = make_run(tmp_path, {"model": LORA, **VARIANTS[name]})
    capture = run_step(session)
    assert disagreements(twin_of(session, capture), capture) == []
    for gradient in capture.gradients:
        assert all(bool(g.any()) for g in gradient.values())  # of every A and every B
    session.close()


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    session = make_run(tmp_path_factory.mktemp("golden"), {"model": LORA})
    yield session
    session.close()


@pytest.fixture(scope="module")
def golden_twin(golden: Session) -> StepTwin:
    return twin_of(golden, run_step(golden))


def unscaled(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Scale the adapters of a layer by a, not by a/r."""

    def broken(layer: AdaptedLinear, x: Tensor) -> Tensor:
        plain = torch.nn.functional.linear(x, layer.weight, layer.bias)
        return plain + 4 * (original(layer, x) - plain)

    return broken


def rotated(original: Callable[..., float]) -> Callable[..., float]:
    """Give each tensor the gradient of the next one of its shape."""

    def broken(parameters: Any, limit: float) -> float:
        parameters = list(parameters)
        for shape in {p.shape for p in parameters}:
            alike = [p for p in parameters if p.shape == shape]
            gradients = [p.grad for p in alike]
            for parameter, gradient in zip(alike, gradients[1:] + gradients[:1], strict=True):
                parameter.grad = gradient
        return original(parameters, limit)

    return broken


def own_adapters(policy: Policy) -> list[Component]:
    """Let the teacher have the student's A and B."""
    return [Component(policy.model, 1.0)]


BREAKAGES: dict[str, tuple[Any, str, Any, str]] = {
    "scale a": (AdaptedLinear, "forward", unscaled(AdaptedLinear.forward), "old_logprobs"),
    "the student's B": (Policy, "teacher_components", own_adapters, "teacher_logprob"),
    "another layer's gradient": (
        stages.update.stage,
        "clip_gradients",
        rotated(stages.update.stage.clip_gradients),
        "gradient of update 0",
    ),
}


@pytest.mark.parametrize("name", BREAKAGES)
def test_broken_adapters_are_caught(
    name: str, golden: Session, golden_twin: StepTwin, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, attribute, broken, where = BREAKAGES[name]
    monkeypatch.setattr(owner, attribute, broken)
    found = disagreements(golden_twin, run_step(golden))
    assert any(where in line for line in found), found[:5]


# --- A and B as parameters of a model that is written down here ------------------------------

PLAIN = {"learning_rate": 1e-2, "adam_eps": 1e-3, "weight_decay": 0.1, "max_grad_norm": 0.05}
"""AdamW divides by |g| + eps: with a tiny eps, rounding would decide steps of tiny gradients."""


class PlainTraining:
    """W + (a/r) B A in place of each W, A and B trained by autograd and torch's AdamW."""

    def __init__(self, folder: Path, start: Mapping[str, Tensor], scale: float) -> None:
        self.model = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.scale = scale
        self.trained = {n: torch.nn.Parameter(t.detach().clone()) for n, t in start.items()}
        self.adam = torch.optim.AdamW(
            self.trained.values(), lr=1e-2, betas=(0.9, 0.999), eps=1e-3, weight_decay=0.1
        )

    def logprobs(self, prompt: list[int], response: list[int], temperature: float) -> Tensor:
        layers = {name.rpartition(".")[0] for name in self.trained}
        weights = {
            f"{layer}.weight": self.model.get_parameter(f"{layer}.weight").detach()
            + self.scale * self.trained[f"{layer}.lora_B"] @ self.trained[f"{layer}.lora_A"]
            for layer in layers
        }
        logits = functional_call(self.model, weights, (torch.tensor([prompt + response]),)).logits
        predicting = logits[0, len(prompt) - 1 : -1] / temperature
        return predicting.log_softmax(-1).gather(-1, torch.tensor(response)[:, None])[:, 0]

    def step(self, tables: Mapping[str, pa.Table]) -> None:
        """Make a step of GRPO: of each token -A TIS times the ratio, which is 1; mean over all."""
        advantages = tables["routes"]["advantage"].to_pylist()
        losses = []
        for row, advantage in zip(tables["rollouts"].to_pylist(), advantages, strict=True):
            new = self.logprobs(row["prompt_ids"], row["response_ids"], row["temperature"])
            engine = torch.tensor(row["sampled_logprobs"])
            tis = (new.detach() - engine).exp().clamp(max=2.0)
            losses.append(-advantage * tis * (new - new.detach()).exp())
        self.adam.zero_grad()
        torch.cat(losses).mean().backward()
        torch.nn.utils.clip_grad_norm_(self.trained.values(), 0.05)
        self.adam.step()


def test_two_steps_are_those_of_a_and_b_trained_plainly(tmp_path: Path) -> None:
    policy = open_tiny(tmp_path / "policy", lora=LoraSection(rank=4, alpha=6.0))
    start = {name: tensor.detach().clone() for name, tensor in policy.trainable().items()}
    plain = PlainTraining(tmp_path / "policy", start, 6.0 / 4)
    config = config_of(
        route={"method": "grpo"}, update={**PLAIN, "warmup_steps": 0, "micro_batch_tokens": 60}
    )
    groups = [[("abc", 1.0), ("bd", 0.0), ("", 0.25)], [("dcba|", 0.0), ("a", 1.0)]]
    for step in range(2):
        plain.step(updated(policy, config, groups, step))
        policy.finish_update(f"{step + 1:06d}-made by hand")
    for name, tensor in policy.trainable().items():
        moved = float((tensor - start[name]).detach().norm())
        off = float((tensor - plain.trained[name]).detach().norm())
        assert moved > 1e-3 and off < 1e-5 * moved, (name, moved, off)
