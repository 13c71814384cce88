"""`srpo doctor MODEL`: what it shows of models that end turns or think in their own ways."""

import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from flows.terminal.model_report import print_model_report
from pipeline.errors import ConfigError, SrpoError
from tests.builders.chat_templates import DEEPSEEK_R1, FAMILIES, Family, vocabulary_of
from tests.builders.policies import write_tiny_policy


def report(folder: Path, *overrides: str) -> tuple[str, bool]:
    page = io.StringIO()
    well = print_model_report(Console(file=page, width=300), str(folder), overrides)
    return page.getvalue(), well


def model(folder: Path, family: Family) -> Path:
    write_tiny_policy(folder, 0, vocabulary_of(family))
    return folder


def test_a_model_that_can_be_used(tmp_path: Path) -> None:
    page, well = report(model(tmp_path, FAMILIES["chatml"]))
    assert well
    for said in (
        "Qwen3ForCausalLM, ",
        "2048 positions, on cpu",
        "<|endoftext|> (1: generation config, tokenizer), <|im_end|> (3: chat template)",
        "a group's prompt is encoded once",
        "<|im_start|>user\nWhat is two plus two?<|im_end|>\n<|im_start|>assistant\n|\n",
    ):
        assert said in page, said


def test_how_much_of_it_adapters_are(tmp_path: Path) -> None:
    folder = model(tmp_path, FAMILIES["chatml"])
    page, _ = report(folder, "model.lora.rank=2", 'model.lora.targets=["o_proj"]')
    # o_proj is [32, 32] in each of two layers: 2 * (2 * 32 + 32 * 2) = 256
    assert re.search(
        r"trained +adapters of rank 2: 256 of [\d,]+ parameters; the rest in float32", page
    )
    assert "adapters of rank" not in report(folder)[0]


def test_a_model_without_system_turn(tmp_path: Path) -> None:
    folder = model(tmp_path, FAMILIES["gemma"])
    page, well = report(folder)
    assert well and 'set model.system_role = "fold"' in page
    page, well = report(folder, "model.system_role=fold")
    assert well and "user\nAnswer briefly.\n\nWhat is two plus two?<end_of_turn>" in page


def test_a_model_that_thinks_and_asks_for_the_time(tmp_path: Path) -> None:
    dated = "{{ strftime_now('%Y') }}" + DEEPSEEK_R1
    folder = model(tmp_path, FAMILIES["deepseek-r1"]._replace(template=dated))
    page, well = report(folder, "model.prompt_time=1999-12-31")
    assert well and "the prompt opens a think block" in page
    assert "the template asks for it: 1999-12-31 00:00:00" in page and "\n1999Answer" in page


def test_a_model_that_closes_turns_with_words(tmp_path: Path) -> None:
    page, well = report(model(tmp_path, FAMILIES["words"]))
    assert well and "'### End', which is no single token but 7: no stop token from there" in page


def test_a_model_that_makes_no_prompt(tmp_path: Path) -> None:
    broken = FAMILIES["chatml"]._replace(template="{{ raise_exception('never') }}")
    page, well = report(model(tmp_path, broken))
    assert not well and "the chat template refuses turns of user: never" in page


def test_a_tokenizer_that_changes_texts(tmp_path: Path) -> None:
    folder = model(tmp_path, FAMILIES["chatml"])
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["normalizer"] = {"type": "Lowercase"}
    path.write_text(json.dumps(tokenizer))
    page, well = report(folder)
    assert well and "the tokenizer normalises texts: " in page and 'comes back as "what is' in page


@pytest.mark.parametrize("setting", ["model.nothing=1", "model.stop_tokens=[99999]"])
def test_settings_that_can_not_be_used(tmp_path: Path, setting: str) -> None:
    folder = model(tmp_path, FAMILIES["chatml"])
    with pytest.raises(SrpoError):
        report(folder, setting)


def test_a_folder_that_is_not_there() -> None:
    with pytest.raises(SrpoError, match="no such model folder"):
        report(Path("/nowhere/at/all"))


def test_a_run_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(ConfigError, match="is a run, not a model: give a snapshot, "):
        report(tmp_path)
