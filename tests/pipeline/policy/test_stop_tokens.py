"""Stop tokens: what ends a turn by generation config, tokenizer and chat template together."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.errors import PolicyError
from pipeline.policy.prompts import Prompts
from pipeline.policy.stop_tokens import StopTokens, closing_token, stop_tokens
from tests.builders.chat_templates import (
    CHATML,
    FAMILIES,
    family_tokenizer,
    settings,
    vocabulary_of,
)
from tests.builders.policies import open_on_cpu, write_tiny_policy

Eos = int | list[Any] | None


def found(tokenizer: Any, eos: Eos = None, **model: Any) -> StopTokens:
    config = SimpleNamespace(eos_token_id=eos)
    return stop_tokens(config, tokenizer, settings(**model), 200, "the model")


@pytest.mark.parametrize("name", FAMILIES)
def test_the_closing_token_of_a_family(name: str) -> None:
    tokenizer, closes = family_tokenizer(name), FAMILIES[name].closes
    closing = closing_token(tokenizer, Prompts(tokenizer, settings()))
    wanted = None if closes is None else tokenizer.convert_tokens_to_ids(closes)
    assert closing.token == wanted
    assert bool(closing.note) == (closes is None)


def test_what_closes_with_words_or_with_nothing_is_said() -> None:
    assert "'### End', which is no single token but 7" in found(family_tokenizer("words")).note
    assert "with no token" in found(family_tokenizer("open-ended")).note


@pytest.mark.parametrize(
    ("template", "token"),
    [
        (CHATML.replace("<|im_end|>\n", "\n<|im_end|>\n"), "<|im_end|>"),  # on a line of its own
        (CHATML.replace("<|im_end|>\n", "<|im_end|><|endoftext|>"), "<|im_end|>"),  # the first
        (CHATML.replace("<|im_end|>\n", "#"), "#"),  # an ordinary token
        (CHATML.replace("<|im_end|>\n", "\n"), None),
        # The header always follows; what opens a turn doesn't close one.
        (CHATML.replace("<|im_end|>\n", "") + "<|im_start|>assistant\n", None),
        (CHATML.replace("{% if add_generation_prompt %}", "{% if true %}"), "<|im_end|>"),
        ("{{ messages[0].content }}{{ eos_token }}", None),  # the answer isn't in it
        ("{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}", "<|endoftext|>"),
        ("{{ raise_exception('no') if messages | length > 1 }}", None),
        (
            "{{ raise_exception('no') if messages[0].role != 'system' }}"
            "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}",
            "<|im_end|>",
        ),
    ],
)
def test_closing_tokens(template: str, token: str | None) -> None:
    tokenizer = family_tokenizer("chatml")
    tokenizer.chat_template = template
    closing = closing_token(tokenizer, Prompts(tokenizer, settings()))
    assert closing.token == (None if token is None else tokenizer.convert_tokens_to_ids(token))


@pytest.mark.parametrize(
    ("eos", "config"),
    [(None, []), ([], []), (1, ["<|endoftext|>"]), ([5, 1, 5], ["!", "<|endoftext|>"])],
)
def test_the_union_of_three(eos: Eos, config: list[str]) -> None:
    tokenizer = family_tokenizer("chatml")  # its own eos is <|endoftext|>, id 1
    eos = [tokenizer.convert_tokens_to_ids("!") if i == 5 else i for i in eos] if (
        isinstance(eos, list)
    ) else eos  # fmt: skip
    stops = found(tokenizer, eos)
    assert set(stops.names.values()) == {*config, "<|endoftext|>", "<|im_end|>"}
    assert stops.sources[3] == ["chat template"]
    assert ("generation config" in stops.sources[1]) == ("<|endoftext|>" in config)
    assert "<|im_end|> (3: chat template)" in stops.line
    assert {"id": 3, "token": "<|im_end|>", "from": ["chat template"]} in stops.record()


def test_a_tokenizer_without_eos() -> None:
    tokenizer = family_tokenizer("chatml")
    tokenizer.eos_token = None
    assert set(found(tokenizer).sources) == {3}
    assert set(found(tokenizer, 1).sources) == {1, 3}


@pytest.mark.parametrize("eos", [["2"], [None], [1.5], True, "2"])
def test_ids_that_are_none(eos: Any) -> None:
    with pytest.raises(PolicyError, match=r"the model: EOS is .* by its generation config"):
        found(family_tokenizer("chatml"), eos)


@pytest.mark.parametrize("eos", [200, -1, 10**9, [1, 200]])
def test_ids_beyond_the_logits(eos: Eos) -> None:
    with pytest.raises(PolicyError, match="the model has 200 logits"):
        found(family_tokenizer("chatml"), eos)


def test_nobody_names_any() -> None:
    tokenizer = family_tokenizer("open-ended")
    tokenizer.eos_token = None
    with pytest.raises(PolicyError, match=r"with no token; name one with model\.stop_tokens"):
        found(tokenizer)
    assert set(found(tokenizer, stop_tokens=["#"]).names.values()) == {"#"}


def test_settings_replace_or_add() -> None:
    tokenizer = family_tokenizer("chatml")
    assert set(found(tokenizer, 1, stop_tokens=["<|im_start|>", 3]).sources) == {2, 3}
    assert set(found(tokenizer, 1, extra_stop_tokens=["<|im_start|>"]).sources) == {1, 2, 3}
    assert set(found(tokenizer, 1, stop_tokens=[3], extra_stop_tokens=[2]).sources) == {2, 3}
    with pytest.raises(PolicyError, match=r"model\.extra_stop_tokens: 'End' is no single token"):
        found(tokenizer, extra_stop_tokens=["End"])
    with pytest.raises(PolicyError, match="the model has 200 logits"):
        found(tokenizer, stop_tokens=[200])
    with pytest.raises(PolicyError, match=r"model\.stop_tokens is empty"):
        found(tokenizer, stop_tokens=[])


def test_a_token_may_stand_alone() -> None:
    assert settings(stop_tokens="<|im_end|>").stop_tokens == ["<|im_end|>"]
    assert settings(stop_tokens=3, extra_stop_tokens=4).extra_stop_tokens == [4]
    for other in (True, 1.5, {"a": 1}):
        with pytest.raises(ValueError, match="stop_tokens"):
            settings(stop_tokens=other)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A ChatML model whose generation config and tokenizer end at <|endoftext|>."""
    write_tiny_policy(tmp_path, 0, vocabulary_of(FAMILIES["chatml"]))
    yield tmp_path


