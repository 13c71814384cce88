"""Opening a folder's tokenizer: what is loaded encodes and decodes as its tokenizer.json does.

transformers chooses a class by `tokenizer_class` or by the kind of model, and some classes build
their own pipeline from the vocabulary alone: a byte-level tokenizer that is called LlamaTokenizer
would lose every space. So the file is used as it is. The other files only name tokens (`eos_token`
and so on), and are refused where they contradict it.
"""

import importlib.util
import json
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from pipeline.errors import PolicyError
from pipeline.policy.quiet_transformers import quiet_transformers
from pipeline.text import one_line, printable

FILE = "tokenizer.json"
PROBE = (
    "What is two plus two?  It's 4, not 1234567.89e-5:\n\n\tx = [a, b]; don't\n"
    "   indented\r\nÄpfel für 5 € – naïve Ωμέγα 你好 🙂 end . ﬁ①\n"
)
"""A text that a tokenizer has to give back: spaces, newlines, tabs, digits, non-ASCII."""

_VOCABULARIES = ("tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "tekken.json")
_SHOWN = 60


def load_tokenizer(folder: Path) -> Any:
    """Return the tokenizer of a model folder.

    Without a tokenizer.json, transformers makes one of the vocabulary files that are there.

    Raises:
        PolicyError: it can't be opened, other files contradict tokenizer.json, or it doesn't give
            texts back.
    """
    path = folder / FILE
    if not path.is_file() and not any((folder / name).is_file() for name in _VOCABULARIES):
        raise PolicyError(
            f"{folder}: a model folder without a tokenizer; expected {FILE} "
            f"(or one of {', '.join(_VOCABULARIES)})"
        )
    try:
        with quiet_transformers():
            if path.is_file():
                core = Tokenizer.from_file(str(path))
                _expect_agreement(folder, core)
                tokenizer: Any = PreTrainedTokenizerFast.from_pretrained(
                    folder, trust_remote_code=False
                )
            else:
                core, tokenizer = (
                    None,
                    AutoTokenizer.from_pretrained(folder, trust_remote_code=False),
                )
    except PolicyError:
        raise
    except Exception as error:  # whatever a foreign folder makes the libraries raise
        raise PolicyError(f"model.path {folder}: {_reason(folder, error)}") from None
    if core is None:
        if not getattr(tokenizer, "is_fast", False):
            raise PolicyError(
                f"{folder}: its {type(tokenizer).__name__} can't be written as {FILE}, which "
                "audits and replays need; save one beside it"
            )
    else:
        _use_as_it_is(tokenizer, core)
    try:
        _expect_texts_back(folder, tokenizer)
    except PolicyError:
        raise
    except Exception as error:  # flags of strange types show when a text is encoded
        raise PolicyError(f"model.path {folder}: {_reason(folder, error)}") from None
    return tokenizer


def tokenizer_notes(folder: Path, tokenizer: Any) -> list[str]:
    """Return what a user should know of a tokenizer that is used nevertheless."""
    notes = []
    if not (folder / FILE).is_file():
        notes.append(
            f"the model has no {FILE}: {type(tokenizer).__name__} of transformers made one of its "
            "vocabulary files"
        )
    unknown, given, found = _round_trip(tokenizer)
    if unknown:
        notes.append(
            "the tokenizer does not know the characters "
            f"{printable(' '.join(map(repr, unknown)), 200)}"
        )
    if found != given:
        before, after = _first_difference(given, found)
        notes.append(
            f"the tokenizer normalises texts: {printable(repr(before))} comes back as "
            f"{printable(repr(after))}"
        )
    return notes


def _reason(folder: Path, error: Exception) -> str:
    if (folder / FILE).is_file():
        return f"its tokenizer can't be opened: {one_line(error)}"
    if list(folder.glob("*.model")) and importlib.util.find_spec("sentencepiece") is None:
        reason = "a .model file can be read with the package sentencepiece only (not installed)"
    else:
        reason = one_line(error)
    return (
        f"it has no {FILE}, and none can be made of its other files: {reason}; where they can be "
        "read, AutoTokenizer.from_pretrained(…).save_pretrained(…) of transformers makes one"
    )


def _use_as_it_is(tokenizer: Any, core: Tokenizer) -> None:
    """Give a tokenizer the pipeline of its file, which transformers may have changed on the way.

    Only two things are set: the tokens that have a role (`eos_token` …) are special, so that
    decoding can leave them out, and nothing is cut, padded or left to chance. A role that names a
    piece of ordinary text (`pad_token` "!") changes nothing: texts would lose it.
    """
    core.no_truncation()
    core.no_padding()
    core.encode_special_tokens = False
    if getattr(core.model, "dropout", None):
        core.model.dropout = None  # of BPE: random merges, meant for its training
    special = {token.content for token in core.get_added_tokens_decoder().values() if token.special}
    roles = [
        str(token) for token in tokenizer.special_tokens_map.values() if isinstance(token, str)
    ]
    core.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token in roles
            if token not in special and not _is_text(core, token)
        ]
    )
    tokenizer._tokenizer = core
    for flag in ("clean_up_tokenization_spaces", "split_special_tokens"):
        setattr(tokenizer, flag, False)
        if tokenizer.init_kwargs.get(flag):
            tokenizer.init_kwargs[flag] = False  # is saved with it


