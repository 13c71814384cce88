"""Untrusted text made harmless for terminals: characters that act or hide are spelled out."""

import unicodedata

_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Categories of characters that a terminal obeys or hides: controls, bidi marks, surrogates, …"""


def printable(text: str, limit: int | None = None, newlines: bool = False) -> str:
    r"""Return text in which controls, ANSI, bidi marks and the like are escapes such as \x1b.

    Args:
        limit: characters that are kept; what is cut is counted at the end.
        newlines: keep line ends and tabs as they are.
    """
    kept = text if limit is None or len(text) <= limit else text[:limit]
    shown = "".join(_shown(c, newlines) for c in kept)
    cut = len(text) - len(kept)
    return f"{shown}… ({cut:,} more characters)" if cut else shown


def encodable(text: str) -> str:
    """Return text that UTF-8 can hold: lone surrogates become question marks."""
    return text.encode("utf-8", "replace").decode("utf-8") if _broken(text) else text


def _broken(text: str) -> bool:
    return any("\ud800" <= c <= "\udfff" for c in text)


def _shown(character: str, newlines: bool) -> str:
    if newlines and character in "\n\t":
        return character
    if unicodedata.category(character) not in _UNSEEN:
        return character
    known = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}.get(character)
    code = ord(character)
    return known or (f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}")
