"""Units of measurement: names, kinds and sizes of those that answers often have.

    10 cm = 0.1 m = 100 mm          the same kind, compared exactly
    5 apples                        a kind of its own, named by the word
    90^\\circ, 50\\%, \\$5            degrees, percent and currencies are units too

A unit on one side only is allowed (most gold answers leave it out); two that differ in kind or size
make two answers, whatever the numbers are.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

from data.math_answers.literals import words

_TABLE = """
length   1          m meter metre
length   1/100      cm centimeter centimetre
length   1/1000     mm millimeter millimetre
length   1000       km kilometer kilometre
length   1/1000000  μm um micrometer micrometre micron
length   1/1000000000 nm nanometer nanometre
length   0.0254     in inch inches
length   0.3048     ft foot feet
length   0.9144     yd yard
length   1609.344   mi mile
mass     1          kg kilogram
mass     1/1000     g gram
mass     1/1000000  mg milligram
mass     0.45359237 lb lbs pound
mass     0.028349523125 oz ounce
mass     1000       tonne
time     1          s sec second
time     1/1000     ms millisecond
time     60         min minute
time     3600       h hr hrs hour
time     86400      day
time     604800     week
months   1          month
months   12         year yr
volume   1          L l liter litre
volume   1/1000     mL ml milliliter millilitre
angle    1          deg degree
angle    1/60       arcmin
angle    1/3600     arcsec
radian   1          rad radian
share    1          percent percentage pct
dollar   1          dollar USD buck
dollar   1/100      cent penny pennies
euro     1          euro EUR
sterling 1          GBP
yen      1          yen JPY
rupee    1          rupee INR
current  1          A amp ampere
current  1/1000     mA
amount   1          mol mole
kelvin   1          K kelvin
celsius  1          celsius
fahrenheit 1        fahrenheit
"""
# As products of the above: newton, joule, watt, pascal, volt, ohm, coulomb, hertz; speeds.
_DERIVED = """
N newton            1          mass length time-2
kN kilonewton       1000       mass length time-2
J joule             1          mass length2 time-2
kJ kilojoule        1000       mass length2 time-2
MJ megajoule        1000000    mass length2 time-2
W watt              1          mass length2 time-3
kW kilowatt         1000       mass length2 time-3
MW megawatt         1000000    mass length2 time-3
Pa pascal           1          mass length-1 time-2
kPa kilopascal      1000       mass length-1 time-2
V volt              1          mass length2 time-3 current-1
Ω ohm               1          mass length2 time-3 current-2
C coulomb           1          current time
Hz hertz            1          time-1
kHz kilohertz       1000       time-1
MHz megahertz       1000000    time-1
mph                 1609.344/3600 length time-1
kph kmh kmph        1000/3600  length time-1
T tesla             1          mass time-2 current-1
F farad             1          mass-1 length-2 time4 current2
H henry             1          mass length2 time-2 current-2
Wb weber            1          mass length2 time-2 current-1
eV electronvolt     1.602176634e-19 mass length2 time-2
cal calorie         4.184      mass length2 time-2
bar                 100000     mass length-1 time-2
atm                 101325     mass length-1 time-2
M molar             1          amount volume-1
"""
_PREFIXES = {"p": -12, "n": -9, "μ": -6, "µ": -6, "u": -6, "m": -3, "k": 3, "M": 6, "G": 9}
_PREFIXED = words("m g s L mol A K N J W Pa V Ω ohm C Hz T F H eV cal M")
"""Units that take any of these prefixes."""
MULTIPLIERS = {
    "hundred": 100,
    "thousand": 1000,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
}
# Words after a number that change its value or make it a sentence: no names of units.
_NO_UNIT = words(
    """
    half halves third thirds quarter quarters fourth fourths fifth fifths sixth sixths seventh
    eighth eighths ninth tenth tenths hundredth hundredths thousandth thousandths squared cubed
    root roots plus minus times over divided factorial negative positive dozen dozens is are was
    be not no if when then than more less fewer greater about approximately or and to only of the
    a an because since so mod modulo base choose with without for but from by at on as until
    remainder between where which that it this these those they we i you answer equal equals
    wrong right correct incorrect false true undefined infinity pm am noon midnight ratio
    """
)
_ANGLE_SYMBOL = "deg"


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit.

    Attributes:
        size: how many of its kind's first unit it is.
        kind: powers of the kinds it is made of, sorted.
    """

    size: Fraction
    kind: tuple[tuple[str, int], ...]


