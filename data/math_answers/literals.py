"""Numbers as they are written: digit groups, points, exponents, bases, repeating decimals."""

import re
from dataclasses import dataclass
from fractions import Fraction

LARGEST_EXPONENT = 5000
"""Of ten, in a number such as 1e-5."""


def words(text: str) -> frozenset[str]:
    """Return the words of a text, which tables are easier to read as."""
    return frozenset(text.split())


class Unreadable(ValueError):
    """A text is no answer that can be read as a whole; the message says why."""


@dataclass(frozen=True, slots=True)
class Numeral:
    """A number as it stands in a text.

    Attributes:
        value: what it means, exactly.
        plain: its text if it is digits alone, as numerators, bases and minutes are; else "".
        digits: significant digits that a decimal shows; 0: it is no decimal.
        place: the power of ten of a decimal's last digit.
        base: in which it is written.
    """

    value: Fraction
    plain: str = ""
    digits: int = 0
    place: int = 0
    base: int = 10

    @property
    def proper(self) -> bool:
        """Whether it may be a part of a mixed number: a whole number, written as such."""
        return bool(self.plain) and self.base == 10


# What may stand between groups of three digits, apart from a bare comma: 1{,}000, 1\,000, 1 000.
_GAP = r" ?\{, ?\} ?|,?\\[,;:! ] ?|[ \u00a0\u2009\u202f'_~]"
_GROUPED = re.compile(
    rf"(?P<whole>[1-9][0-9]{{0,2}}(?P<gap>{_GAP})[0-9]{{3}}(?:(?P=gap)[0-9]{{3}})*)(?![0-9])"
    r"(?P<rest>\.[0-9]+)?"
)
_COMMA_DECIMAL = re.compile(r"(?P<whole>[0-9]+)\{,\}(?P<rest>[0-9]+)(?![0-9])")
_COMMA_RUN = re.compile(r"(?P<pieces>[0-9]+(?:,[0-9]+)+)(?P<rest>\.[0-9]+)?")
_THOUSANDS = re.compile(r"[1-9][0-9]{0,2}(?:,[0-9]{3})+")
_LAKHS = re.compile(r"[1-9][0-9]?(?:,[0-9]{2})+,[0-9]{3}")
_MANY_POINTS = re.compile(r"[0-9]*\.[0-9]+\.[0-9]|[0-9]{1,3}(?:\.[0-9]{3})+,[0-9]")
_DECIMAL = re.compile(
    r"(?P<whole>[0-9]*)(?P<rest>\.[0-9]+|(?<=[0-9])\.(?![.\w]))?"
    r"(?:[eE](?P<exponent>[+-]?[0-9]+)(?![0-9A-Za-z.]))?"
)
_REPEATING = re.compile(
    r"(?P<whole>[0-9]*)\.(?P<rest>[0-9]*)"
    r"(?:\\(?:overline|bar|dot)\s*\{(?P<over>[0-9]+)\}|\((?P<round>[0-9]+)\))"
)
_PREFIXED = re.compile(
    r"0(?:[xX](?P<x>[0-9A-Fa-f]+)|[bB](?P<b>[01]+)|[oO](?P<o>[0-7]+))(?![0-9A-Za-z_])"
)
_BASED = re.compile(
    r"(?:\\(?:text|mathrm|textrm)\{(?P<boxed>[0-9A-Z]+)\}|"
    r"(?P<digits>[0-9A-Z]+(?:\.[0-9A-Z]+)?))_"
    r"(?:(?P<short>[0-9]{1,2})(?![0-9])"
    r"|\{\s*\(?\s*(?P<long>[0-9]{1,2})\s*\)?\s*\}"
    r"|\{?\\(?:text|mathrm|textrm)\{\s*(?:base\s*)?(?P<word>[a-z]+|[0-9]{1,2})\s*\}\}?"
    r"|\{(?P<bare>[a-z]{3,})\})"
)
_BASE_WORDS = {
    "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9,
    "ten": 10, "eleven": 11, "twelve": 12, "sixteen": 16, "twenty": 20,
}  # fmt: skip


