"""The policy: its teacher (docs/method.md, section 4), its versions, and models it refuses."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
)

from pipeline.config.sections import ModelSection, TeacherKind
from pipeline.errors import PolicyError
from pipeline.forward.packing import TokenSequence
from pipeline.forward.scoring import score_teacher
from pipeline.policy.policy import Policy, TeacherSettings, resolve_device
from pipeline.task import Message
from tests.conftest import OpenPolicy

EMA = TeacherSettings(kind="ema", rate=0.05, mix=0.05)


def move(policy: Policy, seed: int = 0) -> None:
    """Change all live weights, as an update would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))


def weights(model: Any) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def teacher_logprobs(policy: Policy) -> Tensor:
    """Return the teacher's log-probabilities of all ids at two response positions."""
    sequence = TokenSequence([5, 6, 7], [8, 9])
    every_id = torch.arange(policy.vocabulary).expand(2, -1)
    ones = torch.ones(2)
    scores = score_teacher(
        policy.teacher_components(), [sequence], ones, every_id, policy.forward(1.0)
    )
    return scores.logprobs_NK


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=torch.tensor([[5, 6, 7, 8, 9]])).logits[0, 2:4]
    return found


# --- teachers --------------------------------------------------------------------------------


def test_the_ema_by_hand(tiny_policy: OpenPolicy) -> None:
    policy = tiny_policy("ema", rate=0.25)
    initial = weights(policy.model)
    move(policy, 1)
    first = weights(policy.model)
    policy.advance_teacher(1)
    move(policy, 2)
    policy.advance_teacher(1)
    second = weights(policy.model)
    # 3/4 (3/4 initial + 1/4 first) + 1/4 second
    parts = zip(weights(policy.teacher_model), initial, first, second, strict=True)
    for found, at_start, after_one, after_two in parts:
        expected = 0.5625 * at_start + 0.1875 * after_one + 0.25 * after_two
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


def test_one_step_of_the_ema_is_the_formula_in_float64(tiny_policy: OpenPolicy) -> None:
    policy = tiny_policy("ema", rate=0.05)
    before = weights(policy.teacher_model)
    move(policy)
    policy.advance_teacher(1)
    for found, old, new in zip(
        weights(policy.teacher_model), before, weights(policy.model), strict=True
    ):
        expected = 0.95 * old.double() + 0.05 * new.double()
        torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-8)


