"""The files of a model folder, looked at before any memory is allocated for weights.

Which safetensors files are read, what their headers say, and whether the configuration asks for
more. Headers are small, so a folder of hundreds of gigabytes is judged at once.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from pipeline.errors import PolicyError
from pipeline.text import one_line, printable

_LONGEST_HEADER = 100_000_000
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_ONE_FILE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
_PLAIN_TYPES = ("F64", "F32", "F16", "BF16")


class StoredTensor(NamedTuple):
    """What a safetensors header says of a tensor."""

    name: str
    dtype: str
    shape: list[int]


def cannot_be_opened(path: object, error: Exception) -> PolicyError:
    """Return what to raise where a foreign folder made a library raise."""
    return PolicyError(f"model.path {path}: can't be opened: {one_line(error)}")


def check_model_files(folder: Path) -> set[str]:
    """Return the types of a folder's weights, as safetensors names them; refuse unusable ones.

    Raises:
        PolicyError: an adapter, a quantised checkpoint, missing or unread files of weights, a
            header that doesn't fit its file, or a configuration that needs more weights.
    """
    if (folder / "adapter_config.json").exists():
        raise PolicyError(
            f"{folder}: an adapter (adapter_config.json); give its model as model.path and this "
            "folder as model.lora.adapter, or merge it into its model"
        )
    _expect_plain_weights(folder)
    files = _read_files(folder)
    tensors = [tensor for file in files for tensor in _stored(file)]
    counts = Counter(tensor.name for tensor in tensors)
    if twice := sorted(name for name, count in counts.items() if count > 1):
        raise PolicyError(
            f"{folder}: {len(twice)} weights are in several of its files, first "
            f"{printable(twice[0], 100)}; which of them to read is unclear"
        )
    for tensor in tensors:
        if tensor.dtype in _PLAIN_TYPES:
            continue
        if tensor.dtype.startswith("F") or tensor.name.endswith(".weight"):  # else an index, a mask
            raise PolicyError(
                f"{folder}: weight {printable(tensor.name, 100)} is stored as {tensor.dtype}: a "
                f"quantised checkpoint; training needs weights in {', '.join(_PLAIN_TYPES)}"
            )
    _expect_fitting_config(folder, [tensor.shape for tensor in tensors])
    return {tensor.dtype for tensor in tensors}


def _expect_plain_weights(folder: Path) -> None:
    path = folder / "config.json"
    if not path.is_file():
        raise PolicyError(f"{folder}: no config.json; expected the folder of a Hugging Face model")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise PolicyError(f"{path}: not readable JSON: {one_line(error)}") from None
    if not isinstance(config, dict):
        raise PolicyError(f"{path}: no JSON object")
    found = config.get("quantization_config")
    if found:
        method = found.get("quant_method") if isinstance(found, dict) else found
        shown = printable(str(method), 60)
        raise PolicyError(
            f"{folder}: a quantised checkpoint (quantization_config: {shown}); training needs "
            "plain weights, so give the model that was quantised"
        )


def _read_files(folder: Path) -> list[Path]:
    """Return the files that transformers reads; refuse weights beside them that it doesn't."""
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    if not names:
        raise PolicyError(f"{folder}: a model folder without weights (no *.safetensors)")
    if _ONE_FILE in names:
        read = [_ONE_FILE]
    elif (folder / _INDEX).is_file():
        read = _indexed(folder)
    else:
        raise PolicyError(
            f"{folder}: neither {_ONE_FILE} nor {_INDEX}; there is {printable(names[0], 100)}, "
            "whose weights nobody reads"
        )
    unread = [
        name
        for name in names
        if name not in read and (_SHARD.fullmatch(name) or name.startswith("adapter_"))
    ]
    if unread:
        where = _ONE_FILE if read == [_ONE_FILE] else f"the files of {_INDEX}"
        raise PolicyError(
            f"{folder}: nobody reads {printable(', '.join(unread[:3]), 200)} "
            f"({len(unread)} of {len(names)} files), since the weights are in "
            f"{where}; merge or remove them"
        )
    return [folder / name for name in read]


def _indexed(folder: Path) -> list[str]:
    path = folder / _INDEX
    try:
        found = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
        absent = [name for name in found if not (folder / Path(name).name).is_file()]
        outside = [name for name in found if Path(name).name != name]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise PolicyError(f"{path}: not an index of weights: {one_line(error)}") from None
    if outside:
        raise PolicyError(f"{path}: names files outside the folder: {printable(outside[0], 200)}")
    if absent:
        raise PolicyError(
            f"{path}: {len(absent)} of the {len(found)} files that it names are missing: "
            f"{printable(', '.join(absent[:3]), 200)}; copy the folder once more"
        )
    return found


def _stored(file: Path) -> Iterator[StoredTensor]:
    """Yield what a safetensors header names, after checking that it fits the file."""
    if not file.is_file():  # the hub's cache has links, whose files may be gone
        raise PolicyError(f"{file}: not a file, or a link to none; copy the folder once more")
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if not 0 < length <= min(size - 8, _LONGEST_HEADER):
            raise PolicyError(f"{file}: a header of {length} bytes in a file of {size}")
        text = opened.read(length)
    try:
        header = json.loads(text)
        parts = {name: part for name, part in header.items() if name != "__metadata__"}
        for name, part in parts.items():
            start, end = part["data_offsets"]
            if not 0 <= start <= end <= size - 8 - length or end - start < prod(part["shape"]) // 2:
                raise PolicyError(
                    f"{file}: its header names bytes that are not in it; copy the file once more"
                )
            yield StoredTensor(name, str(part["dtype"]), part["shape"])
    except PolicyError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise PolicyError(f"{file}: not a safetensors file") from None


def _expect_fitting_config(folder: Path, shapes: list[list[int]]) -> None:
    """Refuse a configuration that would have memory allocated for far more than is stored."""
    try:
        config: Any = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        layers = max(getattr(config, name, 0) or 0 for name in _LAYERS)
        if layers > len(shapes):
            raise PolicyError(f"{folder}: config.json says {layers} layers; the weights are fewer")
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        wanted = sum(p.numel() for p in model.parameters())
    except PolicyError:
        raise
    except Exception as error:  # whatever a foreign folder makes transformers raise
        raise cannot_be_opened(folder, error) from None
    stored = sum(prod(shape) for shape in shapes)
    if wanted > 2 * stored + 1_000_000:
        raise PolicyError(
            f"{folder}: config.json asks for {wanted:,} parameters, the weights are {stored:,}"
        )
