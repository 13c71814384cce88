"""Weights: none is left unread, none is random, and quantised or half folders are refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from pipeline.errors import PolicyError
from tests.builders.policies import PRINTABLE, open_on_cpu, tokenizer_of, write_tiny_policy

Change = Callable[[dict[str, Tensor]], object]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tiny_policy(tmp_path / "policy", 0, PRINTABLE)
    return tmp_path / "policy"


def refusal(folder: Path) -> str:
    with pytest.raises(PolicyError) as caught:
        open_on_cpu(folder)
    message = str(caught.value)
    assert "\n" not in message and str(folder) in message
    return message


def configure(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def rewrite(folder: Path, change: Change) -> None:
    """Change the tensors of the folder's one file."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


def split(folder: Path, *, index: bool = True) -> list[str]:
    """Split the weights over two files."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    files = [f"model-{i:05d}-of-00002.safetensors" for i in (1, 2)]
    halves = [names[: len(names) // 2], names[len(names) // 2 :]]
    for file, half in zip(files, halves, strict=True):
        save_file({name: tensors[name] for name in half}, folder / file, {"format": "pt"})
    if index:
        places = {n: f for f, half in zip(files, halves, strict=True) for n in half}
        text = json.dumps({"metadata": {}, "weight_map": places})
        (folder / "model.safetensors.index.json").write_text(text)
    return files


# --- weights that nobody reads ---------------------------------------------------------------


def test_fewer_layers_than_the_file(folder: Path) -> None:
    configure(folder, num_hidden_layers=1, layer_types=["full_attention"])
    message = refusal(folder)
    assert "hold 11 weights that a Qwen3ForCausalLM of this config.json does not read" in message
    assert "model.layers.1.input_layernorm.weight, model.layers.1.mlp.down_proj.weight, " in message
    assert message.endswith("config.json has 1 layers, the files have 2")


def test_unmerged_adapters(folder: Path) -> None:
    name = "model.layers.0.self_attn.q_proj"
    rewrite(
        folder,
        lambda t: t.update(
            {f"{name}.lora_A.weight": torch.ones(2, 32), f"{name}.lora_B.weight": torch.ones(32, 2)}
        ),
    )
    message = refusal(folder)
    assert f"hold 2 weights that a Qwen3ForCausalLM of this config.json does not read: {name}" in (
        message
    )
    assert message.endswith(
        "merge the LoRA adapters into the model first, or give them as model.lora.adapter"
    )


@pytest.mark.parametrize("name", ["score.weight", "visual.patch_embed.weight", "v_head.bias"])
def test_parts_of_another_kind_of_model(folder: Path, name: str) -> None:
    rewrite(folder, lambda t: t.update({name: torch.ones(3)}))
    assert f"hold 1 weights that a Qwen3ForCausalLM of this config.json does not read: {name};" in (
        refusal(folder)
    )


@pytest.mark.parametrize("name", ["rotary_emb.inv_freq", "rotary_emb.cos_cached", "masked_bias"])
def test_buffers_that_are_computed_may_be_stored(folder: Path, name: str) -> None:
    rewrite(folder, lambda t: t.update({f"model.layers.0.self_attn.{name}": torch.ones(8)}))
    assert open_on_cpu(folder).vocabulary == len(PRINTABLE)


def test_a_tied_head_that_is_stored_too(folder: Path) -> None:
    rewrite(
        folder,
        lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}),
    )
    model = open_on_cpu(folder).model
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_head_that_the_configuration_ties_away(folder: Path, tmp_path: Path) -> None:
    rewrite(
        folder,
        lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] + 1}),
    )
    message = refusal(folder)
    assert "ties lm_head.weight to model.embed_tokens.weight, but the files hold two" in message


# --- weights that are not there --------------------------------------------------------------


def test_a_head_that_would_be_random(folder: Path) -> None:
    configure(folder, tie_word_embeddings=False)
    assert "the files lack 1 weights of a Qwen3ForCausalLM: lm_head.weight; they would be" in (
        refusal(folder)
    )


def test_more_layers_than_the_file(folder: Path) -> None:
    configure(folder, num_hidden_layers=3, layer_types=["full_attention"] * 3)
    assert "the files lack 11 weights of a Qwen3ForCausalLM: model.layers.2." in refusal(folder)


def test_another_prefix_of_all_names(folder: Path) -> None:
    def rename(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            tensors[f"base_model.model.{name}"] = tensors.pop(name)

    rewrite(folder, rename)
    message = refusal(folder)
    assert "weights of a Qwen3ForCausalLM: " in message
    assert "they have base_model.model." in message


def test_other_shapes_are_named(folder: Path) -> None:
    configure(folder, intermediate_size=48)
    assert (
        "6 weights are of another shape, first model.layers.0.mlp.down_proj.weight: [32, 64] in "
        "the files, [32, 48] by config.json"
    ) in refusal(folder)


def test_a_model_that_does_not_fit_itself(folder: Path) -> None:
    """Three heads of queries over one of keys are fine, over two they aren't."""
    configure(folder, num_attention_heads=3, num_key_value_heads=2, head_dim=16)
    rewrite(
        folder,
        lambda t: t.update(
            {
                f"model.layers.{i}.self_attn.{part}_proj.weight": torch.ones(shape)
                for i in range(2)
                for part, shape in (
                    *(("q", (48, 32)), ("k", (32, 32)), ("v", (32, 32))),
                    ("o", (32, 48)),
                )
            }
        ),
    )
    refusal(folder)


