"""Tokenizers: what is loaded is tokenizer.json, whatever the files beside it say."""

import json
import shutil
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from data.random_policy import write_random_policy
from pipeline.errors import PolicyError
from pipeline.policy.tokenizer_loading import load_tokenizer, tokenizer_notes
from tests.builders.policies import LOWERCASE, PRINTABLE, open_on_cpu, tokenizer_of

TEXT = "What is two plus two?  <|im_end|>\n\tÄ 你好 🙂 1234567.8\r\n"


@pytest.fixture(scope="module")
def random_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("random")
    write_random_policy(folder, ["What is two plus two? Tom has 3 apples.\n"], 0)
    return folder


@pytest.fixture
def folder(random_folder: Path, tmp_path: Path) -> Path:
    """Return a copy of a byte-level policy's folder."""
    copied = tmp_path / "policy"
    shutil.copytree(random_folder, copied)
    return copied


def configure(folder: Path, **changes: Any) -> None:
    """Change keys of tokenizer_config.json."""
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def own_ids(folder: Path, text: str = TEXT) -> list[int]:
    """Encode as the folder's tokenizer.json does."""
    core = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids: list[int] = core.encode(text, add_special_tokens=False).ids
    return ids


def ids_of(tokenizer: Any, text: str = TEXT) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def test_a_role_of_an_ordinary_piece_changes_no_text(folder: Path) -> None:
    configure(folder, pad_token="!")
    tokenizer = load_tokenizer(folder)
    assert ids_of(tokenizer, "5! is 120!") == own_ids(folder, "5! is 120!")
    assert tokenizer.decode(ids_of(tokenizer, "5!"), skip_special_tokens=True) == "5!"


@pytest.mark.parametrize(
    "name",
    [
        *("LlamaTokenizerFast", "LlamaTokenizer", "GPT2Tokenizer", "T5TokenizerFast"),
        *("Qwen2Tokenizer", "BertTokenizer", "XLNetTokenizer", "NoSuchTokenizer"),
    ],
)
def test_another_class_over_a_byte_level_file(folder: Path, tmp_path: Path, name: str) -> None:
    configure(folder, tokenizer_class=name)
    policy = open_on_cpu(folder)
    assert ids_of(policy.tokenizer) == own_ids(folder)
    assert policy.tokenizer.decode(own_ids(folder)) == TEXT
    assert policy.encode(TEXT) == own_ids(folder)
    assert policy.decode(own_ids(folder)) == TEXT.replace("<|im_end|>", "")
    assert policy.notes == []
    # What a run keeps, and what is exported, opens with transformers as the same tokenizer.
    policy.tokenizer.save_pretrained(tmp_path / "kept")
    shutil.copy(folder / "config.json", tmp_path / "kept")
    for again in (
        load_tokenizer(tmp_path / "kept"),
        AutoTokenizer.from_pretrained(tmp_path / "kept"),
    ):
        assert ids_of(again) == own_ids(folder)
        assert again.decode(own_ids(folder)) == TEXT


@pytest.mark.parametrize(
    "changes",
    [
        {"add_prefix_space": True},
        {"add_bos_token": True, "bos_token": "<|im_start|>"},
        {"add_eos_token": True},
        {"clean_up_tokenization_spaces": True},
        {"split_special_tokens": True},
        {"legacy": True},
        {"do_lower_case": True},
        {"fix_mistral_regex": True},
        {
            "added_tokens_decoder": {
                "1": {"content": "<|im_start|>", "lstrip": True, "rstrip": True, "special": False}
            }
        },
    ],
)
def test_flags_that_would_change_the_pipeline(folder: Path, changes: dict[str, Any]) -> None:
    configure(folder, **changes)
    tokenizer = load_tokenizer(folder)
    text = "a , b . <|im_start|> c <|im_end|>  don 't"
    assert ids_of(tokenizer, text) == own_ids(folder, text)
    assert tokenizer.decode(own_ids(folder, text)) == text


def test_cutting_padding_and_chance_are_off(folder: Path) -> None:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["truncation"] = {
        **{"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    }
    content["model"]["dropout"] = 0.9
    expected = own_ids(folder)
    path.write_text(json.dumps(content))
    tokenizer = load_tokenizer(folder)
    assert [ids_of(tokenizer) for _ in range(5)] == [expected] * 5
    assert tokenizer.backend_tokenizer.encode(TEXT, add_special_tokens=False).ids == expected


@pytest.mark.parametrize(
    ("file", "changes", "telling"),
    [
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {"0": {"content": "<|im_end|>"}}},
            r"the token '<\|im_end\|>' has id 0 in tokenizer_config.json and 2 in tokenizer.json",
        ),
        ("added_tokens.json", {"<|im_start|>": 7}, r"has id 7 in added_tokens.json and 1 in"),
        ("added_tokens.json", {"<tool>": 270}, r"names the token '<tool>', which tokenizer.json"),
        ("tokenizer_config.json", {"eos_token": "</s>"}, r"names the token '</s>', which"),
        ("tokenizer_config.json", {"bos_token": {"content": "<s>"}}, r"names the token '<s>'"),
        ("tokenizer_config.json", {"additional_special_tokens": ["<x>"]}, r"the token '<x>'"),
        ("special_tokens_map.json", {"pad_token": "[PAD]"}, r"special_tokens_map.json names"),
    ],
)
def test_files_that_contradict_each_other(
    folder: Path, file: str, changes: dict[str, Any], telling: str
) -> None:
    path = folder / file
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**content, **changes}))
    with pytest.raises(PolicyError, match=telling) as caught:
        load_tokenizer(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"model_max_length": "x"},
        {"padding_side": "up"},
        {"additional_special_tokens": 5},
        {"added_tokens_decoder": [1]},
    ],
)
def test_flags_of_strange_types(folder: Path, changes: dict[str, Any]) -> None:
    configure(folder, **changes)
    with pytest.raises(PolicyError, match="its tokenizer can't be opened: ") as caught:
        load_tokenizer(folder)
    assert "\n" not in str(caught.value)


