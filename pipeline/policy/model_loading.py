"""Opening a model folder that anybody may have written: nothing in it is run or taken on trust.

Weights come from safetensors, whose headers are compared with the configuration before memory is
allocated. Custom code is never run.

A model for several ranks is sharded while it has shapes but no weights; each rank then reads only
its own rows of each weight.
"""

import json
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.distributed import DistributedConfig

from pipeline.distributed.ranks import agreed, rank
from pipeline.distributed.sharding import Spread, local, whole
from pipeline.errors import PolicyError
from pipeline.policy import checkpoint
from pipeline.policy.chat_template import check_named, expect_template, settle_template
from pipeline.policy.safetensors_layout import FileLayout, lay_out
from pipeline.text import printable

_LONGEST_HEADER = 100_000_000
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")


def load_pretrained(
    path: str, spread: Spread | None = None, chat_template: str | None = None
) -> tuple[Any, Any]:
    """Return model and tokenizer of a Hugging Face folder or name, in float32.

    Args:
        spread: shards the model over the ranks, which must all call this; each reads its part.
        chat_template: which of its named chat templates (`settle_template`).

    Raises:
        PolicyError: the folder is not there, can't be opened, or its parts don't match.
    """
    with agreed():
        found = _load(path, spread, chat_template)
    return found


def _load(path: str, spread: Spread | None, chat_template: str | None) -> tuple[Any, Any]:
    folder = Path(path)
    if folder.is_dir():
        _check_folder(folder)
    elif folder.is_absolute() or path.startswith((".", "~")):
        raise PolicyError(f"{path}: no such model folder")
    tokenizer = open_tokenizer(path, chat_template)
    try:
        model, loading = _opener(path, spread).from_pretrained(
            path,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, with the names
            distributed_config=None if spread is None else DistributedConfig(),
        )
        if model.generation_config is not None:
            model.generation_config.validate(strict=True)  # else it can't be saved later
    except Exception as error:  # whatever a foreign folder makes transformers raise
        raise _cannot_be_opened(path, error) from None
    mismatched = {key for key, *_ in loading["mismatched_keys"]}
    if absent := sorted({*loading["missing_keys"], *mismatched}):
        names = ", ".join(absent[:3])
        raise PolicyError(f"{path}: {len(absent)} weights missing or of another shape: {names}")
    if not tokenizer.get_vocab().keys() - set(tokenizer.all_special_tokens):
        raise PolicyError(f"{path}: a model folder without a tokenizer")
    expect_template(tokenizer, path)
    _detach_from_files(model)
    _learn_padding(model)
    for name, weight in model.named_parameters():
        if not bool(local(weight.detach()).isfinite().all()):
            raise PolicyError(f"{path}: weight {name} holds values that are not finite")
    return model, tokenizer


def _opener(path: str, spread: Spread | None) -> Any:
    """Return the class whose `from_pretrained` opens a model.

    Of a sharded parameter transformers reads only this rank's rows. Between making a model and
    reading its weights, it calls `maybe_distribute_model` of the model's class; we shard there.
    """
    if spread is None:
        return AutoModelForCausalLM

    def distribute(_: Any, model: Any, *__: Any) -> Any:
        del model.config.distributed_config  # else it would be saved with the model
        model.tie_weights(recompute_mapping=False)
        spread(model)
        return model

    with torch.device("meta"):
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        kind = type(AutoModelForCausalLM.from_config(config, trust_remote_code=False))
    own = {"maybe_distribute_model": classmethod(distribute), "__module__": kind.__module__}
    return type(kind.__name__, (kind,), own)


def open_tokenizer(path: str | Path, chat_template: str | None = None) -> Any:
    """Return the tokenizer of a folder or name, with one chat template or none.

    Args:
        chat_template: which of its named chat templates (`settle_template`).

    Raises:
        PolicyError: it can't be opened, or its chat template can't be run within limits.
    """
    check_named(Path(path))
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # whatever a foreign folder makes transformers raise
        raise _cannot_be_opened(str(path), error) from None
    settle_template(tokenizer, path, chat_template)
    return tokenizer


