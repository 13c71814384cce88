"""When two answers are the same.

It is symmetric: what one side leaves out (a unit, the `x =` of x = 5) the other may have. What both
have must agree.
"""

import re
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise

from data.math_answers.answers import (
    Answer,
    Based,
    Clock,
    Collection,
    Domain,
    Expression,
    Gap,
    Interval,
    Matrix,
    Named,
    Quantity,
    Ratio,
    Relation,
    Text,
    Union,
    Without,
)
from data.math_answers.expressions import Node
from data.math_answers.literals import Numeral, Unreadable
from data.math_answers.units import DEGREE, KNOWN, PERCENT
from data.math_answers.values import Evaluator, proportional, same_value, symbols, uses

MOST_ITEMS = 60
"""Items of a list or set: comparing takes time that grows with their square."""


def same(left: Answer, right: Answer) -> bool:
    """Say whether two answers are the same.

    Raises:
        Unreadable: a value in them can't be computed.
    """
    if isinstance(left, Named) or isinstance(right, Named):
        return _same_named(left, right)
    if isinstance(left, Union | Without | Interval | Domain) or isinstance(
        right, Union | Without | Interval | Domain
    ):
        return _same_sets(left, right)
    if isinstance(left, Collection) or isinstance(right, Collection):
        return _same_collections(left, right)
    if isinstance(left, Quantity) or isinstance(right, Quantity):
        return _same_quantities(left, right)
    if isinstance(left, Text) or isinstance(right, Text):
        return _same_texts(left, right)
    if isinstance(left, Ratio) or isinstance(right, Ratio):
        return _same_ratios(left, right)
    match left, right:
        case Expression(first), Expression(second):
            return same_value(first, second)
        case Matrix(first_rows), Matrix(second_rows):
            return [len(row) for row in first_rows] == [len(row) for row in second_rows] and all(
                same_value(one, other)
                for row, other_row in zip(first_rows, second_rows, strict=True)
                for one, other in zip(row, other_row, strict=True)
            )
        case Relation(), Relation():
            return _same_relations(left, right)
        case Clock(), Clock():
            return _same_times(left, right)
        case (Based(), Based()) | (Gap(), Gap()):
            return left == right
    return False


def negated(node: Node) -> Node:
    """Return minus an expression."""
    return Node("neg", (node,))


def difference(left: Node, right: Node) -> Node:
    """Return one expression minus another."""
    return Node("+", (left, negated(right)))


def times(node: Node, factor: Fraction) -> Node:
    """Return a number times an expression, which stays as it is written if the number is 1."""
    if factor == 1:
        return node
    return Node("*", (Node("number", number=Numeral(factor)), node))


def _same_named(left: Answer, right: Answer) -> bool:
    """Compare answers of which at least one has a name."""
    if isinstance(left, Named) and isinstance(right, Named):
        if left.name == right.name and same(left.value, right.value):
            return True
        return _same_equations(left, right)
    if not isinstance(left, Named):
        left, right = right, left
    assert isinstance(left, Named)
    if isinstance(right, Relation):
        return _same_equations(left, right)
    if isinstance(right, Collection) and any(isinstance(item, Named) for item in right.items):
        named = _by_name(left)
        return named is not None and _same_collections(named, right)
    return same(left.value, right)


def _by_name(answer: Named) -> Collection | None:
    """Return (x, y) = (1, 2) as x = 1, y = 2."""
    names = answer.name.removeprefix("(").removesuffix(")").split(",")
    value = answer.value
    if not isinstance(value, Collection) or len(names) != len(value.items) or len(names) < 2:
        return None
    return Collection("list", tuple(map(Named, names, value.items)))


def _same_equations(left: Answer, right: Answer) -> bool:
    """Compare two equations by the differences of their sides."""
    relations = [_as_relation(side) for side in (left, right)]
    if relations[0] is None or relations[1] is None:
        return False
    return _same_relations(relations[0], relations[1])


def _as_relation(answer: Answer) -> Relation | None:
    """Return an equation as a difference that is 0."""
    if isinstance(answer, Relation):
        return answer
    if not isinstance(answer, Named) or answer.node is None:
        return None
    match answer.value:
        case Expression(node):
            return Relation("=", difference(answer.node, node))
        case Text(node=Node() as node) | Quantity(product=Node() as node):
            return Relation("=", difference(answer.node, node))
    return None


def _same_relations(left: Relation, right: Relation) -> bool:
    return left.operator == right.operator and proportional(
        left.difference, right.difference, positive=left.operator in ("<", "<=")
    )


