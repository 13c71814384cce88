"""Single tokens as texts: pieces join to the response, parts of characters show their bytes."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from pipeline.audit.token_texts import TokenTexts
from pipeline.errors import StoreError

TEXT = "hello world\n 12, hello"


def byte_level(folder: Path) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=280, initial_alphabet=alphabet, special_tokens=["<end>"], show_progress=False
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer


def byte_fallback(folder: Path) -> Tokenizer:
    """Return a tokenizer whose decoder drops the space that a text begins with."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
         decoders.Strip(" ", 1, 0)]
    )  # fmt: skip
    special = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([TEXT, "a"], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer


@pytest.mark.parametrize("make", [byte_level, byte_fallback])
def test_pieces_join_to_the_text(tmp_path: Path, make: object) -> None:
    tokenizer = make(tmp_path)  # type: ignore[operator]
    texts = TokenTexts(tmp_path)
    ids = tokenizer.encode("hello world 12").ids
    assert len(ids) >= 3
    assert "".join(map(texts, ids)).removeprefix(" ") == "hello world 12"


@pytest.mark.parametrize("make", [byte_level, byte_fallback])
def test_parts_of_a_character_are_shown_as_bytes(tmp_path: Path, make: object) -> None:
    tokenizer = make(tmp_path)  # type: ignore[operator]
    texts = TokenTexts(tmp_path)
    assert [texts(i) for i in tokenizer.encode("€").ids][-3:] == ["⟨e2⟩", "⟨82⟩", "⟨ac⟩"]


def test_special_and_unknown_tokens(tmp_path: Path) -> None:
    tokenizer = byte_level(tmp_path)
    texts = TokenTexts(tmp_path)
    assert texts(tokenizer.token_to_id("<end>") or 0) == "<end>"
    assert texts(999_999) == "⟨999999⟩"
    assert texts(-1) == "⟨-1⟩"


def test_a_missing_or_broken_tokenizer_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"tokenizer\.json: missing"):
        TokenTexts(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(StoreError, match="not a readable tokenizer"):
        TokenTexts(tmp_path)
