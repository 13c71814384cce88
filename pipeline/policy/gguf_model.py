"""From a GGUF file to a Hugging Face folder: dequantised once to float32, into a cache.

CACHE/gguf/<SHA-256 of the file, 16 digits>-<rules>/ is a model folder like any other, and is opened
as such. gguf.json in it says of which file it was made, and seals its files: a folder that doesn't
match is made anew. The same file gives the same bytes.

transformers reads header, tokenizer and tensors. Where it would leave out in silence what the model
computes with (a tensor, a setting, how text is cut before it is encoded), the file is refused.
"""

import fcntl
import importlib.util
import io
import json
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast

from pipeline.errors import PolicyError, StoreError
from pipeline.files.durable import atomic_path, file_digest, make_folder, remove_folder
from pipeline.files.sealed_json import read_sealed, write_sealed
from pipeline.machine.disk import free_bytes
from pipeline.policy.gguf_header import (
    expect_all_read,
    read_header,
    settle_splitting,
    token_ids,
)
from pipeline.policy.quiet_transformers import quiet_transformers
from pipeline.policy.tokenizer_loading import load_tokenizer
from pipeline.remote.mirror_paths import cache_folder
from pipeline.text import one_line, size

SEAL = "gguf.json"
_RULES = 2
"""Raise it with any change of what a file is turned into."""
_OTHER_BYTES = 100_000_000
"""Room for all files but the weights, and to spare."""


def dequantised(file: Path) -> Path:
    """Return the folder of the model in a GGUF file; it is made if it isn't there.

    Raises:
        PolicyError: the file can't be read or turned into such a folder, or there is no room.
    """
    status = file.stat()
    return _dequantised(file.resolve(), status.st_size, status.st_mtime_ns)


def gguf_source(folder: Path) -> dict[str, Any]:
    """Return what `gguf.json` says of the file that a folder was made of; empty: of none."""
    try:
        record = read_sealed(folder / SEAL)
    except (FileNotFoundError, StoreError):
        return {}
    return {name: record[name] for name in ("sha256", "types", "rules")}


@cache  # a file is hashed, and its folder checked, once in a process
def _dequantised(file: Path, _size: int, _modified: int) -> Path:
    if importlib.util.find_spec("gguf") is None:
        raise PolicyError(
            f"model.path {file}: reading a GGUF file takes the package gguf, which is not "
            "installed: in srpo's clone, pip install -e '.[gguf]'"
        )
    sha256 = file_digest(file)
    folder = cache_folder() / "gguf" / f"{sha256[:16]}-{_RULES}"
    if _is_whole(folder):
        return folder
    header = read_header(file)
    make_folder(folder.parent)
    with _alone_in(folder.parent):
        if not _is_whole(folder):
            _expect_room(file, folder, sum(tensor.n_elements for tensor in header.tensors))
            print(f"{file.name}: dequantising it once, to {folder}", file=sys.stderr)
            if folder.exists():
                remove_folder(folder)
            _make(file, header, sha256, folder)
    return folder


def _make(file: Path, header: Any, sha256: str, folder: Path) -> None:
    with atomic_path(folder) as temporary:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            with _bars_on_terminals_only():
                _write(file, header, temporary)
            types = Counter(tensor.tensor_type.name for tensor in header.tensors)
            record = {
                "sha256": sha256,
                "types": dict(sorted(types.items())),
                "rules": _RULES,
                "files": {path.name: file_digest(path) for path in sorted(temporary.iterdir())},
            }
            write_sealed(temporary / SEAL, record)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def _write(file: Path, header: Any, folder: Path) -> None:
    """Write configuration, tokenizer and float32 weights of a file whose header is accepted."""
    with tempfile.TemporaryDirectory() as alone:
        # transformers looks for a tokenizer's files beside the one it is given
        link = Path(alone) / "model.gguf"
        link.symlink_to(file)
        try:
            with quiet_transformers():
                model = _model(link, header)
                tokenizer = PreTrainedTokenizerFast.from_pretrained(
                    alone, gguf_file=link.name, trust_remote_code=False
                )
                settle_splitting(header, tokenizer)
        except PolicyError as error:
            raise PolicyError(f"model.path {file}: {error}") from None
        except Exception as error:  # whatever a foreign file makes the libraries raise
            raise PolicyError(
                f"model.path {file}: a GGUF file that transformers can't read: {one_line(error)}"
            ) from None
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    for name in ("config.json", "generation_config.json"):
        _drop_version(folder / name)
    try:
        load_tokenizer(folder)
    except PolicyError as error:
        reason = str(error).replace(f"{folder}", "what was made of it")
        raise PolicyError(f"model.path {file}: no tokenizer can be made of it: {reason}") from None


def _drop_version(path: Path) -> None:
    """Leave out the version that wrote a file: another would make a folder of other digests."""
    entries = json.loads(path.read_text(encoding="utf-8"))
    del entries["transformers_version"]
    path.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")


def _model(link: Path, header: Any) -> Any:
    """Return the model with its weights in float32."""
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    config: Any = AutoConfig.from_pretrained(
        link.parent, gguf_file=link.name, trust_remote_code=False
    )
    vars(config).pop("_model_name_or_path", None)  # the title in the header
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    expect_all_read(header, model)
    found = load_gguf_checkpoint(
        str(link), return_tensors=True, model_to_load=model, torch_dtype=torch.float32
    )
    model.load_state_dict(found["tensors"], strict=False, assign=True)
    model.tie_weights()
    if missing := [name for name, weight in model.named_parameters() if weight.is_meta]:
        raise PolicyError(
            f"it lacks {len(missing)} weights of a {type(model).__name__}: {', '.join(missing[:3])}"
        )
    model.generation_config = GenerationConfig(**token_ids(header))
    return model


@contextmanager
def _bars_on_terminals_only() -> Iterator[None]:
    """Hide the bars of transformers where they would fill a log."""
    if sys.stderr.isatty():
        yield
    else:
        with redirect_stderr(io.StringIO()):
            yield


def _is_whole(folder: Path) -> bool:
    """Tell whether a folder is there with every file as it was written."""
    try:
        files = read_sealed(folder / SEAL)["files"]
        return all(file_digest(folder / name) == digest for name, digest in files.items())
    except (FileNotFoundError, StoreError):
        return False


def _expect_room(file: Path, folder: Path, parameters: int) -> None:
    needed, free = 4 * parameters + _OTHER_BYTES, free_bytes(folder)
    if free < needed:
        raise PolicyError(
            f"model.path {file}: in float32 it takes {size(needed)} in {folder.parent}, where "
            f"{size(free)} are free; make room there, or set SRPO_CACHE to a folder elsewhere"
        )


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Keep other processes and ranks out for the length of a block; they wait."""
    with (folder / ".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