def _same_collections(left: Answer, right: Answer) -> bool:
    """Compare answers of which at least one consists of several."""
    if not isinstance(left, Collection):
        left, right = right, left
    assert isinstance(left, Collection)
    if isinstance(right, Collection):
        return _same_items(left, right)
    if (
        isinstance(right, Matrix)
        and left.kind == "tuple"
        and 1 in (len(right.rows), len(right.rows[0]))
    ):
        entries = tuple(Expression(node) for row in right.rows for node in row)
        return _same_items(left, Collection("tuple", entries))
    if left == Collection("set", ()) and isinstance(right, Text):
        return right.words in NO_SOLUTION
    return len(left.items) == 1 and left.kind == "list" and same(left.items[0], right)


def _same_items(left: Collection, right: Collection) -> bool:
    if max(len(left.items), len(right.items)) > MOST_ITEMS:
        raise Unreadable(f"more than {MOST_ITEMS} items")
    left, right = _without_lone_names(left, right), _without_lone_names(right, left)
    kinds = {left.kind, right.kind}
    ordered = Gap() in left.items or Gap() in right.items
    if kinds in ({"tuple"}, {"brackets"}, {"brackets", "list"}) or (
        ordered and kinds <= {"list", "set"}
    ):
        return len(left.items) == len(right.items) and all(
            same(one, other) for one, other in zip(left.items, right.items, strict=True)
        )
    if kinds == {"set"}:
        return _covers(left.items, right.items) and _covers(right.items, left.items)
    return kinds <= {"list", "set"} and _matches(left.items, right.items)


def _without_lone_names(mine: Collection, other: Collection) -> Collection:
    """Return a collection without its names if the other has none, and they tell nothing apart.

    That is x = 1 or x = 2 and x_1 = 1, x_2 = 2 beside 1, 2, and x = 1, y = 2 beside (1, 2).
    """
    named = [item for item in mine.items if isinstance(item, Named)]
    if len(named) < len(mine.items) or any(isinstance(item, Named) for item in other.items):
        return mine
    values = tuple(item.value for item in named)
    if len({re.split("[_']", item.name)[0] for item in named}) == 1:
        return Collection(mine.kind, values)
    if other.kind == "tuple" and mine.kind == "list":
        return Collection("tuple", values)
    return mine


def _covers(items: Sequence[Answer], others: Sequence[Answer]) -> bool:
    """Say whether each of the others is the same as one of the items."""
    return all(any(same(item, other) for item in items) for other in others)


def _matches(items: Sequence[Answer], others: Sequence[Answer]) -> bool:
    """Say whether items and others are the same, in any order, each as often."""
    left = list(others)
    for item in items:
        found = next((i for i, other in enumerate(left) if same(item, other)), None)
        if found is None:
            return False
        del left[found]
    return not left


def _same_quantities(left: Answer, right: Answer) -> bool:
    """Compare answers of which at least one has a unit."""
    if not isinstance(left, Quantity):
        left, right = right, left
    assert isinstance(left, Quantity)
    if isinstance(right, Quantity):
        if left.unit.kind == right.unit.kind:
            if left.unit.size == right.unit.size:
                return same_value(left.node, right.node)
            return same_value(times(left.node, left.unit.size), times(right.node, right.unit.size))
        if left.product is not None and right.product is not None:
            return same_value(left.product, right.product)
        turn = {left.unit.kind, right.unit.kind} == {DEGREE.kind, KNOWN["rad"].kind}
        return turn and same_value(_radians(left), _radians(right))
    if not isinstance(right, Expression):
        return False
    if left.product is not None and same_value(left.product, right.node):
        return True
    if left.unit == PERCENT and same_value(Node("/", (left.node, _HUNDRED)), right.node):
        return True
    if left.unit.kind == DEGREE.kind and uses(right.node, "degree"):
        return same_value(_radians(left), right.node)
    in_radians = left.unit.kind == DEGREE.kind and _has_pi(right.node)
    if in_radians and same_value(_radians(left), right.node):
        return True
    return not left.needs_unit and same_value(left.node, right.node)


NO_SOLUTION = frozenset(("no solution", "no solutions", "empty set", "the empty set"))
_ZERO, _HUNDRED = (Node("number", number=Numeral(Fraction(n))) for n in (0, 100))


def _has_pi(node: Node) -> bool:
    """Say whether π is in an expression: angles with it are in radians."""
    return node.name == "pi" or any(map(_has_pi, node.args))


def _radians(quantity: Quantity) -> Node:
    """Return an angle as the number it is."""
    value = times(quantity.node, quantity.unit.size)
    return Node("degree", (value,)) if quantity.unit.kind == DEGREE.kind else value


