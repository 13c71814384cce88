"""What the header of a GGUF file says: refused is what can't be turned into a model folder.

transformers' loader passes over tensors and settings that it has no name for, and cuts texts as
GPT-2 does where it doesn't know better. The model would then compute something else, without a
word; so whatever it would pass over is refused here.
"""

from pathlib import Path
from typing import Any

from tokenizers import pre_tokenizers

from pipeline.errors import PolicyError
from pipeline.text import one_line, printable, size

_MAGIC = b"GGUF"
_BY_SHAPE = ("attention.key_length", "attention.value_length", "expert_feed_forward_length",
             "expert_shared_feed_forward_length")  # fmt: skip
"""Settings that transformers doesn't read, but a wrong value of which no tensor would fit."""
_NEUTRAL = {
    "rope.scaling.type": "none",
    "rope.scaling.factor": 1.0,
    "expert_count": 0,
    "expert_used_count": 0,
}
"""Values with which a setting changes nothing."""
_SPLIT_AS_GPT2 = ("gpt-2", "phi-2", "mpt", "olmo")
_SPLIT_DIGITS_FIRST = ("smollm", "starcoder", "refact", "codeshell")
"""What tokenizer.ggml.pre may say that transformers doesn't know: how llama.cpp cuts texts then."""


def is_gguf(file: Path) -> bool:
    """Tell whether a file is one, or is called one."""
    return file.suffix.lower() == ".gguf" or _begins(file) == _MAGIC


def read_header(file: Path) -> Any:
    """Return the header of a GGUF file of one whole language model, as the package gguf reads it.

    Raises:
        PolicyError: it is no GGUF file, is cut off, or holds something else or only a part.
    """
    from gguf import GGUFReader

    shown = f"model.path {printable(str(file), 300)}"
    if (begins := _begins(file)) != _MAGIC:
        what = "a pointer of Git LFS, not the file itself" if begins == b"vers" else "no GGUF file"
        raise PolicyError(f"{shown}: {what} (it begins with {begins!r}, not {_MAGIC!r})")
    try:
        header: Any = GGUFReader(file)
        end = max((t.data_offset + t.n_bytes for t in header.tensors), default=0)
    except Exception as error:  # whatever a damaged file makes the library raise
        raise PolicyError(
            f"{shown}: a GGUF file that is cut off or damaged ({one_line(error, 200)}); copy it "
            "once more"
        ) from None
    if end > (found := file.stat().st_size):
        raise PolicyError(
            f"{shown}: cut off: its tensors end at {size(end)}, the file at {size(found)}; copy it "
            "once more"
        )
    if why := _why_no_model(header):
        raise PolicyError(f"{shown}: {why}")
    return header