def test_the_ema_moves_by_less_than_bfloat16_can_show(tiny_policy: OpenPolicy) -> None:
    """Ten tiny moves add up in float32; in bfloat16 each would be rounded away."""
    policy = tiny_policy("ema", rate=0.05, precision="bfloat16")
    parameter = next(policy.teacher_model.parameters())
    live = next(policy.model.parameters())
    with torch.no_grad():
        parameter.fill_(1.0)
        live.fill_(1.001)
    for _ in range(10):
        policy.advance_teacher(1)
    expected = 1.001 - 0.001 * 0.95**10
    assert float(parameter.flatten()[0]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", ["live", "frozen", "trust_region", "periodic"])
def test_only_the_ema_advances(tiny_policy: OpenPolicy, kind: TeacherKind) -> None:
    policy = tiny_policy(kind)
    before = weights(policy.model)
    move(policy)
    policy.advance_teacher(1)
    if kind == "live":
        assert policy.teacher_model is None
    else:
        pairs = zip(weights(policy.teacher_model), before, strict=True)
        assert all(a.equal(b) for a, b in pairs)


def test_a_periodic_teacher_is_the_policy_after_every_third_step(tiny_policy: OpenPolicy) -> None:
    """Steps 0 to 6 with n = 3 are scored by the policies after 0, 0, 0, 3, 3, 3 and 6 steps."""
    policy = tiny_policy("periodic", period=3)
    after, versions = [weights(policy.model)], [policy.version]
    for step in range(6):
        policy.begin_update()
        move(policy, step)
        policy.advance_teacher(step + 1)
        policy.finish_update(f"{step + 1:06d}-abc")
        after.append(weights(policy.model))
        versions.append(policy.version)
        source = 3 * ((step + 1) // 3)
        found = weights(policy.teacher_model)
        assert all(a.equal(b) for a, b in zip(found, after[source], strict=True)), step
        assert {tensor.dtype for tensor in found} == {torch.float32}
        assert policy.teacher_version == f"periodic@{versions[source]}"


def test_a_periodic_teacher_needs_a_copy_that_was_kept(tiny_policy: OpenPolicy) -> None:
    """After 5 steps a teacher with n = 3 is the policy after 3, with n = 5 the current one."""
    policy = tiny_policy("ema")
    kept = []
    for step in range(5):
        if step == 3:
            policy.keep()
            kept = weights(policy.model)
        policy.begin_update()
        move(policy, step)
        policy.finish_update(f"{step + 1:06d}-abc")
    periodic = TeacherSettings(kind="periodic", rate=0.05, mix=0.05, period=3)
    policy.adopt_teacher(periodic.model_copy(update={"period": 5}), lambda _: None)
    assert policy.teacher_version == "periodic@000005-abc"
    policy.adopt_teacher(periodic, lambda _: None)
    assert policy.teacher_version == "periodic@000003-abc"
    assert all(a.equal(b) for a, b in zip(weights(policy.teacher_model), kept, strict=True))
    with pytest.raises(PolicyError, match="the policy after 4 steps, which was not kept"):
        policy.adopt_teacher(periodic.model_copy(update={"period": 4}), lambda _: None)


def test_the_four_teachers_logits(tiny_policy: OpenPolicy) -> None:
    found, expected = {}, {}
    for kind in ("ema", "live", "frozen", "trust_region"):
        policy = tiny_policy(kind, rate=0.25, mix=0.1)
        initial = logits(policy.model)
        move(policy)
        policy.advance_teacher(1)
        live = logits(policy.model)
        found[kind] = teacher_logprobs(policy)
        averaged = logits(policy.teacher_model) if kind == "ema" else initial
        mixed = 0.9 * initial + 0.1 * live
        expected[kind] = {"live": live, "trust_region": mixed}.get(kind, averaged).log_softmax(-1)
    for kind in found:
        torch.testing.assert_close(found[kind], expected[kind], rtol=1e-5, atol=1e-5)
    for kind in ("ema", "live", "trust_region"):
        assert float((found[kind] - found["frozen"]).abs().max()) > 1e-2
    assert float((found["ema"] - found["live"]).abs().max()) > 1e-2


def test_the_teacher_does_not_follow_the_policy_within_a_step(tiny_policy: OpenPolicy) -> None:
    policy = tiny_policy("ema")
    before = teacher_logprobs(policy)
    move(policy)
    assert teacher_logprobs(policy).equal(before)


def test_the_teacher_gets_no_gradient(tiny_policy: OpenPolicy) -> None:
    policy = tiny_policy("ema")
    assert not any(p.requires_grad for p in policy.teacher_model.parameters())
    assert all(p.requires_grad for p in policy.model.parameters())
    optimized = {id(p) for group in policy.optimizer.param_groups for p in group["params"]}
    assert optimized == {id(p) for p in policy.model.parameters()}


@pytest.mark.parametrize("kind", ["ema", "live", "trust_region", "frozen", "periodic"])
def test_teacher_versions_name_kind_and_source(tiny_policy: OpenPolicy, kind: TeacherKind) -> None:
    policy = tiny_policy(kind)
    start = policy.version
    policy.begin_update()
    policy.finish_update("000001-abc")
    sources = {"frozen": start, "trust_region": f"{start}+000001-abc", "periodic": start}
    assert policy.teacher_version == f"{kind}@{sources.get(kind, '000001-abc')}"


# --- versions --------------------------------------------------------------------------------


def test_an_interrupted_update_leaves_a_policy_that_is_refused(tiny_policy: OpenPolicy) -> None:
    policy = tiny_policy()
    policy.begin_update()
    assert not policy.version.startswith("000000-")
    with pytest.raises(PolicyError, match="failed half-way"):
        policy.begin_update()


def test_a_finished_update_has_its_version(tiny_policy: OpenPolicy) -> None:
    policy = tiny_policy()
    policy.begin_update()
    policy.finish_update("000001-abc")
    assert policy.version == "000001-abc"
    policy.begin_update()


# --- text ------------------------------------------------------------------------------------


def test_prompts_are_rendered_with_the_answers_header(tiny_policy: OpenPolicy) -> None:
    policy = tiny_policy()
    text, ids = policy.render([Message("system", "Be brief."), Message("user", "2 + 2?")])
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n2 + 2?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert policy.encode(text) == ids
    # One token for each character and special token.
    specials = text.count("<|")
    assert len(ids) == len(text) - 2 * len("<|im_end|>") - 3 * len("<|im_start|>") + specials


def test_settings_of_the_template_reach_it(tiny_policy: OpenPolicy) -> None:
    policy = tiny_policy(chat_template_kwargs={"enable_thinking": False})
    policy.tokenizer.chat_template = "{{ enable_thinking }} {{ messages[0].content }}"
    assert policy.render([Message("user", "x")])[0] == "False x"


def test_responses_are_decoded_without_special_tokens(tiny_policy: OpenPolicy) -> None:
    policy = tiny_policy()
    assert policy.decode([*policy.encode("Hello, World\n"), 2]) == "Hello, World\n"
    assert policy.decode([]) == ""


def test_responses_end_at_the_models_eos(tiny_policy: OpenPolicy) -> None:
    policy = tiny_policy()
    assert policy.eos_ids == frozenset([2])
    model, tokenizer = policy.model, policy.tokenizer
    model.generation_config.eos_token_id = [2, 9]
    assert reopened(model, tokenizer).eos_ids == frozenset([2, 9])
    model.generation_config.eos_token_id = None
    assert reopened(model, tokenizer).eos_ids == frozenset([tokenizer.eos_token_id])
    tokenizer.eos_token = None
    assert reopened(model, tokenizer).eos_ids == frozenset([2])  # as its chat template closes
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    with pytest.raises(PolicyError, match="names an EOS token"):
        reopened(model, tokenizer)


def reopened(model: Any, tokenizer: Any) -> Policy:
    return Policy(model, tokenizer, ModelSection(path="x", device="cpu"), EMA, "000000-x")


# --- devices and architectures ---------------------------------------------------------------


def test_devices() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_missing_gpu_is_said() -> None:
    with pytest.raises(PolicyError, match="finds no GPU"):
        resolve_device("cuda")


SMALL: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def scaled_models() -> dict[str, Any]:
    torch.manual_seed(0)
    gemma = Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=2.0)
    final = Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=30.0)
    return {
        "gemma2 with small weights": Gemma2ForCausalLM(final),
        "granite": GraniteForCausalLM(GraniteConfig(**SMALL, logits_scaling=4.0)),
        "cohere": CohereForCausalLM(CohereConfig(**SMALL, logit_scale=0.25)),
        "gemma2": Gemma2ForCausalLM(gemma),
    }