def _is_text(core: Tokenizer, token: str) -> bool:
    """Say whether a token that has a role is what ordinary text is made of, as "!"."""
    plain = not re.fullmatch(r"[<\[{|].+[>\]}|]", token) and token not in {
        added.content for added in core.get_added_tokens_decoder().values()
    }
    return plain and core.encode(token, add_special_tokens=False).ids == [core.token_to_id(token)]


def _expect_agreement(folder: Path, core: Tokenizer) -> None:
    """Refuse files that give a token another id than tokenizer.json, or name one it hasn't."""
    for file, token, number in _named_tokens(folder):
        found = core.token_to_id(token)
        shown = printable(repr(token), _SHOWN)
        if found is None:
            raise PolicyError(
                f"{folder}: {file} names the token {shown}, which {FILE} does not know; "
                "correct or remove the file that is wrong"
            )
        if number is not None and number != found:
            raise PolicyError(
                f"{folder}: the token {shown} has id {number} in {file} and {found} in {FILE}; "
                "correct or remove the file that is wrong"
            )


def _named_tokens(folder: Path) -> Iterator[tuple[str, str, int | None]]:
    """Yield the tokens that other files name: file, token, and its id if the file says it."""
    added = _read_object(folder / "added_tokens.json")
    for token, number in added.items():
        yield "added_tokens.json", token, number if isinstance(number, int) else None
    config = _read_object(folder / "tokenizer_config.json")
    decoder = config.get("added_tokens_decoder")
    for number, entry in (decoder if isinstance(decoder, dict) else {}).items():
        if (content := _content(entry)) is not None:
            yield "tokenizer_config.json", content, int(number) if number.isdecimal() else None
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        for key, value in _read_object(folder / file).items():
            named = [value] if key.endswith("_token") else []
            if key in ("additional_special_tokens", "extra_special_tokens"):
                listed = value.values() if isinstance(value, dict) else value
                named = list(listed or [])
            for entry in named:
                if (content := _content(entry)) is not None:
                    yield file, content, None


def _content(entry: Any) -> str | None:
    content = entry.get("content") if isinstance(entry, dict) else entry
    return content if isinstance(content, str) else None


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}  # opening the tokenizer says what is wrong
    return content if isinstance(content, dict) else {}


def _expect_texts_back(folder: Path, tokenizer: Any) -> None:
    """Refuse a tokenizer that loses or replaces what it knows, and not by normalising."""
    unknown, given, found = _round_trip(tokenizer)
    if not (folder / FILE).is_file() and (ascii_ := [c for c in unknown if c.isascii()]):
        raise PolicyError(
            f"{folder}: it has no {FILE}, and the {type(tokenizer).__name__} made of other files "
            f"does not know {printable(' '.join(ascii_), 100)}; save the model's own {FILE} there"
        )
    if found == given or _normal(found) == _normal(given):
        return
    if _unknown_id(tokenizer) in _encode(tokenizer, given):
        return  # pieces it doesn't know, of characters that it does
    before, after = _first_difference(given, found)
    raise PolicyError(
        f"{folder}: its tokenizer gives texts back changed: {printable(repr(before))} comes back "
        f"as {printable(repr(after))}; put the model's own tokenizer files there"
    )


def _round_trip(tokenizer: Any) -> tuple[list[str], str, str]:
    """Return the characters of the probe that are unknown, the probe without them, and what of
    that comes back."""
    unknown_id = _unknown_id(tokenizer)
    unknown = []
    for character in sorted(set(PROBE)):
        ids = _encode(tokenizer, character)
        lost = not ids and not character.isspace()  # spaces that are dropped are no such case
        if lost or (unknown_id is not None and unknown_id in ids):
            unknown.append(character)
    given = "".join(character for character in PROBE if character not in unknown)
    return unknown, given, tokenizer.decode(_encode(tokenizer, given), skip_special_tokens=False)


def _encode(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _unknown_id(tokenizer: Any) -> int | None:
    """Return the id that stands for what the vocabulary lacks, if there is one."""
    core = tokenizer.backend_tokenizer
    token = getattr(core.model, "unk_token", None) or tokenizer.unk_token
    found: int | None = None if token is None else core.token_to_id(str(token))
    return found


def _normal(text: str) -> str:
    """Return a text without what normalisers change: case, accents, width, runs of spaces.

    Spaces beside punctuation and between characters beyond ASCII don't count, those between words
    do: WordPiece sets Chinese characters apart.
    """
    plain = re.sub(r"(?<=[^\x00-\x7f])\s+(?=[^\x00-\x7f])", "", text)
    plain = unicodedata.normalize("NFKD", plain).casefold()
    plain = "".join(c for c in plain if not unicodedata.combining(c))
    plain = re.sub(r"\s*([^\w\s])\s*", r"\1", plain)
    return " ".join(plain.split())


def _first_difference(given: str, found: str) -> tuple[str, str]:
    """Return both texts from a little before where they part."""
    start = next((i for i, (a, b) in enumerate(zip(given, found, strict=False)) if a != b), 0)
    start = max(0, start - 10)
    return given[start : start + 30], found[start : start + 30]
