"""Values of expressions: exact fractions where it can be, else numbers of many digits.

Two expressions are compared by their values, symbols by values at fixed points that no answer is
made for: equal at all of them is equal (Schwartz and Zippel), and takes microseconds where computer
algebra takes up to for ever. Rational functions are exact at the points, too.
"""

import hashlib
import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import lru_cache
from typing import Any

import mpmath

from data.math_answers.expressions import FUNCTIONS, Node
from data.math_answers.literals import Numeral, Unreadable

DIGITS = 60
"""Decimal digits of numbers that are no fractions."""
CLOSE = 40
"""So many of them must agree: the rest is for what rounding and cancellation take."""
LARGEST_BITS = 2**17
"""Of numerators and denominators, and of how large or small other numbers are."""
MOST_SIGNS = 6
"""Symbols that are negative alone at one of the points."""
SHOWN = 6
"""A decimal that shows so many digits may stand for a number that has more."""
MANY = 9
"""A decimal of fewer digits is exact beside another decimal: 12345.67 isn't 12345.7."""
DOUBLE_DIGITS, DOUBLE_ERROR = 15, Fraction(1, 10**14)
"""A decimal of more digits is a computed float: the last of them are noise."""

Value = Fraction | Any  # mpmath has no types: mpf or mpc
_context = mpmath.MPContext()
_context.dps = DIGITS
_mp = _context


class _Undefined(Unreadable):
    """There is no value: 1/0, ln 0."""


@lru_cache(maxsize=4096)
def _size(name: str, number: int) -> Fraction:
    """Return the value of a symbol at one of the points, between 0.3 and 2.3."""
    digest = hashlib.sha256(f"{name}/{number}".encode()).digest()
    return Fraction(300007 + 2 * (int.from_bytes(digest[:6]) % 999983), 999979)


def _points(*nodes: Node) -> list[dict[str, Fraction]]:
    """Return the points at which expressions are compared, each with a value for every symbol.

    At the first all are positive, at the second negative, then each in turn alone is: roots,
    logarithms and |x| tell them apart. For \\lfloor x \\rfloor there are larger values, too.
    """
    names = sorted(frozenset().union(*map(symbols, nodes)))
    if not names:
        return [{}]
    negative = [set(), set(names), *({name} for name in names[:MOST_SIGNS])]
    points = [
        {name: _size(name, number) * (-1 if name in below else 1) for name in names}
        for number, below in enumerate(negative)
    ]
    if any(uses(node, op) for node in nodes for op in ("floor", "ceil")):
        points += [{n: _size(n, 9 + scale) * scale for n in names} for scale in (7, 19, 41, 97)]
    return points


class Evaluator:
    """Evaluates expressions at one point.

    Args:
        point: the value of each symbol.
        natural: whether `log` without a base is the natural one; it is that to base 10 otherwise.
    """

    def __init__(self, point: Mapping[str, Fraction] | None = None, natural: bool = True) -> None:
        self._point, self._natural = point or {}, natural

    def value(self, node: Node) -> Value:
        """Return the value of an expression.

        Raises:
            Unreadable: it has none, or one that is too large or too small to be computed.
        """
        try:
            return _bounded(self._value(node))
        except (ZeroDivisionError, ValueError, OverflowError) as error:
            if isinstance(error, Unreadable):
                raise
            raise _Undefined(f"it has no value ({error})") from error

    def _value(self, node: Node) -> Value:
        if node.op == "number":
            assert node.number is not None
            return node.number.value
        if node.op == "symbol":
            return self._point[node.name]
        if node.op == "constant":
            return _CONSTANTS[node.name]
        values = [self.value(inner) for inner in node.args]
        if any(_infinite(value) for value in values) and node.op != "neg":
            raise _Undefined("infinity in a computation")
        if node.op == "log":
            logarithm = _logarithm(values[0])
            return logarithm if self._natural else logarithm / _mp.log(10)
        if node.op in _EXACT:
            return _EXACT[node.op](*values)
        return _NUMERIC[node.op](*(_number(value) for value in values))