@pytest.mark.parametrize("name", ["granite", "cohere", "gemma2", "gemma2 with small weights"])
def test_logits_scaled_or_capped_after_the_projection_are_refused(
    tiny_policy: OpenPolicy, name: str
) -> None:
    with pytest.raises(PolicyError, match=r"not projection\(hidden states\)"):
        reopened(scaled_models()[name], tiny_policy().tokenizer)


def test_the_same_architecture_without_scaling_is_fine(tiny_policy: OpenPolicy) -> None:
    torch.manual_seed(0)
    model = GraniteForCausalLM(GraniteConfig(**SMALL, logits_scaling=1.0))
    assert reopened(model, tiny_policy().tokenizer).vocabulary == 128


def test_a_broken_network_is_refused(tiny_policy: OpenPolicy) -> None:
    policy = tiny_policy()
    with torch.no_grad():
        next(policy.model.parameters()).fill_(torch.nan)
    with pytest.raises(PolicyError):
        reopened(policy.model, policy.tokenizer)


def count_calls(module: Any) -> list[str]:
    """Return a list that grows by one with every forward pass of a module."""
    calls: list[str] = []
    module.register_forward_pre_hook(lambda *_: calls.append("forward"))
    return calls


def test_gradient_checkpointing_recomputes_and_changes_no_gradient(tiny_policy: OpenPolicy) -> None:
    found = []
    for checkpointing in (False, True):
        policy = tiny_policy(gradient_checkpointing=checkpointing)
        model = policy.model
        assert model.is_gradient_checkpointing is checkpointing
        calls = count_calls(model.model.layers[0].mlp)
        policy.begin_update()
        output = model(input_ids=torch.tensor([[5, 6, 7]]), use_cache=False)
        output.logits.square().mean().backward()
        assert len(calls) == (2 if checkpointing else 1)  # recomputed in the backward pass
        found.append([p.grad for p in model.parameters()])
    for plain, recomputed in zip(*found, strict=True):
        torch.testing.assert_close(plain, recomputed, rtol=1e-6, atol=1e-9)


def test_gradient_checkpointing_leaves_sampling_its_cache(tiny_policy: OpenPolicy) -> None:
    policy = tiny_policy(gradient_checkpointing=True)
    policy.begin_update()
    policy.finish_update("000001-abc")
    with torch.no_grad():
        output = policy.model(input_ids=torch.tensor([[5, 6, 7]]), use_cache=True)
    assert output.past_key_values.get_seq_length() == 3
    assert not any(module.training for module in policy.model.modules())


def test_the_demo_policy_opens(demo_policy: OpenPolicy) -> None:
    policy = demo_policy()
    assert policy.vocabulary == len(policy.tokenizer)
    assert policy.tokenizer.eos_token_id in policy.eos_ids
    assert sum(p.numel() for p in policy.model.parameters()) <= 1_500_000


def test_tied_weights_are_named_once(tiny_policy: OpenPolicy, tiny_folder: Path) -> None:
    names = list(tiny_policy().trainable())
    assert len(set(names)) == len(names)
    assert "lm_head.weight" not in names
