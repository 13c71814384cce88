"""What people read, on the terminal, in Prefect's pages and in the viewer alike.

Numbers in their usual form, and untrusted text made harmless: characters that a terminal obeys or
hides are spelled out.
"""

import shlex
import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

NOTHING = "-"


def percent(value: Any) -> str:
    """Return 0.256 as 25.6%."""
    return NOTHING if value is None else f"{100 * float(value):.1f}%"


def number(value: Any, digits: int = 3) -> str:
    """Return a number with `digits` significant digits."""
    return NOTHING if value is None else f"{float(value):.{digits}g}"


def count(value: Any) -> str:
    """Return 12345 as 12,345."""
    return NOTHING if value is None else f"{round(value):,}"


def duration(seconds: float | None) -> str:
    """Return 3725 s as 1h02m, 95 s as 1m35s, 4.2 s as 4.2s."""
    if seconds is None:
        return NOTHING
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s"


def steps_before(steps: int) -> str:
    """Return 4 as "4 steps before"."""
    return f"{count(steps)} step{'' if steps == 1 else 's'} before"


def size(bytes_: float | None) -> str:
    """Return 12300000 as 12.3 MB, 950 as 950 bytes; decimal units."""
    if bytes_ is None:
        return NOTHING
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(bytes_) >= unit:
            shown = bytes_ / unit
            return f"{shown:.1f} {name}" if shown < 100 else f"{shown:,.0f} {name}"
    return f"{bytes_:.0f} bytes"


def ranges(numbers: Sequence[int]) -> str:
    """Return ascending numbers 1, 2, 3, 7 as "1 to 3, 7"."""
    parts: list[list[int]] = []
    for n in numbers:
        if parts and n == parts[-1][-1] + 1:
            parts[-1][1:] = [n]
        else:
            parts.append([n])
    return ", ".join(" to ".join(map(str, part)) for part in parts)


def print_warnings(warnings: Sequence[str]) -> None:
    """Print warnings to stderr, one line each."""
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)


def command(*words: object) -> str:
    """Return an `srpo` command that can be pasted into a shell, whatever its words hold.

    Args:
        words: options and values as texts, files and folders as paths.
    """
    return " ".join(["srpo", *map(shell_word, words)])


def go_on(run: Path) -> str:
    """Return the command that goes on with a run."""
    return command("train", "--resume", "--run", run)


def state_word(run: Path, steps_done: int) -> Path:
    """Return RUN@STEP, a state of a run, as a word of `command`."""
    return run.with_name(f"{run.name}@{steps_done}")


def shell_word(word: object) -> str:
    """Return a text or path as one word of a shell: quoted if need be, on one line, all visible.

    A path that would be taken for an option begins with ./ . Characters that a terminal obeys or
    hides, and bytes that are no UTF-8, are escapes in $'…', which bash, zsh and ksh read.
    """
    text = f"./{word}" if isinstance(word, Path) and f"{word}".startswith("-") else f"{word}"
    if printable(text) == text:
        return shlex.quote(text)
    return "$'" + "".join(map(_ansi_c, text)) + "'"


def _ansi_c(character: str) -> str:
    """Return a character as it stands between $' and '."""
    if character in "\\'":
        return f"\\{character}"
    if printable(character) == character:
        return character
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a file name that is no UTF-8
        return f"\\x{code - 0xDC00:02x}"
    known = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}.get(character)
    return known or (f"\\x{code:02x}" if code < 0x80 else f"\\U{code:08x}")


def one_line(error: BaseException, most: int = 500) -> str:
    """Return the message of a library's error on one line; of a long one, its two ends.

    Libraries write headings over lists: the first line alone often says that something is wrong,
    and the last ones what.
    """
    text = printable(" ".join(str(error).split()) or type(error).__name__)
    if len(text) <= most:
        return text
    return f"{text[: 3 * most // 5]} … {text[-2 * most // 5 :]}"


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


def joined_lines(text: str) -> str:
    """Return a text of several lines as one; spaces within a line, as of a path, stay."""
    return " ".join(line.strip() for line in text.splitlines() if line.strip())


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
