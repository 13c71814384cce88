"""Adapters in files of peft's format, which peft, transformers and vLLM open; merged models.

adapter_config.json says what layers have adapters, and how they are scaled;
adapter_model.safetensors holds A and B of each layer as base_model.model.LAYER.lora_A.weight and
.lora_B.weight.
"""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from pipeline.config.sections import LoraSection
from pipeline.distributed.ranks import rank
from pipeline.distributed.sharding import put_tensor
from pipeline.errors import PolicyError
from pipeline.policy import checkpoint
from pipeline.policy.adapters import plain_weights, trainable
from pipeline.policy.model_loading import save_model
from pipeline.policy.safetensors_layout import find_tensors, lay_out, tensor_files
from pipeline.text import one_line, printable

CONFIG = "adapter_config.json"
STEM = "adapter_model"
BASE_CONFIG = "base_config.json"
_PREFIX, _SUFFIX = "base_model.model.", ".weight"
_HARMLESS = frozenset(
    [
        *("auto_mapping", "base_model_name_or_path", "inference_mode", "megatron_core"),
        *("peft_version", "qalora_group_size", "revision", "runtime_config", "task_type"),
    ]
)
"""Keys of adapter_config.json that don't change what an adapter computes as it is opened."""
_WITHOUT_EFFECT: dict[str, list[Any]] = {
    "bias": ["none"],
    "init_lora_weights": [True, "gaussian", "orthogonal"],
    "peft_type": ["LORA"],
}
"""Values of others with which they don't; of all others, false, null and empty ones."""
_TYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def peft_config(lora: LoraSection, base: str) -> dict[str, Any]:
    """Return what adapter_config.json says of these adapters on the model `base`."""
    return {
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": lora.rank,
        "target_modules": sorted(set(lora.targets)),
        "task_type": "CAUSAL_LM",
    }


def save_adapters(model: Any, lora: LoraSection, base: str, folder: Path) -> None:
    """Write a model's adapters; every rank must call it, and writes its part."""
    if rank() == 0:
        text = json.dumps(peft_config(lora, base), indent=2) + "\n"
        (folder / CONFIG).write_text(text, encoding="utf-8")
        model.config.to_json_file(folder / BASE_CONFIG)
    tensors = _by_peft_name(model)
    checkpoint.save(tensors, lay_out(tensors, STEM, {"format": "pt"}), folder)


def load_adapters(model: Any, folder: Path) -> None:
    """Fill a model's adapters from files that fit; every rank must call it."""
    checkpoint.load(_by_peft_name(model), find_tensors(folder, STEM), folder)


def expect_adapters(model: Any, lora: LoraSection, folder: Path) -> None:
    """Refuse files of adapters that somebody brings and that don't fit the model's.

    Raises:
        PolicyError: they are not there, are of other layers, sizes or kinds than the settings
            say, or hold values that are not finite.
    """
    _expect_same_kind(lora, folder)
    stored = _read_tensors(folder)
    path = folder / f"{STEM}.safetensors"
    expected = _by_peft_name(model)
    for name, tensor in expected.items():
        found = stored.get(name)
        if found is None or found.shape != tensor.shape:
            has = "none" if found is None else f"one of {list(found.shape)}"
            raise PolicyError(
                f"{path}: expected a tensor {printable(name, 200)} of {list(tensor.shape)}, found "
                f"{has}; give the adapter's own model as model.path"
            )
        if found.dtype not in _TYPES:
            raise PolicyError(
                f"{path}: {printable(name, 200)} is stored as {str(found.dtype)[6:]}; adapters are "
                "in float32, float64, float16 or bfloat16"
            )
        if not bool(found.isfinite().all()):
            raise PolicyError(f"{path}: {printable(name, 200)} holds values that are not finite")
    if unread := sorted(stored.keys() - expected.keys()):
        raise PolicyError(
            f"{path}: {len(unread)} tensors belong to no adapter of this model, first "
            f"{printable(unread[0], 200)}; give the adapter's own model as model.path"
        )


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    stored: dict[str, Tensor] = {}
    for path in tensor_files(folder, STEM):
        try:
            stored |= load_file(path)
        except (OSError, ValueError, SafetensorError) as error:
            raise PolicyError(f"{path}: can't be read: {one_line(error)}") from None
    if not stored:
        raise PolicyError(
            f"{folder}: no tensors in {STEM}.safetensors; an {STEM}.bin is never opened, so save "
            "the adapter once more as safetensors"
        )
    return stored


def config_file(folder: Path) -> Path:
    """Return the file of a snapshot that says what model it is of.

    Of adapters it can't be config.json: transformers would look for that model's weights beside it.
    """
    plain = folder / "config.json"
    return plain if plain.exists() else folder / BASE_CONFIG


def save_merged_model(model: Any, folder: Path, dtype: torch.dtype) -> None:
    """Write the model that its adapters make of the base, without adapters.

    Sums are made in float32 and rounded once, to `dtype`; every rank must call it.
    """
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(
            copy.deepcopy(model.config), trust_remote_code=False
        )
    for name, weight in plain_weights(model, dtype):
        put_tensor(plain, name, nn.Parameter(weight.to(dtype), requires_grad=False))
    for name, buffer in model.named_buffers(remove_duplicate=False):
        put_tensor(plain, name, buffer)
    plain.tie_weights()
    plain.config.dtype = dtype
    plain.generation_config = model.generation_config
    plain._weight_conversions = getattr(model, "_weight_conversions", None)
    save_model(plain, folder)


def _by_peft_name(model: Any) -> dict[str, Tensor]:
    return {f"{_PREFIX}{name}{_SUFFIX}": tensor for name, tensor in trainable(model).items()}


def _expect_same_kind(lora: LoraSection, folder: Path) -> None:
    """Refuse adapters that compute something else than `AdaptedLinear` with these settings.

    What an entry means that we don't know is unknown, so it must have a value without effect.
    """
    config = _read_config(folder)
    path = folder / CONFIG
    ours = peft_config(lora, "")
    for key, wanted in (("r", lora.rank), ("lora_alpha", lora.alpha)):
        if config.get(key) != wanted:
            setting = {"r": "rank", "lora_alpha": "alpha"}[key]
            raise PolicyError(
                f"{path}: {key} is {_shown(config.get(key))}, model.lora.{setting} is {wanted}; "
                f"set model.lora.{setting} to the adapter's"
            )
    found = config.get("target_modules")
    if not isinstance(found, list) or sorted(map(str, found)) != ours["target_modules"]:
        raise PolicyError(
            f"{path}: target_modules is {_shown(found)}, model.lora.targets is "
            f"{_shown(ours['target_modules'])}; set model.lora.targets to the adapter's"
        )
    for key in sorted(config.keys() - _HARMLESS - {"r", "lora_alpha", "target_modules"}):
        value = config[key]
        if value not in (*_WITHOUT_EFFECT.get(key, []), None, False, [], {}):
            raise PolicyError(
                f"{path}: {printable(key, 60)} is {_shown(value)}, which adapters here don't have; "
                "give a plain LoRA adapter, or merge this one into its model"
            )


def _read_config(folder: Path) -> Mapping[str, Any]:
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PolicyError(
            f"model.lora.adapter {folder}: no {CONFIG} there; expected the folder of an adapter in "
            "peft's format"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise PolicyError(f"{path}: not readable JSON: {one_line(error)}") from None
    if not isinstance(config, dict):
        raise PolicyError(f"{path}: no JSON object")
    return config


def _shown(value: Any) -> str:
    return printable(json.dumps(value, default=str), 120)