def _number(value: Value) -> Any:
    """Return a value as a number of many digits."""
    if isinstance(value, Fraction):
        return _mp.mpf(value.numerator) / value.denominator
    return value


def _infinite(value: Value) -> bool:
    return not isinstance(value, Fraction) and bool(_mp.isinf(value))


def _bounded(value: Value) -> Value:
    """Return a value that is not too large or small to be computed with."""
    if isinstance(value, Fraction):
        bits = max(value.numerator.bit_length(), value.denominator.bit_length())
    elif _infinite(value):
        return value
    elif _mp.isnan(value):
        raise _Undefined("it has no value")
    else:
        size = abs(_mp.mag(value)) if value else 0
        bits = int(size) if size else 0
    if bits > LARGEST_BITS:
        raise Unreadable("a number too large or too small to be computed")
    return value


def _add(*values: Value) -> Value:
    if all(isinstance(value, Fraction) for value in values):
        return sum(values, Fraction(0))
    return _mp.fsum(_number(value) for value in values)


def _multiply(*values: Value) -> Value:
    product: Value = Fraction(1)
    for value in values:
        exact = isinstance(product, Fraction) and isinstance(value, Fraction)
        product = _bounded(product * value if exact else _number(product) * _number(value))
    return product


def _divide(left: Value, right: Value) -> Value:
    if isinstance(left, Fraction) and isinstance(right, Fraction):
        return left / right
    if not right:
        raise ZeroDivisionError("division by zero")
    return _number(left) / _number(right)


def _power(base: Value, exponent: Value) -> Value:
    if isinstance(exponent, Fraction) and exponent.denominator == 1:
        if exponent == 0 and base == 0:
            raise _Undefined("0 to the power of 0")
        if isinstance(base, Fraction):
            bits = max(base.numerator.bit_length(), base.denominator.bit_length())
            if base not in (0, 1, -1) and abs(exponent) * (bits - 1) > LARGEST_BITS:
                raise Unreadable("a power too large or too small to be computed")
            if base in (1, -1):
                exponent = Fraction(int(exponent) % 2)
            return base ** int(exponent)
    if isinstance(exponent, Fraction) and isinstance(base, Fraction) and base > 0:
        root = _exact_root(base, exponent.denominator)
        if root is not None:
            return _power(root, Fraction(exponent.numerator))
    if not base:
        raise _Undefined("a power of 0")
    size = abs(_number(exponent)) * (abs(_mp.mag(_number(base))) + 4)
    if size > LARGEST_BITS:
        raise Unreadable("a power too large or too small to be computed")
    return _mp.power(_number(base), _number(exponent))


def _exact_root(base: Fraction, degree: int) -> Fraction | None:
    """Return a rational root of a positive fraction if there is one."""
    if degree == 1:
        return base
    if degree > 64 or base.numerator.bit_length() > 4096 or base.denominator.bit_length() > 4096:
        return None
    parts = []
    for part in (base.numerator, base.denominator):
        root = math.isqrt(part) if degree == 2 else _integer_root(part, degree)
        if root**degree != part:
            return None
        parts.append(root)
    return Fraction(*parts)