def read_numeral(
    text: str, start: int, in_brackets: bool, doubts: list[str]
) -> tuple[Numeral, int] | None:
    """Return the number that begins at a position of a text, and where it ends; None: none does.

    Args:
        text: an answer.
        start: the position; what stands before it is no digit or letter.
        in_brackets: a comma separates the items of a tuple or set there, unless what comes after
            it can't be one, as in (1,000).
        doubts: gets a line if the number has another usual meaning.

    Raises:
        Unreadable: it begins like a number and is none, or has two meanings of equal right.
    """
    if match := _BASED.match(text, start):
        based = _based(match)
        if based is not None:
            return based, match.end()
    if not (text[start].isdigit() or text.startswith(".", start)):
        return None
    if match := _PREFIXED.match(text, start):
        base = 16 if match["x"] else 2 if match["b"] else 8
        return in_base(match["x"] or match["b"] or match["o"], base), match.end()
    if _MANY_POINTS.match(text, start):
        raise Unreadable("1.000.000 and 1.000,5 can be groups or decimals: write 1000000, 1000.5")
    if match := _REPEATING.match(text, start):
        return _repeating(match), match.end()
    if match := _GROUPED.match(text, start):
        whole = re.sub(r"[^0-9]", "", match["whole"])
        if match["gap"] == " " and re.match(r"\s*/\s*[0-9]", text[match.end() :]):
            raise Unreadable("a group of digits or a mixed number before a slash")
        if re.compile(",[0-9]").match(text, match.end()):
            raise Unreadable("a comma after digit groups: a decimal, or another number")
        return _decimal(whole, match["rest"] or "", plain=""), match.end()
    if match := _COMMA_DECIMAL.match(text, start):
        return _decimal(match["whole"], f".{match['rest']}", plain=""), match.end()
    if (
        (match := _COMMA_RUN.match(text, start))
        and not text.startswith(",", start - 1)
        and (grouped := _with_commas(match, in_brackets, doubts))
    ):
        return grouped, match.end()
    match = _DECIMAL.match(text, start)
    if match is None or match.end() == start or match.group() == ".":
        return None
    exponent = int(match["exponent"] or 0) if len(match["exponent"] or "") < 9 else 10**9
    if abs(exponent) > LARGEST_EXPONENT:
        raise Unreadable(f"an exponent beyond {LARGEST_EXPONENT}")
    plain = match["whole"] if match.group() in (match["whole"], f"{match['whole']}.") else ""
    written = match["exponent"] is not None
    return _decimal(match["whole"], match["rest"] or "", plain, exponent, written), match.end()


def _decimal(
    whole: str, rest: str, plain: str, exponent: int = 0, written: bool = False
) -> Numeral:
    """Return a number of digits before and after the point, times a power of ten."""
    fraction = rest.removeprefix(".")
    place = exponent - len(fraction)
    value = Fraction(int(f"{whole}{fraction}" or "0")) * Fraction(10) ** place
    shown = f"{whole}{fraction}".lstrip("0")
    return Numeral(value, plain, len(shown) if fraction or written else 0, place)


def _with_commas(match: re.Match[str], in_brackets: bool, doubts: list[str]) -> Numeral | None:
    """Return digits with bare commas between them as one number; None: they are several."""
    pieces = match["pieces"].split(",")
    impossible = any(len(piece) > 1 and piece.startswith("0") for piece in pieces)
    thousands = _THOUSANDS.fullmatch(match["pieces"]) is not None
    if (thousands and not in_brackets) or (
        impossible and (thousands or _LAKHS.fullmatch(match["pieces"]))
    ):
        return _decimal("".join(pieces), match["rest"] or "", plain="")
    if impossible:
        raise Unreadable(f"{match.group()} has commas where no digit groups end")
    if _LAKHS.fullmatch(match["pieces"]) and not in_brackets:
        doubts.append(f"{match.group()} is several numbers or one with groups of digits")
    if len(pieces) == 2 and not in_brackets and not _among_others(match.string):
        doubts.append(
            f"{match.group()} is two numbers or a decimal: write {pieces[0]}, {pieces[1]} or "
            f"{pieces[0]}.{pieces[1]}"
        )
    return None


def _among_others(text: str) -> bool:
    """Say whether commas without a space separate the items of a whole text."""
    return text.count(",") > 1 and ";" not in text and not re.search(r",(?:\s|\\[,;:! ])", text)


def _repeating(match: re.Match[str]) -> Numeral:
    """Return a repeating decimal."""
    if match["round"] and match["rest"]:
        raise Unreadable(f"{match.group()} is a repeating decimal or a product")
    head, period = match["rest"], match["over"] or match["round"]
    value = Fraction(int(f"{match['whole']}{head}" or "0"), 10 ** len(head))
    return Numeral(value + Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(head)))


def _based(match: re.Match[str]) -> Numeral | None:
    """Return a number with its base below it; None: it is a symbol with an index."""
    digits = match["digits"] or match["boxed"]
    word = match["short"] or match["long"] or match["word"] or match["bare"]
    if word.isdigit():
        base = int(word)
    elif word in _BASE_WORDS:
        base = _BASE_WORDS[word]
    else:
        return None
    if not digits[0].isdigit() and (len(digits) == 1 or base <= 10):
        return None
    return in_base(digits, base)


def in_base(digits: str, base: int) -> Numeral:
    """Return a number written in a base.

    Raises:
        Unreadable: there is no such base, or no such digit in it.
    """
    whole, _, rest = digits.partition(".")
    try:
        value = Fraction(int(f"{whole}{rest}", base or 1), base ** len(rest))
    except ValueError as error:
        raise Unreadable(f"{digits} is no number in base {base}") from error
    return Numeral(value, digits if base == 10 and not rest else "", base=base)
