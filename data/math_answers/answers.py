"""What an answer can be: a value, a quantity, a ratio, a set, a matrix, a relation, a text, …"""

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from data.math_answers.expressions import Node
from data.math_answers.units import Unit


@dataclass(frozen=True, slots=True)
class Expression:
    """A number or a formula."""

    node: Node


@dataclass(frozen=True, slots=True)
class Quantity:
    """A value with a unit.

    Attributes:
        node: the value, in that unit.
        unit: it.
        needs_unit: whether the value alone is another answer: 10 h 30 min, or 10 m, which may be
            10 times m.
        product: what it is if the unit is a product of symbols: 2 m g.
    """

    node: Node
    unit: Unit
    needs_unit: bool = False
    product: Node | None = None


@dataclass(frozen=True, slots=True)
class Based:
    """A number written in a base other than ten."""

    value: Fraction
    base: int


@dataclass(frozen=True, slots=True)
class Ratio:
    """Two or more values in a ratio, 3:4."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Clock:
    """A time of the day; `half` is am, pm or empty."""

    parts: tuple[int, ...]
    half: str = ""


@dataclass(frozen=True, slots=True)
class Text:
    """Words; a short run of letters may be a product of symbols as well."""

    words: str
    node: Node | None = None


@dataclass(frozen=True, slots=True)
class Gap:
    """The dots in 1, 2, …, n."""


@dataclass(frozen=True, slots=True)
class Collection:
    """Several answers: in order in a tuple and in brackets, in any order in a list and in a set.

    A list keeps how often an answer is given; a set does not.
    """

    kind: Literal["list", "set", "tuple", "brackets"]
    items: "tuple[Answer, ...]"


@dataclass(frozen=True, slots=True)
class Interval:
    """All numbers between two."""

    low: Node
    high: Node
    with_low: bool
    with_high: bool


@dataclass(frozen=True, slots=True)
class Union:
    """Sets together."""

    parts: "tuple[Answer, ...]"


@dataclass(frozen=True, slots=True)
class Without:
    """A set without the members of another."""

    whole: "Answer"
    removed: "Answer"


@dataclass(frozen=True, slots=True)
class Domain:
    """A set of numbers that has a letter: R, Z, N, Q, C."""

    letter: str


@dataclass(frozen=True, slots=True)
class Matrix:
    """Rows of values."""

    rows: tuple[tuple[Node, ...], ...]


@dataclass(frozen=True, slots=True)
class Named:
    """What a name stands for: x = 5, x > 2, f(x) = 3x.

    Attributes:
        name: the left side.
        value: the right side, or the numbers that an inequality allows.
        node: the left side as an expression, if it is one.
    """

    name: str
    value: "Answer"
    node: Node | None = None


@dataclass(frozen=True, slots=True)
class Relation:
    """An equation or inequality, as a difference that is compared with 0."""

    operator: Literal["=", "!=", "<", "<="]
    difference: Node


Answer = (
    Expression
    | Quantity
    | Based
    | Ratio
    | Clock
    | Text
    | Gap
    | Collection
    | Interval
    | Union
    | Without
    | Domain
    | Matrix
    | Named
    | Relation
)