def test_the_library_adds_no_lines(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    configure(folder, num_hidden_layers=1, layer_types=["full_attention"])
    refusal(folder)
    assert capfd.readouterr() == ("", "")


# --- files -----------------------------------------------------------------------------------


def test_split_weights_open(folder: Path) -> None:
    before = open_on_cpu(folder).checksum()
    split(folder)
    assert open_on_cpu(folder).checksum() == before


def test_an_index_that_names_a_missing_file(folder: Path) -> None:
    (folder / split(folder)[1]).unlink()
    assert "1 of the 2 files that it names are missing: model-00002-of-00002.safetensors" in (
        refusal(folder)
    )


def test_a_link_to_no_file(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("gone")
    assert "not a file, or a link to none" in refusal(folder)


def test_split_weights_without_an_index(folder: Path) -> None:
    split(folder, index=False)
    assert "neither model.safetensors nor model.safetensors.index.json" in refusal(folder)


def test_a_weight_in_two_files(folder: Path) -> None:
    first, second = (folder / name for name in split(folder))
    tensors = load_file(second)
    name, weight = next(iter(load_file(first).items()))
    save_file({**tensors, name: weight + 1}, second, {"format": "pt"})
    assert f"1 weights are in several of its files, first {name}" in refusal(folder)


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": [1]}', '{"weight_map": {"a": 1}}'])
def test_an_index_that_is_none(folder: Path, text: str) -> None:
    split(folder)
    (folder / "model.safetensors.index.json").write_text(text)
    assert "not an index of weights" in refusal(folder)


def test_an_index_that_leads_outside(folder: Path) -> None:
    split(folder)
    content = {"weight_map": {"a": "../policy/model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))
    assert "names files outside the folder" in refusal(folder)


def test_split_weights_beside_one_file(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "model.safetensors", tmp_path)
    split(folder)
    shutil.copy(tmp_path / "model.safetensors", folder)
    assert "nobody reads model-00001-of-00002.safetensors, model-00002" in refusal(folder)


def test_adapters_beside_the_model(folder: Path) -> None:
    save_file({"a.lora_A.weight": torch.ones(1)}, folder / "adapter_model.safetensors")
    assert "nobody reads adapter_model.safetensors" in refusal(folder)


def test_a_folder_that_is_an_adapter(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text("{}")
    assert "an adapter (adapter_config.json); give its model as model.path" in refusal(folder)


# --- quantised -------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["gptq", "awq", "fp8", "bitsandbytes", "compressed-tensors"])
def test_quantised_by_configuration(folder: Path, method: str) -> None:
    configure(folder, quantization_config={"quant_method": method, "bits": 4})
    assert f"a quantised checkpoint (quantization_config: {method})" in refusal(folder)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8, torch.uint8])
def test_quantised_by_what_is_stored(folder: Path, dtype: torch.dtype) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    rewrite(folder, lambda t: t.update({name: t[name].to(dtype)}))
    assert f"weight {name} is stored as " in refusal(folder)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_plain_types_open_in_float32(folder: Path, dtype: torch.dtype) -> None:
    rewrite(folder, lambda t: t.update({name: w.to(dtype) for name, w in t.items()}))
    assert {p.dtype for p in open_on_cpu(folder).model.parameters()} == {torch.float32}


def test_a_llama_opens(tmp_path: Path) -> None:
    tokenizer_of(PRINTABLE).save_pretrained(tmp_path)
    config = LlamaConfig(
        vocab_size=len(PRINTABLE),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    assert open_on_cpu(tmp_path).vocabulary == len(PRINTABLE)
