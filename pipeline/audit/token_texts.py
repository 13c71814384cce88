"""Token ids as texts, by the run's tokenizer, without the model or transformers."""

import re
from functools import cache, lru_cache
from pathlib import Path

from tokenizers import Tokenizer

from pipeline.errors import StoreError

_REPLACEMENT = "�"
_BYTE = re.compile("<0x([0-9A-F]{2})>")


class TokenTexts:
    """Texts of single tokens, as they continue a text: joined, they are the decoded response.

    Only a byte-level token that is part of a character differs: it is shown as its bytes, ⟨e2 82⟩.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / "tokenizer.json"
        if not path.exists():
            raise StoreError(f"{path}: missing, so tokens can't be shown as text")
        self._tokenizer = _open(path, path.stat().st_mtime_ns)
        anchor = self._tokenizer.encode("a", add_special_tokens=False).ids[-1:]
        self._anchor: list[int] = anchor
        self._before: str = self._decoded(anchor)
        self._known: dict[int, str] = {}

    def __call__(self, token_id: int) -> str:
        """Return the text of one token; ids that the tokenizer doesn't know are ⟨id⟩."""
        if token_id not in self._known:
            self._known[token_id] = self._text(token_id)
        return self._known[token_id]

    def _text(self, token_id: int) -> str:
        piece = self._tokenizer.id_to_token(token_id) if token_id >= 0 else None
        if piece is None:
            return f"⟨{token_id}⟩"
        # Some decoders drop the space that a text begins with: so decode it after another token.
        text = self._decoded([*self._anchor, token_id]).removeprefix(self._before)
        if _REPLACEMENT not in text:
            return text or piece
        if byte := _BYTE.fullmatch(piece):
            return f"⟨{byte[1].lower()}⟩"
        table = _bytes_of_characters()
        found = [table.get(character) for character in piece]
        if None in found or _REPLACEMENT in piece:
            return text
        return "⟨" + " ".join(f"{byte:02x}" for byte in found) + "⟩"

    def _decoded(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=False)
        return text


@lru_cache(maxsize=8)
def _open(path: Path, modified: int) -> Tokenizer:
    """Read a tokenizer once per version of its file (`modified`): a large one takes a second."""
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library knows no narrower one
        raise StoreError(f"{path}: not a readable tokenizer: {error}") from None


@cache
def _bytes_of_characters() -> dict[str, int]:
    """Return the byte that each character of a byte-level vocabulary stands for.

    Printable Latin-1 characters stand for themselves; the other bytes, in order, for the
    characters from U+0100 on.
    """
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in set(plain)]
    table = {chr(byte): byte for byte in plain}
    return table | {chr(256 + index): byte for index, byte in enumerate(others)}
