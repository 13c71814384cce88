"""Tiny GGUF files of random Llamas, by the package gguf: the model beside it is what they hold.

The tokenizer is byte-level BPE: three special tokens, 256 bytes, and a few merges.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.convert_slow_tokenizer import bytes_to_unicode

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGES = ("h e", "l l", "Ġ Ġ", "Ċ Ċ", "1 2", "Ġ 1")
"""Of letters, of spaces and newlines, and of what only other rules of cutting leave together."""
TOKENS = (*SPECIAL, *bytes_to_unicode().values(), *(m.replace(" ", "") for m in MERGES))
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
HEADS, KEY_HEADS = 2, 1


def tiny_llama(seed: int = 0, tied: bool = True) -> LlamaForCausalLM:
    """Return a random Llama with the vocabulary of these files."""
    config = LlamaConfig(
        **SIZES,
        vocab_size=len(TOKENS),
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_HEADS,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        rope_theta=20000.0,
        initializer_range=0.2,
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()


def write_gguf(
    file: Path,
    model: LlamaForCausalLM,
    settings: Mapping[str, Any] | None = None,
    *,
    architecture: str = "llama",
    quantised: bool = False,
    more: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Write a model as llama.cpp's converter does: its names, and rotary pairs side by side.

    Args:
        settings: replace or add to the header's; None leaves one out.
        quantised: store matrices as Q8_0.
        more: tensors that no Llama has.
    """
    writer = GGUFWriter(None, architecture)
    header = {**_header(model, architecture), **(settings or {})}
    for name, value in header.items():
        _add(writer, name, value)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, SIZES["num_hidden_layers"])
    for name, weight in model.named_parameters():
        values = _paired(name, weight.detach()).numpy()
        stored = names.get_name(name, try_suffixes=(".weight",))
        assert stored is not None
        if quantised and values.ndim == 2:
            kind = GGMLQuantizationType.Q8_0
            writer.add_tensor(stored, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(stored, values)
    for name, values in (more or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file(file)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _header(model: LlamaForCausalLM, architecture: str) -> dict[str, Any]:
    config: Any = model.config
    sizes = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 20000.0,
        "rope.dimension_count": config.head_dim,
        "vocab_size": config.vocab_size,
    }
    return {
        **{f"{architecture}.{name}": value for name, value in sizes.items()},
        "general.type": "model",
        "general.name": "A title that no configuration needs",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": list(TOKENS),
        "tokenizer.ggml.token_type": [3] * len(SPECIAL) + [1] * (len(TOKENS) - len(SPECIAL)),
        "tokenizer.ggml.merges": list(MERGES),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.chat_template": TEMPLATE,
    }


def _add(writer: GGUFWriter, name: str, value: Any) -> None:
    add = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
        list: writer.add_array,
    }
    if value is not None:
        add[type(value)](name, value)


def _paired(name: str, weight: Tensor) -> Tensor:
    """Return a weight with the two parts of each rotary pair side by side, not halves apart."""
    if not name.endswith(("q_proj.weight", "k_proj.weight")):
        return weight
    heads = HEADS if "q_proj" in name else KEY_HEADS
    halves = weight.view(heads, 2, weight.shape[0] // heads // 2, weight.shape[1])
    return halves.transpose(1, 2).reshape(weight.shape).contiguous()
