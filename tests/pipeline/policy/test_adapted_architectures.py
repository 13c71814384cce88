"""Adapters on the architectures that people bring: packed as without, and one step as merged."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from pipeline.config.sections import LoraSection
from pipeline.errors import PolicyError
from pipeline.forward.packing import TokenSequence
from pipeline.forward.projection import logits_NV
from pipeline.forward.scoring import response_hidden_ND
from pipeline.policy.adapters import plain_weights, stirred, trainable
from pipeline.policy.policy import Policy
from pipeline.policy.snapshots import save_merged
from stages.update import STAGE as UPDATE
from tests.builders.policies import LOWERCASE, open_on_cpu, tokenizer_of
from tests.stages.steps import Group, config_of, routed, run_one

SEVEN = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class Architecture(NamedTuple):
    """A kind of model: its `model_type`, its own settings, and its linear layers."""

    kind: str
    settings: Mapping[str, Any] = MappingProxyType({})
    targets: Sequence[str] = SEVEN


ARCHITECTURES = {
    "llama": Architecture("llama"),
    "mistral, windows": Architecture("mistral", {"sliding_window": 4}),
    "qwen2, biases": Architecture("qwen2"),
    "qwen2, tied": Architecture("qwen2", {"tie_word_embeddings": True}),
    "qwen3": Architecture("qwen3", {"head_dim": 16}),
    "gemma": Architecture("gemma", {"head_dim": 16}),
    "gemma2": Architecture(
        "gemma2",
        {"head_dim": 16, "final_logit_softcapping": None, "attn_logit_softcapping": None},
    ),
    "gemma3": Architecture("gemma3_text", {"head_dim": 16, "sliding_window": 4}),
    "phi3": Architecture("phi3", targets=["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]),
    "olmo2": Architecture("olmo2"),
    "granite": Architecture(
        "granite",
        {"attention_multiplier": 0.3, "embedding_multiplier": 3.0, "residual_multiplier": 0.5},
    ),
    "smollm3": Architecture("smollm3"),
}
SEQUENCES = [
    TokenSequence([5, 6, 7, 8, 9, 10, 11], [8, 9, 10, 4]),
    TokenSequence([5, 6, 7, 8, 9, 10, 11], [11, 12]),
    TokenSequence([15, 6, 7], [11, 12, 9]),
]
MIXED: list[Group] = [
    [("abc", 1.0), ("de", 0.0), ("fghij", 0.0)],
    [("k", 1.0), ("lm", 1.0), ("nopq|", 0.0)],
]


def write(folder: Path, found: Architecture, dtype: torch.dtype = torch.float32) -> LoraSection:
    """Write a random model of two small layers; return settings of adapters for it."""
    tokenizer = tokenizer_of(LOWERCASE)
    tokenizer.save_pretrained(folder)
    config = AutoConfig.for_model(
        found.kind,
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        initializer_range=0.15,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        **found.settings,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).to(dtype).save_pretrained(folder)
    return LoraSection(rank=4, alpha=6.0, targets=list(found.targets))


@pytest.fixture(params=ARCHITECTURES)
def found(request: pytest.FixtureRequest) -> Architecture:
    return ARCHITECTURES[request.param]


def logits(policy: Policy, shares: bool) -> Tensor:
    forward = replace(policy.forward(1.0), shares=shares)
    with torch.no_grad():
        hidden_ND = response_hidden_ND(policy.model, SEQUENCES, forward)
        return logits_NV(forward.head(policy.model), hidden_ND)


@torch.no_grad()
def merged(policy: Policy, folder: Path) -> Policy:
    """Return a policy without adapters, of weights that have them added, as has its teacher."""
    plain = open_on_cpu(folder)
    for target, source in zip(plain.models(), policy.models(), strict=True):
        weights = dict(plain_weights(source, torch.float32))
        for name, parameter in target.named_parameters():
            parameter.copy_(weights[name])
    return plain


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("base_dtype", ["float32", "bfloat16"])
def test_prompts_are_shared_as_without_adapters(
    tmp_path: Path, found: Architecture, base_dtype: Any, precision: Any
) -> None:
    lora = write(tmp_path, found)
    policy = open_on_cpu(
        tmp_path, lora=lora, base_dtype=base_dtype, precision=precision, gradient_checkpointing=True
    )
    assert not policy.unshared
    with stirred(policy.model):
        packed, padded = logits(policy, shares=True), logits(policy, shares=False)
    gap = float((packed - padded).abs().max())
    assert gap < (1e-5 if precision == "float32" else 0.05)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("base_dtype", ["float32", "bfloat16"])
def test_a_base_rounds_its_weights_and_nothing_else(
    tmp_path: Path, found: Architecture, base_dtype: Any, stored: torch.dtype
) -> None:
    """Against a float32 model of the merged weights; Gemma's scale would be rounded with them."""
    policy = open_on_cpu(tmp_path, lora=write(tmp_path, found, stored), base_dtype=base_dtype)
    with stirred(policy.model):
        expected = logits(merged(policy, tmp_path), shares=False)
        assert float((logits(policy, shares=False) - expected).abs().max()) < 2e-5


