"""Untrusted text of any length for a page: what is shown at once, what is folded, what is cut."""

from dataclasses import dataclass

from pipeline.text import printable

AT_ONCE, MOST = 3_000, 200_000
"""Characters that stand open on a page, and characters that are on it at all."""


@dataclass(frozen=True)
class LongText:
    """A text for a page, with controls and bidi marks spelled out.

    Attributes:
        head: what is shown at once; all of it if it is short.
        rest: what is folded away.
        note: how long it is and what is missing; empty if it is shown whole.
    """

    head: str
    rest: str
    note: str


def long_text(text: str) -> LongText:
    """Return a text in its parts."""
    head, rest = text[:AT_ONCE], text[AT_ONCE:MOST]
    note = f"{len(text):,} characters" if rest else ""
    if len(text) > MOST:
        note += f", of which the first {MOST:,} are here; srpo audit shows them all"
    return LongText(printable(head, newlines=True), printable(rest, newlines=True), note)