def product(factors: Iterable[tuple[Unit, int]]) -> Unit:
    """Return the product of powers of units."""
    size, kinds = Fraction(1), dict[str, int]()
    for unit, power in factors:
        size *= unit.size**power
        for kind, inner in unit.kind:
            kinds[kind] = kinds.get(kind, 0) + inner * power
    return Unit(size, tuple(sorted((k, p) for k, p in kinds.items() if p)))


def _ratio(text: str) -> Fraction:
    """Return a number of the tables, such as 1/100 or 1000/3600 or 0.0254."""
    head, _, tail = text.partition("/")
    return Fraction(head) / Fraction(tail or "1")


def _known() -> dict[str, Unit]:
    units: dict[str, Unit] = {}
    for line in _TABLE.strip().splitlines():
        kind, size, *names = line.split()
        for name in names:
            units[name] = Unit(_ratio(size), ((kind, 1),))
    for line in _DERIVED.strip().splitlines():
        names = [word for word in line.split() if word[0].isalpha() and word.rstrip("-1234") not in
                 ("mass", "length", "time", "current", "amount", "volume")]  # fmt: skip
        powers = [word for word in line.split() if word[0].isalpha() and word not in names]
        size = next(word for word in line.split() if word[0].isdigit())
        kinds = []
        for power in powers:
            kind = power.rstrip("-1234")
            kinds.append((kind, int(power[len(kind) :] or 1)))
        for name in names:
            units[name] = Unit(_ratio(size), tuple(sorted(kinds)))
    units["%"] = units["percent"]
    units["$"], units["€"], units["£"] = units["dollar"], units["euro"], units["GBP"]
    units["¢"], units["¥"], units["₹"] = units["cent"], units["yen"], units["rupee"]
    return units


def _prefixed(units: dict[str, Unit]) -> dict[str, Unit]:
    """Return units with a prefix that the tables don't have, as μm, kΩ or MeV."""
    made = {
        prefix + name: Unit(units[name].size * Fraction(10) ** power, units[name].kind)
        for name in _PREFIXED
        for prefix, power in _PREFIXES.items()
    }
    return {name: unit for name, unit in made.items() if name not in units}


_WRITTEN = _known()
_MADE = _prefixed(_WRITTEN)
KNOWN = _WRITTEN | _MADE
DOUBTFUL = frozenset(("mg", *_MADE))
"""Letters after a number that may as well be a product, outside of \\text: 2mg, 3 pV."""
DEGREE, PERCENT = KNOWN["deg"], KNOWN["percent"]
CURRENCY_SIGNS = frozenset("$€£¥₹")


def known_unit(word: str) -> Unit | None:
    """Return the unit that a word names: a symbol as it is written, or a name in any number."""
    if word in KNOWN:
        return KNOWN[word]
    lower = word.lower()
    for name in (lower, lower.removesuffix("s"), lower.removesuffix("es")):
        if len(name) > 2 and name in KNOWN:
            return KNOWN[name]
    return None


def counted(names: list[str]) -> Unit | None:
    """Return the kind of things that words after a number name; None: they name none."""
    lower = [word.lower() for word in names]
    if not 1 <= len(names) <= 2 or any(w in _NO_UNIT or len(w) < 2 for w in lower):
        return None
    if any(word in MULTIPLIERS for word in lower):
        return None
    return Unit(Fraction(1), ((" ".join(_singular(word) for word in lower), 1),))


def _singular(word: str) -> str:
    """Return a word without the ending of a plural: boxes, berries, apples."""
    if word.endswith("ies") and len(word) > 4:
        return f"{word[:-3]}y"
    if word.endswith(("ches", "shes", "xes", "sses")):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word