@pytest.mark.parametrize("base_dtype", ["float32", "bfloat16"])
def test_a_step_is_that_of_the_merged_model(
    tmp_path: Path, found: Architecture, base_dtype: Any
) -> None:
    policy = open_on_cpu(tmp_path, lora=write(tmp_path, found), base_dtype=base_dtype)
    generator = torch.Generator().manual_seed(1)
    for model in policy.models():
        for tensor in trainable(model).values():
            with torch.no_grad():
                tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))
    plain, before = merged(policy, tmp_path), policy.checksum()
    rows = []
    for each in (policy, plain):
        tables = routed(each, config_of(), MIXED)
        run_one(UPDATE, tables, each, config_of())
        rows.append(tables["updates"].to_pylist())
    assert policy.checksum() != before
    assert any(row["mean_divergence"] is not None for row in rows[0])
    for ours, theirs in zip(*rows, strict=True):
        for column in ("loss_sum", "mean_divergence"):  # no divergence where nothing is taught
            found_in = [row[column] or 0.0 for row in (ours, theirs)]
            assert found_in[0] == pytest.approx(found_in[1], rel=1e-3, abs=1e-5), column


@pytest.mark.parametrize("base_dtype", [torch.float32, torch.bfloat16])
def test_an_exported_model_is_the_merged_one(
    tmp_path: Path, found: Architecture, base_dtype: torch.dtype
) -> None:
    lora = write(tmp_path / "base", found)
    policy = open_on_cpu(tmp_path / "base", lora=lora, base_dtype=str(base_dtype)[6:])
    with stirred(policy.model):
        before = policy.model.config.to_dict()
        save_merged(policy, tmp_path / "merged")
        assert policy.model.config.to_dict() == before
        expected = dict(plain_weights(policy.model, base_dtype))
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto")
    named = dict(exported.named_parameters(remove_duplicate=False))
    assert named.keys() == expected.keys()
    for name, weight in named.items():
        assert weight.dtype == base_dtype
        assert torch.equal(weight, expected[name].to(base_dtype)), name


def test_experts_in_one_tensor_cannot_be_kept_in_bfloat16(tmp_path: Path) -> None:
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    attention = ["q_proj", "k_proj", "v_proj", "o_proj"]
    lora = write(tmp_path, Architecture("qwen3_moe", {"head_dim": 16, **experts}, attention))
    assert not open_on_cpu(tmp_path, lora=lora).unshared
    message = r"layers.0.mlp.experts.gate_up_proj is in no linear layer .* leave model.base_dtype"
    with pytest.raises(PolicyError, match=message):
        open_on_cpu(tmp_path, lora=lora, base_dtype="bfloat16")