def _integer_root(number: int, degree: int) -> int:
    """Return the whole number nearest to a root of a whole number."""
    low, high = 0, 1 << (number.bit_length() // degree + 1)
    while low < high:
        middle = (low + high + 1) // 2
        if middle**degree <= number:
            low = middle
        else:
            high = middle - 1
    return low


def _root(base: Value, degree: Value) -> Value:
    if not isinstance(degree, Fraction) or degree.denominator != 1 or degree < 2:
        raise _Undefined("a root of such a degree")
    if not base:
        return Fraction(0)
    if isinstance(base, Fraction) and base < 0 and degree % 2:
        return -_power(-base, 1 / degree)
    return _power(base, 1 / degree)


def _factorial(value: Value) -> Value:
    if isinstance(value, Fraction) and value.denominator == 1:
        if not 0 <= value <= 3000:
            raise Unreadable("the factorial of a negative or too large number")
        return Fraction(math.factorial(int(value)))
    if abs(_number(value)) > 3000:
        raise Unreadable("the factorial of too large a number")
    return _mp.gamma(_number(value) + 1)


def _binomial(top: Value, bottom: Value) -> Value:
    if all(isinstance(v, Fraction) and v.denominator == 1 for v in (top, bottom)):
        if not 0 <= bottom <= top or top > 10_000:
            raise Unreadable("a binomial coefficient of such numbers")
        return Fraction(math.comb(int(top), int(bottom)))
    return _mp.binomial(_number(top), _number(bottom))


def _absolute(value: Value) -> Value:
    return abs(value)


def _floor(value: Value) -> Value:
    return Fraction(math.floor(value)) if isinstance(value, Fraction) else _mp.floor(value)


def _ceil(value: Value) -> Value:
    return Fraction(math.ceil(value)) if isinstance(value, Fraction) else _mp.ceil(value)


def _logarithm(value: Value) -> Any:
    if not value:
        raise _Undefined("the logarithm of 0")
    return _mp.log(_number(value))


def _sized(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a function that is not asked for arguments at which it is huge or without digits."""

    def bounded(value: Any) -> Any:
        if abs(value) > 50_000:
            raise Unreadable("a function of too large a number")
        return function(value)

    return bounded


_CONSTANTS: Mapping[str, Any] = {
    "pi": +_mp.pi,
    "e": +_mp.e,
    "i": _mp.mpc(0, 1),
    "infty": _mp.inf,
}
_EXACT: Mapping[str, Callable[..., Value]] = {
    "+": _add,
    "*": _multiply,
    "/": _divide,
    "^": _power,
    "neg": lambda value: -value,
    "root": _root,
    "factorial": _factorial,
    "binom": _binomial,
    "abs": _absolute,
    "floor": _floor,
    "ceil": _ceil,
    "ln": _logarithm,
    "degree": lambda value: _number(value) * _mp.pi / 180,
}
_NUMERIC: Mapping[str, Callable[..., Any]] = {
    name: _sized(getattr(_mp, name))
    for name in FUNCTIONS - {"log", "ln", "sqrt", "cbrt", "abs", "arcsin", "arccos", "arctan"}
}


def symbols(node: Node) -> frozenset[str]:
    """Return the names of the symbols in an expression."""
    if node.op == "symbol":
        return frozenset((node.name,))
    return frozenset().union(*map(symbols, node.args)) if node.args else frozenset()


def uses(node: Node, op: str) -> bool:
    """Say whether an operation occurs in an expression."""
    return node.op == op or any(uses(inner, op) for inner in node.args)


def decimal(node: Node) -> Numeral | None:
    """Return the decimal that an expression is, with its sign and power of ten; None: it is none.

    6.63 * 10^{-34} is one; 1/3 and 1.5 + 2 are none.
    """
    if node.op == "number":
        return node.number if node.number is not None and node.number.digits else None
    if node.op == "neg":
        inner = decimal(node.args[0])
        return inner and Numeral(-inner.value, "", inner.digits, inner.place)
    if node.op == "*" and len(node.args) == 2:
        inner, ten = decimal(node.args[0]), _power_of_ten(node.args[1])
        if inner is None or ten is None:
            return None
        return Numeral(inner.value * Fraction(10) ** ten, "", inner.digits, inner.place + ten)
    return None


def _power_of_ten(node: Node) -> int | None:
    """Return n if an expression is 10^n, n a whole number of bounded size."""
    if node.op != "^" or node.args[0].number is None or node.args[0].number.value != 10:
        return None
    sign, exponent = 1, node.args[1]
    if exponent.op == "neg":
        sign, exponent = -1, exponent.args[0]
    if exponent.number is None or exponent.number.value.denominator != 1:
        return None
    return sign * int(exponent.number.value) if exponent.number.value <= 5000 else None


def same_value(left: Node, right: Node) -> bool:
    """Say whether two expressions have the same value, exactly or as far as a decimal shows it.

    Raises:
        Unreadable: one of them has no value that can be computed.
    """
    points = _points(left, right)
    conventions = (True, False) if uses(left, "log") or uses(right, "log") else (True,)
    for natural in conventions:
        evaluators = [Evaluator(point, natural) for point in points]
        if all(_close(e.value(left), e.value(right)) for e in evaluators):
            return True
    return not points[0] and _shown(left, right)


def proportional(left: Node, right: Node, positive: bool = False) -> bool:
    """Say whether one expression is a constant times the other (a positive constant, if asked)."""
    ratio: Value | None = None
    for point in _points(left, right):
        evaluator = Evaluator(point)
        top, bottom = evaluator.value(left), evaluator.value(right)
        if not top or not bottom:
            return not top and not bottom
        found = _divide(top, bottom)
        if ratio is not None and not _close(ratio, found):
            return False
        ratio = found
    if positive:
        real = _mp.re(_number(ratio))
        return bool(real > 0 and abs(_mp.im(_number(ratio))) < _mp.mpf(10) ** -CLOSE)
    return ratio is not None


def _close(left: Value, right: Value) -> bool:
    """Say whether two values are equal: exactly if both are exact, else in nearly all digits."""
    if isinstance(left, Fraction) and isinstance(right, Fraction):
        return left == right
    if _infinite(left) or _infinite(right):
        return bool(left == right) if _infinite(left) and _infinite(right) else False
    first, second = _number(left), _number(right)
    size = max(abs(first), abs(second))
    difference = abs(first - second)
    if difference <= size * _mp.mpf(10) ** -CLOSE:
        return True
    # What cancels to nothing has no digits that could agree: 0 and \sqrt{2} - \sqrt{2}.
    exact_zero = (left == 0) or (right == 0)
    return bool(exact_zero and size < _mp.mpf(10) ** -(DIGITS - 10))


def _shown(left: Node, right: Node) -> bool:
    """Say whether one side is a decimal that shows the other: rounded or cut to enough digits."""
    one, other = decimal(left), decimal(right)
    if one is not None and other is not None:
        if max(one.digits, other.digits) < MANY:
            return False
        pairs = [(one, right)] if one.place >= other.place else [(other, left)]
    else:
        pairs = [(d, node) for d, node in ((one, right), (other, left)) if d is not None]
    for shown, node in pairs:
        value = _real(node)
        if value is None:
            continue
        if (
            max(d.digits for d in (one, other) if d is not None) > DOUBLE_DIGITS
            and abs(shown.value - value) <= abs(value) * DOUBLE_ERROR
        ):
            return True
        if shown.digits >= SHOWN and _rounded_or_cut(shown, value):
            return True
    return False


def _real(node: Node) -> Fraction | None:
    """Return the value of an expression as a fraction, up to its digits; None: it is not real."""
    value = Evaluator().value(node)
    if isinstance(value, Fraction):
        return value
    if _infinite(value) or _mp.im(value) != 0:
        return None
    sign, mantissa, exponent, _ = _mp.mpf(_mp.re(value))._mpf_
    return Fraction(int(mantissa)) * Fraction(2) ** int(exponent) * (-1 if sign else 1)


def shows(shown: Numeral, node: Node) -> bool:
    """Say whether a decimal is the value of an expression, rounded or cut at its last digit."""
    value = _real(node)
    return value is not None and _rounded_or_cut(shown, value)


def _rounded_or_cut(shown: Numeral, value: Fraction) -> bool:
    """Say whether a decimal is a value rounded, or cut off, at its last digit."""
    unit = Fraction(10) ** shown.place
    scaled, meant = value / unit, shown.value / unit
    return meant in (math.trunc(scaled), math.floor(scaled + Fraction(1, 2))) or meant == -(
        math.floor(-scaled + Fraction(1, 2))
    )