def _same_sets(left: Answer, right: Answer) -> bool:
    """Compare answers of which at least one is an interval or made of sets."""
    one, other = _parts(left), _parts(right)
    if len(one) == len(other) == 1:
        return _same_simple_sets(one[0], other[0])
    return len(one) == len(other) and all(
        any(_same_simple_sets(part, another) for another in other) for part in one
    )


def _parts(answer: Answer) -> list[Answer]:
    """Return the sets of which a set is the union; the line without points is made of intervals."""
    if isinstance(answer, Union):
        return [inner for part in answer.parts for inner in _parts(part)]
    if isinstance(answer, Domain) and answer.letter == "R":
        return [Interval(negated(_INFINITY), _INFINITY, False, False)]
    if isinstance(answer, Without):
        holes = answer.removed.items if isinstance(answer.removed, Collection) else ()
        points = [item.node for item in holes if isinstance(item, Expression)]
        if answer.whole == Domain("R") and len(points) == len(holes) > 0:
            return _between(points) or [answer]
    return [answer]


_INFINITY = Node("constant", name="infty")


def _between(points: list[Node]) -> list[Answer] | None:
    """Return the intervals between points; None: they are not numbers that can be sorted."""
    if any(symbols(point) for point in points):
        return None
    evaluator = Evaluator()
    values = [(evaluator.value(point), point) for point in points]
    if not all(isinstance(value, Fraction) for value, _ in values):
        return None
    line = [negated(_INFINITY), *(p for _, p in sorted(values, key=lambda v: v[0])), _INFINITY]
    return [Interval(a, b, False, False) for a, b in pairwise(line)]


def _same_simple_sets(left: Answer, right: Answer) -> bool:
    first, second = _interval(left), _interval(right)
    if first is not None and second is not None:
        return (
            (first.with_low, first.with_high) == (second.with_low, second.with_high)
            and same_value(first.low, second.low)
            and same_value(first.high, second.high)
        )
    if isinstance(left, Without) and isinstance(right, Without):
        return same(left.whole, right.whole) and same(left.removed, right.removed)
    if isinstance(left, Domain) or isinstance(right, Domain):
        return left == right
    if isinstance(left, Collection) and isinstance(right, Collection):
        return _same_items(left, right)
    return False


def _interval(answer: Answer) -> Interval | None:
    """Return an interval; a pair of values is an open one as well."""
    if isinstance(answer, Interval):
        return answer
    if isinstance(answer, Collection) and answer.kind == "tuple" and len(answer.items) == 2:
        low, high = answer.items
        if isinstance(low, Expression) and isinstance(high, Expression):
            return Interval(low.node, high.node, False, False)
    return None


def _same_texts(left: Answer, right: Answer) -> bool:
    if isinstance(left, Text) and isinstance(right, Text):
        words = {left.words, right.words}
        if len(words) == 1 or words <= NO_SOLUTION:
            return True
    nodes = [side.node if isinstance(side, Text | Expression) else None for side in (left, right)]
    return nodes[0] is not None and nodes[1] is not None and same_value(nodes[0], nodes[1])


def _same_ratios(left: Answer, right: Answer) -> bool:
    """Compare answers of which at least one is a ratio."""
    if not isinstance(left, Ratio):
        left, right = right, left
    assert isinstance(left, Ratio)
    if isinstance(right, Expression) and len(left.parts) == 2:
        return same_value(Node("/", left.parts), right.node)
    if not isinstance(right, Ratio) or len(left.parts) != len(right.parts):
        return False
    if any(same_value(part, _ZERO) for part in (*left.parts, *right.parts)):
        return all(map(same_value, left.parts, right.parts))
    return all(
        same_value(Node("*", (left.parts[0], other)), Node("*", (right.parts[0], one)))
        for one, other in zip(left.parts[1:], right.parts[1:], strict=True)
    )


def _same_times(left: Clock, right: Clock) -> bool:
    """Compare times of the day: 3:00 is 3:00 pm, which is 15:00; 3:00 and 15:00 differ."""
    if left.parts == right.parts:
        return left.half == right.half or not (left.half and right.half)
    return bool(left.half or right.half) and _of_the_day(left) == _of_the_day(right)


def _of_the_day(clock: Clock) -> tuple[int, ...]:
    """Return a time on a clock of 24 hours."""
    hour, *rest = clock.parts
    return (hour % 12 + (12 if clock.half == "pm" else 0) if clock.half else hour, *rest)