def test_tokens_with_a_role_are_left_out_of_texts(folder: Path) -> None:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    for token in content["added_tokens"]:
        token["special"] = False
    path.write_text(json.dumps(content))
    tokenizer = load_tokenizer(folder)
    assert tokenizer.decode(ids_of(tokenizer, "4<|im_end|>"), skip_special_tokens=True) == "4"


def bytes_core() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return core


def metaspace_core() -> Tokenizer:
    """Return a tokenizer as SentencePiece models have: ▁ for spaces, bytes for the unknown."""
    words = ["<unk>", *(f"<0x{i:02X}>" for i in range(256)), "▁", *string.ascii_letters]
    vocabulary = {word: i for i, word in enumerate(words)}
    model = models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True)
    core = Tokenizer(model)
    core.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    core.decoder = decoders.Sequence(
        [
            *(decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return core


def with_parts(**parts: Any) -> Tokenizer:
    core = bytes_core()
    for name, part in parts.items():
        setattr(core, name, part)
    return core


def wordpiece_core() -> Tokenizer:
    pieces = [*string.ascii_lowercase, *string.digits, *string.punctuation]
    words = ["[UNK]", "what", "is", "你", "好", *pieces, *(f"##{piece}" for piece in pieces)]
    core = Tokenizer(models.WordPiece(vocab={w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer()
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
    return core


def saved(folder: Path, core: Tokenizer, **named: Any) -> Path:
    PreTrainedTokenizerFast(tokenizer_object=core, **named).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("make", "notes"),
    [
        (bytes_core, []),
        (metaspace_core, []),
        (lambda: with_parts(normalizer=normalizers.Lowercase()), ["normalises texts"]),
        (lambda: with_parts(normalizer=normalizers.NFKC()), ["normalises texts"]),
        (lambda: with_parts(pre_tokenizer=pre_tokenizers.ByteLevel()), ["normalises texts"]),
        (wordpiece_core, ["does not know the characters", "normalises texts"]),
        (lambda: tokenizer_of(PRINTABLE).backend_tokenizer, ["does not know the characters"]),
        (
            lambda: tokenizer_of(LOWERCASE).backend_tokenizer,
            ["does not know the characters", "normalises texts"],
        ),
    ],
)
def test_what_normalises_is_warned_of(
    tmp_path: Path, make: Callable[[], Tokenizer], notes: list[str]
) -> None:
    folder = saved(tmp_path, make())
    found = tokenizer_notes(folder, load_tokenizer(folder))
    assert len(found) == len(notes)
    assert all(part in note for part, note in zip(notes, found, strict=True))


@pytest.mark.parametrize(
    ("make", "comes_back"),
    [
        (lambda: with_parts(decoder=decoders.Fuse()), "WhatĠisĠtwo"),
        (
            lambda: with_parts(
                pre_tokenizer=pre_tokenizers.Sequence(
                    [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
                )
            ),
            "Whatistwoplustwo",
        ),
    ],
)
def test_a_file_that_loses_text_is_refused(
    tmp_path: Path, make: Callable[[], Tokenizer], comes_back: str
) -> None:
    folder = saved(tmp_path, make())
    with pytest.raises(PolicyError, match=f"gives texts back changed: .*{comes_back}"):
        load_tokenizer(folder)


def without_file(folder: Path, name: str) -> Path:
    """Leave vocab.json and merges.txt of a byte-level tokenizer, and a class for them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {c: i for i, c in enumerate([*alphabet, "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen3"}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name}))
    return folder


@pytest.mark.parametrize("name", ["GPT2Tokenizer", "Qwen2Tokenizer"])
def test_a_folder_of_vocabulary_files(tmp_path: Path, name: str) -> None:
    folder = without_file(tmp_path, name)
    tokenizer = load_tokenizer(folder)
    text = TEXT.replace("<|im_end|>", "")
    assert tokenizer.decode(ids_of(tokenizer, text)) == text
    (note,) = tokenizer_notes(folder, tokenizer)
    assert note.startswith(f"the model has no tokenizer.json: {name} of transformers made one")
    tokenizer.save_pretrained(tmp_path / "kept")
    assert ids_of(load_tokenizer(tmp_path / "kept"), text) == ids_of(tokenizer, text)


@pytest.mark.parametrize("name", ["LlamaTokenizer", "T5Tokenizer"])
def test_vocabulary_files_under_another_class(tmp_path: Path, name: str) -> None:
    with pytest.raises(PolicyError, match=f"no tokenizer.json, and the {name} made of other"):
        load_tokenizer(without_file(tmp_path, name))


def test_a_folder_with_a_sentencepiece_model_alone(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"\x0a\x05hello")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(
        PolicyError, match=r"it has no tokenizer.json, and none can be made"
    ) as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


def test_more_tokens_than_logits(folder: Path) -> None:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    token = {**content["added_tokens"][0], "id": 40_000, "content": "<|extra|>"}
    content["added_tokens"].append(token)
    content["model"]["vocab"]["<|extra|>"] = 40_000
    path.write_text(json.dumps(content))
    with pytest.raises(PolicyError, match="ids up to 40000, the model only 32768 logits"):
        open_on_cpu(folder)
