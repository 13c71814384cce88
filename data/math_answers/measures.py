"""Values with units, as they stand in answers: 5 m/s, \\$5, 90^\\circ, 5 feet 6 inches."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from data.math_answers.answers import Answer, Quantity
from data.math_answers.expressions import CONSTANTS, FUNCTIONS, Node
from data.math_answers.lexing import Token
from data.math_answers.literals import Numeral
from data.math_answers.units import (
    CURRENCY_SIGNS,
    DEGREE,
    DOUBTFUL,
    KNOWN,
    MULTIPLIERS,
    PERCENT,
    Unit,
    counted,
    known_unit,
    product,
)

_POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
_LOOSE = FUNCTIONS - {"sqrt", "cbrt"}
"""Functions whose argument needs no brackets."""
_SIGNS_OF_UNITS = frozenset(("deg", "%", "/", "-", *CURRENCY_SIGNS))
_NUMERIC = frozenset(("frac", "sqrt", "pi"))
"""Commands of numbers, after which letters are no product that begins with symbols."""


@dataclass(frozen=True, slots=True)
class Found:
    """Tokens of a quantity taken apart.

    Attributes:
        value: the tokens of its value.
        factor: what a word such as million multiplies it by.
        unit: its unit; None: it has a factor only.
        needs_unit: whether the unit may be a product of symbols.
        rest: tokens of a second quantity after it: the 6 inches of 5 feet 6 inches.
    """

    value: list[Token]
    factor: int
    unit: Unit | None
    needs_unit: bool
    rest: list[Token]


def quantity(tokens: list[Token]) -> Found | None:
    """Return tokens as a value with a unit; None: they are none."""
    sign = tokens[:1] if tokens[0].text == "-" else []
    after = tokens[len(sign) :]
    money = None
    if after and after[0].kind == "mark" and after[0].text in CURRENCY_SIGNS:
        money, after = KNOWN[after[0].text], after[1:]
        if not sign and after and after[0].text == "-":
            sign, after = after[:1], after[1:]
        if not after:
            return None
        return _with_currency(sign + after, money)
    return _split(tokens)


def _with_currency(tokens: list[Token], money: Unit) -> Found | None:
    """Return an amount after its sign: \\$5, \\$5 million, \\$3 per hour."""
    cut = next((i for i, t in enumerate(tokens) if i and t.text in ("per", "/")), len(tokens))
    per = _unit(tokens[cut + 1 :]) if cut < len(tokens) else None
    if per is not None:
        return Found(tokens[:cut], 1, product([(money, 1), (per, -1)]), False, [])
    found = _split(tokens)
    if found is None:
        return Found(tokens, 1, money, False, [])
    if found.rest:
        return None
    unit = product([(money, 1), (found.unit, 1)]) if found.unit else money
    return Found(found.value, found.factor, unit, False, [])


def _split(tokens: list[Token]) -> Found | None:
    """Return a value and the words or signs after it that name a unit."""
    for position in range(1, len(tokens)):
        token = tokens[position]
        if not _may_begin(tokens, position):
            continue
        value = tokens[:position]
        # \\sin 30^\\circ is no number of degrees, and 30^\\circ + 45^\\circ has two of them.
        plain = token.kind == "mark" or token.text.lower().startswith(("deg", "percent"))
        if any(t.text in ("deg", "%") or (plain and t.text in _LOOSE) for t in value):
            return None
        factor, rest = 1, tokens[position:]
        if token.text.lower() in MULTIPLIERS:
            factor, rest = MULTIPLIERS[token.text.lower()], rest[1:]
            if not rest:
                return Found(value, factor, None, False, [])
        ends = (
            [i for i, t in enumerate(rest) if t.kind == "number" and t.spaced]
            if factor == 1
            else []
        )
        for end in (len(rest), *ends):
            unit = _unit(rest[:end])
            if unit is not None:
                doubtful = factor == 1 and _may_be_product(value, rest[:end])
                return Found(value, factor, unit, doubtful, rest[end:])
    return None


def _may_be_product(value: list[Token], unit: list[Token]) -> bool:
    """Say whether a unit may be symbols instead: 2 m g, 4 m^2, \\pi hr, but not 3 km or 5 m/s."""
    if any(
        token.kind == "text"
        or (token.kind == "word" and len(token.text) > 3)
        or (token.kind == "mark" and token.text in _SIGNS_OF_UNITS)
        for token in unit
    ):
        return False
    if len(unit) > 1 or len(unit[0].text) == 1:
        return unit[0].text != "Omega"
    if unit[0].text in DOUBTFUL or (
        unit[0].text in ("hr", "nm", "ms") and (len(value) > 1 or not unit[0].spaced)
    ):
        return True
    return any(t.kind == "word" or (t.kind == "command" and t.text not in _NUMERIC) for t in value)


def _may_begin(tokens: list[Token], position: int) -> bool:
    """Say whether the unit may begin at a position: a product of letters must not be one."""
    token, before = tokens[position], tokens[position - 1]
    if token.kind == "text":
        return True
    if token.kind == "mark":
        if token.text == "/":
            return position + 1 < len(tokens) and tokens[position + 1].kind == "text"
        follows = [t.text for t in tokens[position : position + 3]]
        return (
            token.text in ("%", "deg", *CURRENCY_SIGNS)
            or follows[:2] == ["^", "deg"]
            or (follows == ["^", "{", "deg"])
        )
    if token.kind == "command":
        prefixed = token.text == "mu" and _with_prefix(tokens[position : position + 2]) is not None
        return prefixed or (token.text in ("Omega", "frac") and token.spaced)
    if token.kind != "word" or token.text in CONSTANTS:
        return False
    if token.text in FUNCTIONS:
        return token.text == "sec" and position == len(tokens) - 1
    if token.text.lower() in MULTIPLIERS or token.text.lower() in _POWERS:
        return True
    if len(token.text) == 1:
        letters = any(t.kind in ("word", "text") for t in tokens[:position])
        return token.spaced and (before.kind == "number" or (before.text == "}" and not letters))
    # Three letters may be a product; a word that has a vowel and stands apart is none.
    spelled = len(token.text) > 3 or (
        token.spaced and len(token.text) == 3 and bool(set(token.text) & set("aeiou"))
    )
    return spelled or known_unit(token.text) is not None


def _unit(tokens: list[Token]) -> Unit | None:
    """Return the unit that tokens name; None: they name none."""
    reader = _UnitReader(tokens)
    factors = reader.read()
    if factors is not None:
        return product(factors)
    if all(t.kind == "text" or (t.kind == "word" and len(t.text) > 2) for t in tokens):
        return counted([t.text for t in tokens])
    return None


def _with_prefix(tokens: list[Token]) -> Unit | None:
    """Return a unit with a prefix of which one is Greek: \\mu\\text{m}, \\text{k}\\Omega."""
    if len(tokens) == 2 and tokens[0].kind in ("word", "text", "command"):
        prefix, unit = tokens[0].text, tokens[1].text
        if prefix == "mu" and tokens[1].kind in ("word", "text"):
            return KNOWN.get(f"μ{unit}")
        if unit == "Omega" and tokens[0].kind != "command":
            return KNOWN.get(f"{prefix}Ω")
    return None


class _UnitReader:
    """Reads km/h, m s^{-2}, square metres, dollars per hour, °C."""

    def __init__(self, tokens: list[Token]) -> None:
        self._tokens, self._at = tokens, 0

    def read(self) -> list[tuple[Unit, int]] | None:
        factors: list[tuple[Unit, int]] = []
        sign = 1
        while self._at < len(self._tokens):
            text = self._text()
            if text in ("/", "per"):
                sign, self._at = -1, self._at + 1
            elif factors and text in ("*", "-"):
                sign, self._at = 1, self._at + 1
            power = 1
            if self._text().lower() in _POWERS:
                power = _POWERS[self._text().lower()]
                self._at += 1
            unit = self._one()
            if unit is None:
                return None
            exponent = self._power()
            if exponent is None:
                return None
            factors.append((unit, sign * power * exponent))
        return factors or None

    def _text(self, ahead: int = 0) -> str:
        at = self._at + ahead
        return self._tokens[at].text if at < len(self._tokens) else ""

    def _one(self) -> Unit | None:
        """Take one unit."""
        if self._at >= len(self._tokens):
            return None
        if self._text() == "^" and self._text(1) == "{" and self._text(2) == "deg":
            if self._text(3) != "}":
                return None
            self._at += 4
            return self._degree()
        if self._text() == "^" and self._text(1) == "deg":
            self._at += 2
            return self._degree()
        if (prefixed := _with_prefix(self._tokens[self._at : self._at + 2])) is not None:
            self._at += 2
            return prefixed
        token = self._tokens[self._at]
        self._at += 1
        if token.kind == "mark":
            if token.text == "deg":
                return self._degree()
            return KNOWN.get(token.text) if token.text in ("%", *CURRENCY_SIGNS) else None
        if token.kind == "command":
            return KNOWN["Ω"] if token.text == "Omega" else None
        if token.kind not in ("word", "text"):
            return None
        unit = known_unit(token.text)
        if unit is DEGREE:
            return self._degree()
        if unit is None and len(token.text) > 2 and (len(self._tokens) > 1):
            return counted([token.text])
        return unit

    def _degree(self) -> Unit:
        """Return degrees of an angle, or of a scale of temperature."""
        scale = self._text().lower()
        if scale in ("c", "celsius", "f", "fahrenheit"):
            self._at += 1
            return KNOWN["celsius" if scale.startswith("c") else "fahrenheit"]
        return DEGREE

    def _power(self) -> int | None:
        """Take the exponent of a unit; None: it is no small whole number."""
        text = self._text()
        if text.lower() in ("squared", "cubed"):
            self._at += 1
            return 2 if text.lower() == "squared" else 3
        if text == "^":
            self._at += 1
            braces = self._text() == "{"
            self._at += braces
            sign = -1 if self._text() == "-" else 1
            self._at += sign < 0
            power = self._digit()
            if power is None or (braces and self._text() != "}"):
                return None
            self._at += braces
            return sign * power
        if self._at < len(self._tokens):
            token = self._tokens[self._at]
            if token.kind == "number" and not token.spaced:
                return self._digit()
        return 1

    def _digit(self) -> int | None:
        token = self._tokens[self._at] if self._at < len(self._tokens) else None
        if token is None or token.number is None or token.number.plain not in tuple("123456"):
            return None
        self._at += 1
        return int(token.number.plain)


def joined(items: Sequence[Answer]) -> Quantity | None:
    """Return 10 hours and 30 minutes as one quantity; None: these are several answers.

    They are one if they are of one kind and each unit is smaller than the one before.
    """
    quantities = [item for item in items if isinstance(item, Quantity)]
    if len(quantities) < max(2, len(items)):
        return None
    first, *rest = quantities
    sizes = [item.unit.size for item in quantities]
    if any(item.unit.kind != first.unit.kind for item in rest) or first.unit == PERCENT:
        return None
    if sizes != sorted(set(sizes), reverse=True):
        return None
    terms = tuple(
        Node("*", (Node("number", number=Numeral(item.unit.size / first.unit.size)), item.node))
        for item in quantities
    )
    return Quantity(
        Node("+", terms), Unit(first.unit.size * Fraction(1), first.unit.kind), needs_unit=True
    )