def test_a_policy_has_them(folder: Path) -> None:
    path = folder / "generation_config.json"
    assert json.loads(path.read_text())["eos_token_id"] == 1
    policy = open_on_cpu(folder)
    assert policy.eos_ids == {1, 3}
    only = open_on_cpu(folder, stop_tokens=["<|endoftext|>"])
    assert only.eos_ids == {1} and only.version != policy.version


@pytest.mark.parametrize("stop", ["<|im_end|>", "#"])
def test_texts_lack_the_token_that_ended_them(folder: Path, stop: str) -> None:
    """Also one that is no special token."""
    policy = open_on_cpu(folder, stop_tokens=[stop])
    ids = policy.encode(f"a # b{stop}")
    assert policy.decode(ids) == "a # b"
    assert policy.decode(ids[:-1]) == "a # b"


def test_tags_of_think_blocks_stay_in_texts(tmp_path: Path) -> None:
    """Where they are special tokens, too: else the thinking would look like an answer."""
    family = FAMILIES["chatml"]
    family = family._replace(special=(*family.special, "<think>", "</think>"))
    write_tiny_policy(tmp_path, 0, vocabulary_of(family))
    policy = open_on_cpu(tmp_path)
    for text in ("<think>a</think>b", "a</think>b", "<think>", "a", ""):
        ids = policy.encode(text)
        assert policy.decode([*ids, 3]) == text
        assert policy.leaves_thinking_open("", ids) == (text == "<think>")
        assert policy.leaves_thinking_open("<think>\n", ids) == ("</think>" not in text)
