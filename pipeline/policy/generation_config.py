"""generation_config.json: srpo takes token ids from it, and none of its sampling settings."""

import json
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_SAMPLING = (
    *("do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p", "top_h"),
    *("epsilon_cutoff", "eta_cutoff", "repetition_penalty", "num_beams", "penalty_alpha"),
    *("no_repeat_ngram_size", "max_length", "max_new_tokens", "min_new_tokens", "length_penalty"),
    *("stop_strings", "bad_words_ids", "suppress_tokens", "forced_eos_token_id"),
)


def usable_generation_config(folder: Path) -> GenerationConfig | None:
    """Return the token ids alone where a folder's sampling settings can't be used; else None.

    Settings that are wrong keep a model from being opened, and those that contradict each other
    (a temperature without sampling) from being saved.
    """
    content = _read(folder)
    if content is None:
        return GenerationConfig()
    if not content:
        return None
    try:
        GenerationConfig.from_dict(content).validate(strict=True)
    except Exception:  # whatever a foreign file makes transformers raise; only ids matter here
        return GenerationConfig(**{name: content[name] for name in _IDS if name in content})
    return None


def sampling_note(folder: Path) -> list[str]:
    """Return a line on sampling settings that a folder has and srpo doesn't use."""
    content = _read(folder)
    if content is None:
        return ["the model's generation_config.json is not readable JSON: it is not used"]
    names = [name for name in _SAMPLING if content.get(name) is not None]
    if not names:
        return []
    return [
        f"{', '.join(names)} of the model's generation_config.json are not used: sampling follows "
        "sections generate and evaluate"
    ]


def _read(folder: Path) -> dict[str, Any] | None:
    """Return what the file holds, empty if there is none; None: it isn't readable."""
    try:
        content = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None
