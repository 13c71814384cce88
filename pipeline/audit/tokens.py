"""Token ids as texts, by the run's tokenizer and without the model or transformers."""

from functools import cache
from pathlib import Path

from tokenizers import Tokenizer

from pipeline.errors import StoreError

_REPLACEMENT = "�"


class TokenTexts:
    """Texts of single tokens; a part of a character is shown as its bytes, like ⟨e2 82⟩."""

    def __init__(self, folder: Path) -> None:
        path = folder / "tokenizer.json"
        if not path.exists():
            raise StoreError(f"{path}: missing, so tokens can't be shown as text")
        self._tokenizer: Tokenizer = Tokenizer.from_file(str(path))
        self._known: dict[int, str] = {}

    def __call__(self, token_id: int) -> str:
        """Return the text of one token; ids that the tokenizer doesn't know are ⟨id⟩."""
        if token_id not in self._known:
            self._known[token_id] = self._text(token_id)
        return self._known[token_id]

    def _text(self, token_id: int) -> str:
        piece = self._tokenizer.id_to_token(token_id)
        if piece is None:
            return f"⟨{token_id}⟩"
        text: str = self._tokenizer.decode([token_id], skip_special_tokens=False)
        if _REPLACEMENT not in text:
            return text or piece
        table = _bytes_of_characters()
        found = [table.get(character) for character in piece]
        if None in found:
            return text
        return "⟨" + " ".join(f"{byte:02x}" for byte in found) + "⟩"


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