def token_ids(header: Any) -> dict[str, Any]:
    """Return the ids for a generation_config.json: every token that llama.cpp too ends at."""
    ends = [_value(header, f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    ends = list(dict.fromkeys(end for end in ends if end is not None))
    found = {
        "bos_token_id": _value(header, "tokenizer.ggml.bos_token_id"),
        "eos_token_id": ends[0] if len(ends) == 1 else ends,
        "pad_token_id": _value(header, "tokenizer.ggml.padding_token_id"),
    }
    return {name: value for name, value in found.items() if value not in (None, [])}


def expect_all_read(header: Any, model: Any) -> None:
    """Refuse a file of which transformers would leave out a tensor.

    Args:
        model: the transformers model, on any device; its names count.
    """
    from transformers.modeling_gguf_pytorch_utils import (
        TENSOR_PROCESSORS,
        TensorProcessor,
        get_gguf_hf_weights_map,
    )

    kind = TENSOR_PROCESSORS.get(_value(header, "general.architecture"), TensorProcessor)
    read = get_gguf_hf_weights_map(model, kind(config=model.config.to_dict()))
    unread = [
        tensor.name
        for tensor in header.tensors
        if tensor.name not in read and tensor.name.removesuffix(".weight") not in read
    ]
    if unread:
        raise PolicyError(
            f"transformers would leave out {len(unread)} of its {len(header.tensors)} tensors, "
            f"first {printable(unread[0], 100)}; give the model's own Hugging Face folder"
        )


def settle_splitting(header: Any, tokenizer: Any) -> None:
    """Have a tokenizer cut texts as its header says, before it encodes the pieces.

    A GGUF file names the rule (`tokenizer.ggml.pre`). With another one, the same text has other
    tokens than the model was trained on.
    """
    kind, rule = _value(header, "tokenizer.ggml.model"), _value(header, "tokenizer.ggml.pre")
    core = tokenizer.backend_tokenizer
    if kind == "gpt2":
        if not isinstance(core.pre_tokenizer, pre_tokenizers.ByteLevel) or rule in _SPLIT_AS_GPT2:
            return
        if rule in _SPLIT_DIGITS_FIRST:
            core.pre_tokenizer = pre_tokenizers.Sequence(
                [pre_tokenizers.Digits(individual_digits=True), core.pre_tokenizer]
            )
            return
        raise PolicyError(
            f"its tokenizer cuts texts by the rule {rule!r} (tokenizer.ggml.pre), which "
            "transformers can't rebuild; give the model's own Hugging Face folder"
        )
    if kind != "llama":
        raise PolicyError(
            f"a tokenizer of the kind {kind!r} (tokenizer.ggml.model); supported: gpt2, llama"
        )
    begun = tokenizer.tokenize("a")[0] != "a"
    if begun != bool(_value(header, "tokenizer.ggml.add_space_prefix", True)):
        raise PolicyError(
            f"its tokenizer is to {'put no' if begun else 'put a'} space before a text "
            "(tokenizer.ggml.add_space_prefix), which transformers can't rebuild; give the "
            "model's own Hugging Face folder"
        )


def _why_no_model(header: Any) -> str:
    """Say what a file holds, and what to do, if it isn't one whole language model."""
    kind, architecture = _value(header, "general.type", "model"), _architecture(header)
    if kind == "adapter":
        return "a LoRA adapter; merge it into its model, and give the merged model"
    if kind == "mmproj" or architecture == "clip":
        return "the part of a model that reads images; expected its language model"
    if kind != "model" or architecture is None:
        return f"a GGUF file of type {kind!r} and architecture {architecture!r}; expected a model"
    if (parts := int(_value(header, "split.count", 1))) > 1:
        return f"one of {parts} files of a model; merge them (llama-gguf-split --merge)"
    if unread := sorted(_unread_settings(header, architecture)):
        name, value = unread[0], _value(header, unread[0])
        return (
            f"transformers would leave out its setting {name} = {printable(repr(value), 60)}; "
            "give the model's own Hugging Face folder"
        )
    return ""


def _unread_settings(header: Any, architecture: str) -> list[str]:
    """Return the settings of the model that transformers doesn't read, and that may matter."""
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

    def plain(name: str) -> str:
        return name.replace("_", "").replace("-", "")

    known = {plain(name): settings for name, settings in GGUF_CONFIG_MAPPING.items()}
    if (read := known.get(plain(architecture))) is None:
        return []  # opening it says so
    prefix = f"{architecture}."
    return [
        name
        for name in header.fields
        if name.startswith(prefix)
        and (key := name.removeprefix(prefix)) not in read
        and key not in _BY_SHAPE
        and (key not in _NEUTRAL or _value(header, name) != _NEUTRAL[key])
    ]


def _architecture(header: Any) -> str | None:
    found = _value(header, "general.architecture")
    return None if found is None else str(found)


def _value(header: Any, name: str, default: Any = None) -> Any:
    field = header.fields.get(name)
    return default if field is None else field.contents()


def _begins(file: Path) -> bytes:
    with file.open("rb") as opened:
        return opened.read(4)
