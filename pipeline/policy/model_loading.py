"""Opening a model folder that anybody may have written: nothing in it is run or taken on trust.

Weights come from safetensors, whose headers are compared with the configuration before memory is
allocated (`model_files`); all of them are read, and none is left random. Custom code is never run.

A model for several ranks is sharded while it has shapes but no weights; each rank then reads only
its own rows of each weight.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.distributed import DistributedConfig

from pipeline.distributed.ranks import agreed, rank
from pipeline.distributed.sharding import Spread, local, whole
from pipeline.errors import PolicyError
from pipeline.policy import checkpoint
from pipeline.policy.chat_template import check_named, expect_template, settle_template
from pipeline.policy.generation_config import usable_generation_config
from pipeline.policy.logit_caps import caps_attention, expect_plain_logits
from pipeline.policy.model_files import cannot_be_opened, check_model_files
from pipeline.policy.model_folder import model_folder
from pipeline.policy.quiet_transformers import quiet_transformers
from pipeline.policy.safetensors_layout import FileLayout, lay_out
from pipeline.policy.tokenizer_loading import load_tokenizer
from pipeline.text import printable

_RECOMPUTED = re.compile(
    r"(^|\.)(masked_bias|inv_freq|(cos|sin)_cached|position_ids|attention\.bias)$"
)
"""Buffers that older versions of transformers stored; models compute them."""


def load_pretrained(
    path: str,
    spread: Spread | None = None,
    chat_template: str | None = None,
    keep_bfloat16: bool = False,
) -> tuple[Any, Any]:
    """Return model and tokenizer of a Hugging Face folder or name, in float32.

    Args:
        spread: shards the model over the ranks, which must all call this; each reads its part.
        chat_template: which of its named chat templates (`settle_template`).
        keep_bfloat16: leave weights in bfloat16 if all of them are stored so.

    Raises:
        PolicyError: the folder is not there, can't be opened, or its parts don't match.
    """
    with agreed():
        found = _load(path, spread, chat_template, keep_bfloat16)
    return found


def _load(
    path: str, spread: Spread | None, chat_template: str | None, keep_bfloat16: bool
) -> tuple[Any, Any]:
    folder = model_folder(path)
    stored = check_model_files(folder)
    tokenizer = open_tokenizer(folder, chat_template)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        expect_plain_logits(config, path)
        with quiet_transformers():
            model, loading = _opener(config, spread).from_pretrained(
                str(folder),
                dtype=torch.bfloat16 if keep_bfloat16 and stored == {"BF16"} else torch.float32,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                generation_config=usable_generation_config(folder),
                ignore_mismatched_sizes=True,  # refused below, with the names
                distributed_config=None if spread is None else DistributedConfig(),
                # torch's own attention leaves caps of its scores out, without a word
                **({"attn_implementation": "eager"} if caps_attention(config) else {}),
            )
    except PolicyError:
        raise
    except Exception as error:  # whatever a foreign folder makes transformers raise
        raise cannot_be_opened(path, error) from None
    _expect_all_weights(path, model, loading)
    if not tokenizer.get_vocab().keys() - set(tokenizer.all_special_tokens):
        raise PolicyError(f"{path}: a model folder without a tokenizer")
    expect_template(tokenizer, path)
    _detach_from_files(model)
    _learn_padding(model)
    for name, weight in model.named_parameters():
        if not bool(local(weight.detach()).isfinite().all()):
            raise PolicyError(f"{path}: weight {name} holds values that are not finite")
    return model, tokenizer


def _expect_all_weights(path: str, model: Any, loading: Mapping[str, Any]) -> None:
    """Refuse weights that nobody reads, or that the files don't have as the model needs them.

    Buffers that are computed don't count, nor what a model's class declares to be no loss.
    """
    kind = type(model).__name__
    if mismatched := sorted(loading["mismatched_keys"]):
        name, stored, wanted = mismatched[0]
        raise PolicyError(
            f"{path}: {len(mismatched)} weights are of another shape, first {name}: {list(stored)} "
            f"in the files, {list(wanted)} by config.json"
        )
    unread = [name for name in sorted(loading["unexpected_keys"]) if not _RECOMPUTED.search(name)]
    if missing := sorted(loading["missing_keys"]):
        others = f"; they have {_first(unread)}, which it does not read" if unread else ""
        raise PolicyError(
            f"{path}: the files lack {len(missing)} weights of a {kind}: {_first(missing)}; "
            f"they would be random{others}"
        )
    if unread:
        raise PolicyError(
            f"{path}: the files hold {len(unread)} weights that a {kind} of this config.json does "
            f"not read: {_first(unread)}; {_why_unread(unread, model.config)}"
        )
    if errors := loading.get("conversion_errors"):
        raise PolicyError(f"{path}: weights that can't be converted: {_first(sorted(errors))}")
    wanted_ties = model.get_expanded_tied_weights_keys(all_submodels=True)
    if untied := sorted(wanted_ties.keys() - model.all_tied_weights_keys.keys()):
        raise PolicyError(
            f"{path}: config.json ties {untied[0]} to {wanted_ties[untied[0]]}, but the files hold "
            "two different weights; set tie_word_embeddings to what the model was trained with"
        )


def _first(names: Sequence[str]) -> str:
    shown = ", ".join(printable(name, 100) for name in names[:3])
    return shown if len(names) <= 3 else f"{shown}, …"


def _why_unread(names: Sequence[str], config: Any) -> str:
    if any("lora_" in name or "modules_to_save" in name for name in names):
        return "merge the LoRA adapters into the model first, or give them as model.lora.adapter"
    layers = getattr(config.get_text_config(), "num_hidden_layers", None)
    found = [
        int(number) for name in names for number in re.findall(r"\.(?:layers|h)\.(\d+)\.", name)
    ]
    if layers is not None and found and max(found) >= layers:
        return f"config.json has {layers} layers, the files have {max(found) + 1}"
    return "give the config.json that the weights were saved with, or remove them"


def _opener(config: Any, spread: Spread | None) -> Any:
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
    folder = model_folder(str(path))
    check_named(folder)
    tokenizer = load_tokenizer(folder)
    settle_template(tokenizer, folder, chat_template)
    return tokenizer


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