def _check_folder(folder: Path) -> None:
    """Refuse a folder without safetensors, or one whose configuration needs more weights."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise PolicyError(f"{folder}: a model folder without weights (no *.safetensors)")
    if (folder / "adapter_config.json").exists():
        raise PolicyError(f"{folder}: an adapter (adapter_config.json); merge it into its model")
    shapes = [shape for file in files for shape in _shapes(file)]
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        layers = max(getattr(config, name, 0) or 0 for name in _LAYERS)
        if layers > len(shapes):
            raise PolicyError(f"{folder}: config.json says {layers} layers; the weights are fewer")
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        wanted = sum(p.numel() for p in model.parameters())
    except PolicyError:
        raise
    except Exception as error:  # whatever a foreign folder makes transformers raise
        raise _cannot_be_opened(str(folder), error) from None
    stored = sum(prod(shape) for shape in shapes)
    if wanted > 2 * stored + 1_000_000:
        raise PolicyError(
            f"{folder}: config.json asks for {wanted:,} parameters, the weights are {stored:,}"
        )


def _shapes(file: Path) -> Iterator[list[int]]:
    """Yield the shapes in a safetensors header, after checking that they fit the file."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if not 0 < length <= min(size - 8, _LONGEST_HEADER):
            raise PolicyError(f"{file}: a header of {length} bytes in a file of {size}")
        text = opened.read(length)
    try:
        header = json.loads(text)
        parts = [part for name, part in header.items() if name != "__metadata__"]
        for part in parts:
            start, end = part["data_offsets"]
            if not 0 <= start <= end <= size - 8 - length or end - start < prod(part["shape"]) // 2:
                raise PolicyError(f"{file}: its header names bytes that are not in it")
            yield part["shape"]
    except PolicyError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise PolicyError(f"{file}: not a safetensors file") from None


def _cannot_be_opened(path: str, error: Exception) -> PolicyError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return PolicyError(f"model.path {path}: can't be opened: {printable(lines[0], 300)}")


@torch.no_grad()
def _detach_from_files(model: Any) -> None:
    """Copy weights out of the memory-mapped file, so that editing the file can't change them."""
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.data = tensor.data.clone()


def _learn_padding(model: Any) -> None:
    """Let embedding rows of padding ids have gradients, as all others (docs/method.md, section 8).

    Modelling code sets `padding_idx`, which masks them. But the padding token of many tokenizers is
    one that ends a turn: it stands in every prompt. What is computed from it doesn't change.
    """
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.padding_idx = None


def save_model(model: Any, folder: Path) -> None:
    """Write a model as a Hugging Face folder; every rank must call it, and writes its part.

    Some models are stored in another form than they compute with. Only whole weights can be
    converted, so rank 0 gathers them one by one and writes the folder.
    """
    if getattr(model, "_weight_conversions", None) != []:
        _save_converted(model, folder)
        return
    stored = _stored(model)
    layout = lay_out(stored, "model", {"format": "pt"})
    if rank() == 0:
        model.save_pretrained(folder, state_dict={})  # everything but the weights
        if len(layout.headers) > 1:
            _write_index(model, layout, folder)
    checkpoint.save(stored, layout, folder)


def _stored(model: Any) -> dict[str, Tensor]:
    """Return the tensors to store: each weight once, and no buffer that can be recomputed."""
    left_out = {*model.all_tied_weights_keys, *(model._keys_to_ignore_on_save or ())}
    state = model.state_dict(keep_vars=True)
    return {name: tensor for name, tensor in state.items() if name not in left_out}


def _write_index(model: Any, layout: FileLayout, folder: Path) -> None:
    """Write model.safetensors.index.json, which names the file of each weight."""
    locations = layout.locations
    total = {
        "total_parameters": model.num_parameters(),
        "total_size": sum(p.bytes for p in locations.values()),
    }
    index = {"metadata": total, "weight_map": {name: p.file for name, p in locations.items()}}
    text = json.dumps(index, indent=2, sort_keys=True) + "\n"
    (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")


def _save_converted(model: Any, folder: Path) -> None:
    weights = {}
    for parameter in model.parameters():
        complete = whole(parameter.detach())
        if rank() == 0:
            weights[id(parameter)] = complete.cpu().contiguous()
    if rank() == 0:
        named = model.state_dict(keep_vars=True)
        state = {name: weights.get(id(tensor), tensor) for name, tensor in named.items()}
        model.save_pretrained(folder, state_dict=state, safe_serialization=True)
