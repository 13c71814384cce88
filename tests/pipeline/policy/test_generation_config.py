"""generation_config.json: sampling settings that contradict each other stop nobody."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.sections import ModelSection
from pipeline.policy.snapshots import load_snapshot, save_snapshot
from tests.builders.policies import EMA, PRINTABLE, open_on_cpu, write_tiny_policy


@pytest.mark.parametrize(
    "foreign",
    [
        {"do_sample": False, "temperature": 0.9},
        {"do_sample": False, "top_p": 0.9, "top_k": 20, "min_p": 0.1},
        {"temperature": 0.0, "do_sample": True},
        {"num_beams": 1, "length_penalty": 2.0, "early_stopping": True},
        {"max_new_tokens": -1},
        {"temperature": "hot"},
        {"cache_implementation": "nonsense"},
        {"repetition_penalty": -1.0},
        {"penalty_alpha": 0.6, "top_k": 0},
    ],
)
def test_foreign_sampling_settings_are_ignored(tmp_path: Path, foreign: dict[str, Any]) -> None:
    folder = tmp_path / "policy"
    write_tiny_policy(folder, 0, PRINTABLE)
    path = folder / "generation_config.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, **foreign}))
    policy = open_on_cpu(folder)
    assert policy.eos_ids == {2}
    noted = [name for name in foreign if name not in ("early_stopping", "cache_implementation")]
    (note,) = [n for n in policy.notes if "generation_config.json" in n] or [""]
    assert all(name in note for name in noted)
    save_snapshot(policy, tmp_path / "kept", 0)
    section = ModelSection(path=str(folder), device="cpu")
    assert load_snapshot(tmp_path / "kept", section, EMA).eos_ids == {2}


@pytest.mark.parametrize("text", ["{", "[]", "1", ""])
def test_a_file_that_is_not_readable_is_noted(tmp_path: Path, text: str) -> None:
    write_tiny_policy(tmp_path, 0, PRINTABLE)
    (tmp_path / "generation_config.json").write_text(text)
    policy = open_on_cpu(tmp_path)
    assert policy.eos_ids == {2}  # by tokenizer and template
    assert "the model's generation_config.json is not readable JSON: it is not used" in policy.notes


def test_settings_that_are_sound_are_kept_for_others(tmp_path: Path) -> None:
    folder = tmp_path / "policy"
    write_tiny_policy(folder, 0, PRINTABLE)
    path = folder / "generation_config.json"
    sound = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95}
    path.write_text(json.dumps({**json.loads(path.read_text()), **sound}))
    policy = open_on_cpu(folder)
    (note,) = [n for n in policy.notes if "generation_config.json" in n]
    assert note.startswith("do_sample, temperature, top_k, top_p of the model's generation_config")
    save_snapshot(policy, tmp_path / "kept", 0)
    kept = json.loads((tmp_path / "kept" / "generation_config.json").read_text())
    assert kept.items() >= sound.items()
