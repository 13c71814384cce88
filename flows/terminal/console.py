"""What every command prints on: any text shown as it is, on any terminal.

Texts from outside are no markup: a run called [red] is called so. A stream that can't encode a
character gets one that it can: an ASCII sign for those that we print, an escape for all others.
"""

import codecs
import sys

from rich.console import Console
from rich.status import Status
from rich.text import Text

_ERRORS = "srpo-signs"
_SIGNS = {
    "…": "...", "→": "->", "←": "<-", "─": "-", "━": "-", "╸": "-", "╺": "-", "│": "|", "·": "-",
    "–": "-", "—": "-", "−": "-", "±": "+-", "×": "x", "≤": "<=", "≥": ">=", "≠": "!=", "≈": "~",
    "’": "'", "“": '"', "”": '"', "α": "alpha", "β": "beta", "ε": "eps", "λ": "lambda", "μ": "u",
    "π": "pi", "σ": "sigma", "Ω": "Omega", "∞": "inf", "•": "*", "█": "#", "✓": "ok", "✗": "x",
    "␣": "_", "↵": "\\n", "⇥": "\\t", "▶": ">", "◀": "<", "°": "deg",
}  # fmt: skip
"""Signs of ours, and what stands for them where only ASCII can be printed."""
_SPINNERS = range(0x2800, 0x2900)
"""Braille patterns, of which rich makes its spinners."""


def show_on_any_terminal() -> None:
    """Have stdout and stderr take any text, whatever their encoding."""
    codecs.register_error(_ERRORS, _spelled)
    for stream in (sys.stdout, sys.stderr):
        if (reconfigure := getattr(stream, "reconfigure", None)) is not None:
            reconfigure(errors=_ERRORS)


def open_console(stderr: bool = False) -> Console:
    """Return a console that shows texts as they are: brackets and colons are no markup."""
    return Console(stderr=stderr, markup=False, emoji=False)


def is_live(console: Console) -> bool:
    """Tell whether a console can redraw what it showed; one with TERM=dumb can't."""
    return console.is_terminal and not console.is_dumb_terminal


def status(console: Console, text: str) -> Status:
    """Return a context that shows what is being done, with a spinner where there can be one."""
    wide = console.encoding.lower().startswith("utf")
    return console.status(Text(text), spinner="dots" if wide else "line")


def _spelled(error: UnicodeError) -> tuple[str, int]:
    """Return what stands for the characters that an encoding lacks, and where to go on."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_sign, error.object[error.start : error.end])), error.end


def _sign(character: str) -> str:
    code = ord(character)
    if code in _SPINNERS:
        return "*"
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a file name that is no UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return _SIGNS.get(character) or character.encode("ascii", "backslashreplace").decode("ascii")
