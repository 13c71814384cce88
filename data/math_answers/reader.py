"""The reader of answers: a text becomes one of the things in answers.py, or is unreadable.

What binds least is taken apart first:

    list       1, 2 and 3          x = 1 or x = 2
    relation   x = 5               1 < x \\leq 2          x \\in [0, 1]
    set        (0, 1) \\cup \\{2\\}
    ratio      3 : 4               12:00
    brackets   (1, 2)  [1, 2)  \\{1, 2\\}  matrices
    quantity   10 cm               5 feet 6 inches       \\$5
    value      2\\frac{3}{4}        \\sqrt{2} + 1

Every step gets a run of tokens and must use all of them.
"""

import re
from fractions import Fraction
from typing import NamedTuple

from data.math_answers import measures
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
from data.math_answers.equality import difference, negated, same, times
from data.math_answers.expressions import (
    CONSTANTS,
    FUNCTIONS,
    ExpressionReader,
    Node,
)
from data.math_answers.labels import label
from data.math_answers.lexing import LONGEST, Lexer, Token, closing_brace, with_braces
from data.math_answers.literals import Numeral, Unreadable, in_base
from data.math_answers.names import name_of
from data.math_answers.token_runs import (
    is_mark,
    matching,
    split,
    with_union_signs,
    with_usual_brackets,
    without_group,
)
from data.math_answers.values import decimal, same_value, shows, symbols

_EQUALS, _INEQUALITIES = ("=", "~", "in"), ("<", ">", "<=", ">=", "!=")
_RELATIONS = frozenset((*_EQUALS, *_INEQUALITIES))
_MATRICES = frozenset(("matrix", "pmatrix", "bmatrix", "Bmatrix", "smallmatrix", "array"))
_DOMAINS = frozenset("RZNQC")
_INFINITY = Node("constant", name="infty")
_TRAILING = re.compile(r"(?:\s|~|\\[,;:! ]|\\q?quad\b|(?<!\\)[,;]|(?<![.\\])\.)+$")
_LEADING = re.compile(r"^(?:\s|~|\\[,;:! ]|\\q?quad\b)+")
_WRAPPED = (("\\(", "\\)"), ("\\[", "\\]"), ("$$", "$$"), ("**", "**"), ('"', '"'), ("`", "`"))
_CHOOSE = re.compile(r"\{([^{}]*)\\choose(?![A-Za-z])([^{}]*)\}")
_BOX = re.compile(r"\\(?:boxed|fbox)\s*(?=\{)")


class Reading(NamedTuple):
    """An answer that was read.

    Attributes:
        answer: what it says.
        doubts: what has another usual meaning, a line each.
    """

    answer: Answer
    doubts: tuple[str, ...]


def read(text: str) -> Reading:
    """Return what an answer says.

    Args:
        text: LaTeX or plain text, without its box.

    Raises:
        Unreadable: it can't be read as a whole.
    """
    if len(text) > LONGEST:
        raise Unreadable(f"longer than {LONGEST} characters")
    plain = unwrapped(text)
    if not plain:
        raise Unreadable("it is empty")
    if option := re.fullmatch(r"\(?([A-Za-z])\)", plain):
        plain = option[1]
    try:
        lexer = Lexer(with_braces(_CHOOSE.sub(r"\\binom{\1}{\2}", plain)))
        tokens = lexer.run()
        reader = AnswerReader(lexer.doubts)
        return Reading(reader.read(without_group(tokens)), tuple(dict.fromkeys(lexer.doubts)))
    except RecursionError as error:
        raise Unreadable("nested too deeply") from error


def unwrapped(text: str) -> str:
    """Return an answer without what stands around it: dollars, boxes, stars, a full stop."""
    text = "".join(
        chr(ord(c) - 0xFEE0) if "\uff01" <= c <= "\uff5e" else c for c in text if c != "\u200b"
    )
    text = re.sub(r"\b([AaPp])\.\s?[Mm]\.?(?![A-Za-z])", r"\1m", text)
    before = None
    while before != text:
        before = text
        text = _LEADING.sub("", _TRAILING.sub("", text) if not text.endswith("...") else text)
        for opening, closing in _WRAPPED:
            if (
                len(text) > len(opening) + len(closing)
                and text.startswith(opening)
                and text.endswith(closing)
            ):
                text = text[len(opening) : -len(closing)]
        if (box := _BOX.match(text)) and closing_brace(text, box.end()) == len(text) - 1:
            text = text[box.end() + 1 : -1]
    dollars = re.findall(r"(?<!\\)\$", text)
    if dollars and len(dollars) % 2 == 0:
        text = re.sub(r"(?<!\\)\$", " ", text)
    return text.strip()


def _joins(token: Token) -> bool:
    """Say whether a token stands between the answers of a list."""
    if token.kind == "mark":
        return token.text in (",", ";", "and", "or")
    return token.kind in ("word", "text") and token.text.lower() in ("and", "or")


class AnswerReader:
    """Reads runs of tokens.

    Attributes:
        doubts: what has another usual meaning.
    """

    def __init__(self, doubts: list[str]) -> None:
        self.doubts = doubts
        self._sign = 0  # which sign of ± is being read; 0: none yet
        self._depth = 0

    def read(self, tokens: list[Token]) -> Answer:
        """Return the answer that tokens make.

        Raises:
            Unreadable: they don't make one.
        """
        self._depth += 1
        if self._depth > 12:
            raise Unreadable("answers nested too deeply")
        answer = self._list(with_usual_brackets(tokens))
        self._depth -= 1
        return answer

    def _list(self, tokens: list[Token]) -> Answer:
        runs, separators = split(tokens, _joins)
        kept = [run for run in runs if run]
        # Nothing may be missing but between a comma and the word after it: 1, 2, and 3.
        for run, separator in zip(runs[1:], separators[1:] + separators[-1:], strict=False):
            if not run and separator.text in (",", ";"):
                raise Unreadable("nothing between two separators")
        if not runs[0] or not runs[-1]:
            raise Unreadable("it is empty, or begins or ends with a separator")
        if len(kept) == 1:
            found = self._both_signs(kept[0])
            return found[0] if len(found) == 1 else Collection("list", tuple(found))
        self._doubt_numbers(kept, separators)
        items = [answer for run in kept for answer in self._both_signs(run)]
        logical = any(is_mark(separator, "and", "or") for separator in separators)
        if logical and not all(isinstance(item, Named | Relation) for item in items):
            raise Unreadable("∧ or ∨ beside what is no equation or inequality")
        words = {s.text.lower() for s in separators}
        if words == {"or"} and all(same(items[0], item) for item in items):
            return items[0]
        joined = measures.joined(items) if "or" not in words else None
        if joined is not None:
            return joined
        return _combined(_share_name(items), words)

    def _doubt_numbers(self, runs: list[list[Token]], separators: list[Token]) -> None:
        """Look for one number among the answers of a list: 1, 000 and 2 and 3/4."""
        numbers = [run[0].number if len(run) == 1 else None for run in runs]
        if any(n is not None and len(n.plain) > 1 and n.plain[0] == "0" for n in numbers[1:]):
            raise Unreadable("a comma and a space within the digits of a number")
        joined = len(separators) == 1 and separators[0].text == "and" and numbers[0] is not None
        if joined and len(runs[1]) == 3 and is_mark(runs[1][1], "/") and runs[1][0].number:
            self.doubts.append("a mixed number or two: write 2 3/4 or 2, 3/4")

    def _both_signs(self, tokens: list[Token]) -> list[Answer]:
        """Return one answer, or two if a ± means both signs."""
        signs = sum(is_mark(token, "±", "∓") for token in tokens)
        if not signs or self._sign or is_mark(tokens[0], "set{"):
            return [self._one(tokens)]
        if sum(is_mark(token, "±") for token in tokens) > 1:
            raise Unreadable("more than one ±: which signs belong together isn't said")
        found = []
        for self._sign in (1, -1):
            found.append(self._one(tokens))
        self._sign = 0
        return found

    def _one(self, tokens: list[Token]) -> Answer:
        """Return an answer that is no list."""
        if not tokens:
            raise Unreadable("an answer is missing")
        if len(tokens) == 1 and is_mark(tokens[0], "..."):
            return Gap()
        sides, relations = split(tokens, lambda t: t.kind == "mark" and t.text in _RELATIONS)
        if relations:
            return self._relation(sides, [token.text for token in relations])
        if (phrase := label(tokens) or _phrase(tokens)) is not None:
            return phrase
        return self._set(tokens)

    def _relation(self, sides: list[list[Token]], relations: list[str]) -> Answer:
        if all(relation in _EQUALS for relation in relations):
            return self._equation(sides, relations)
        if all(relation in _INEQUALITIES for relation in relations):
            return self._inequality(sides, relations)
        raise Unreadable("= and < in one chain")

    def _equation(self, sides: list[list[Token]], relations: list[str]) -> Answer:
        """Return x = 5, 5 = x, 2 + 3 = 5, x = 2 + 3 = 5, x + y = 3 or x ≈ 0.33."""
        if not sides[0] and relations in (["~"], ["="]):
            return self._one(sides[1])
        if len(sides) == 2 and relations[0] != "~":
            name, other = name_of(sides[0]), name_of(sides[1])
            if name is not None:
                return Named(name, self._one(sides[1]), self._node_or_none(sides[0]))
            if other is not None and relations[0] == "=":
                return Named(other, self._one(sides[0]), self._node_or_none(sides[1]))
            if relations[0] == "in":
                raise Unreadable("a member of a set that has no name")
            left, right = self._value(sides[0]), self._value(sides[1])
            if same_value(left, right):
                return Expression(right)
            if not symbols(left) | symbols(right):
                raise Unreadable("the two sides of = differ")
            return Relation("=", difference(left, right))
        name = name_of(sides[0])
        values = [self._one(side) for side in (sides[1:] if name is not None else sides)]
        links = relations[1:] if name is not None else relations
        if "in" in links:
            raise Unreadable("a member of a set in a chain")
        exact = values[0]
        for link, value in zip(links, values[1:], strict=True):
            if link == "~":
                if not _approximates(value, exact):
                    raise Unreadable("what stands after ≈ is no decimal of what stands before it")
            elif same(exact, value):
                exact = value
            else:
                raise Unreadable("the parts of a chain of = differ")
        return exact if name is None else Named(name, exact, self._node_or_none(sides[0]))

    def _inequality(self, sides: list[list[Token]], relations: list[str]) -> Answer:
        nodes = [self._value(side) for side in sides]
        if "!=" in relations:
            if len(nodes) != 2:
                raise Unreadable("≠ in a chain")
            return Relation("!=", difference(nodes[0], nodes[1]))
        if relations[0] in (">", ">="):
            nodes, relations = nodes[::-1], [r.replace(">", "<") for r in relations[::-1]]
        if any(">" in relation for relation in relations):
            raise Unreadable("< and > in one chain")
        with_low, with_high = relations[0] == "<=", relations[-1] == "<="
        names = [node.name if node.op == "symbol" else "" for node in nodes]
        known = [not symbols(node) for node in nodes]
        if len(nodes) == 2 and names[0] and known[1]:
            allowed = Interval(negated(_INFINITY), nodes[1], False, with_high)
            return Named(names[0], allowed, nodes[0])
        if len(nodes) == 2 and names[1] and known[0]:
            return Named(names[1], Interval(nodes[0], _INFINITY, with_low, False), nodes[1])
        if len(nodes) == 3 and names[1] and known[0] and known[2]:
            return Named(names[1], Interval(nodes[0], nodes[2], with_low, with_high), nodes[1])
        found = [
            Relation("<=" if relation == "<=" else "<", difference(low, high))
            for low, high, relation in zip(nodes, nodes[1:], relations, strict=False)
        ]
        return found[0] if len(found) == 1 else Collection("list", tuple(found))

    def _set(self, tokens: list[Token]) -> Answer:
        """Return sets joined by ∪, a set without another, or what is no set."""
        runs, _ = split(with_union_signs(tokens), lambda t: is_mark(t, "∪"))
        if len(runs) > 1:
            return Union(tuple(self._set_alone(run) for run in runs))
        runs, _ = split(tokens, lambda t: is_mark(t, "∖"))
        if len(runs) == 2:
            return Without(self._set_alone(runs[0]), self._set_alone(runs[1]))
        if len(tokens) == 1 and tokens[0].kind == "command":
            if tokens[0].text == "emptyset":
                return Collection("set", ())
            if tokens[0].text in _DOMAINS:
                return Domain(tokens[0].text)
        return self._ratio(tokens)

    def _set_alone(self, tokens: list[Token]) -> Answer:
        """Return a set that stands beside another one."""
        if tokens and is_mark(tokens[0], "{") and matching(tokens, 0) == len(tokens) - 1:
            return self._set_of(tokens[1:-1], "}set")
        found = self._one(tokens)
        pair = isinstance(found, Collection) and (
            found.kind == "set" or (found.kind == "tuple" and len(found.items) == 2)
        )
        if not pair and not isinstance(found, Interval | Domain | Without):
            raise Unreadable("∪ or ∖ beside what is no set")
        return found

    def _ratio(self, tokens: list[Token]) -> Answer:
        half = ""
        if len(tokens) > 1 and tokens[-1].text.lower() in ("am", "pm"):
            tokens, half = tokens[:-1], tokens[-1].text.lower()
        runs, _ = split(tokens, lambda t: is_mark(t, ":") or _is_to(t))
        if len(runs) == 1 and not half:
            return self._brackets(tokens)
        if (clock := _clock(runs, half, tokens)) is not None:
            return clock
        if half:
            raise Unreadable(f"{half} after what is no time")
        if any(_is_to(token) for token in tokens):
            self.doubts.append("'to' stands in ratios and ranges: write 3:4 or [3, 4]")
        return Ratio(tuple(self._value(run) for run in runs))

    def _brackets(self, tokens: list[Token]) -> Answer:
        """Return what stands in brackets, if it is more than an expression, or what has none."""
        if any(t.kind == "command" and t.text.startswith("begin:") for t in tokens):
            return self._matrix(tokens)
        opening, closing = tokens[0].text, tokens[-1].text
        if (
            tokens[0].kind != "mark"
            or opening not in ("(", "[", "set{", "<|")
            or matching(tokens, 0) != len(tokens) - 1
        ):
            return self._based(tokens)
        inner = tokens[1:-1]
        if opening == "set{":
            return self._set_of(inner, closing)
        runs, _ = split(inner, lambda t: is_mark(t, ",", ";"))
        if len(runs) == 1:
            if (opening, closing) not in (("(", ")"), ("[", "]")):
                raise Unreadable("brackets that don't match around one value")
            return self.read(inner)
        items = tuple(self._one(run) for run in runs)
        shape = opening + closing
        if shape in ("()", "<||>"):
            return Collection("tuple", items)
        if shape not in ("[]", "[)", "(]"):
            raise Unreadable(f"the brackets {shape}")
        if shape == "[]" and (matrix := _rows(items)) is not None:
            return matrix
        if (
            len(items) == 2
            and isinstance(items[0], Expression)
            and isinstance(items[1], Expression)
        ):
            low, high = items[0].node, items[1].node
            return Interval(low, high, opening == "[", closing == "]")
        if shape != "[]":
            raise Unreadable("an interval of other than two values")
        return Collection("brackets", items)

    def _set_of(self, inner: list[Token], closing: str) -> Answer:
        if closing != "}set":
            raise Unreadable("a set that isn't closed")
        if not inner:
            return Collection("set", ())
        runs, _ = split(inner, lambda t: is_mark(t, "mid", "|", ":"))
        if len(runs) == 2:
            condition = self.read(runs[1])
            member, *domain = split(runs[0], lambda t: is_mark(t, "in"))[0]
            name = name_of(member)
            if domain and [token.text for token in domain[0]] != ["R"]:
                raise Unreadable("a set by a condition within another set")
            if isinstance(condition, Named) and condition.name == name:
                return condition.value
            raise Unreadable("a set by a condition that isn't an interval")
        runs, _ = split(inner, lambda t: is_mark(t, ",", ";"))
        sign, self._sign = self._sign, 0
        items = [answer for run in runs if self._required(run) for answer in self._both_signs(run)]
        self._sign = sign
        return Collection("set", tuple(items))

    @staticmethod
    def _required(run: list[Token]) -> bool:
        if not run:
            raise Unreadable("nothing between two separators")
        return True

    def _matrix(self, tokens: list[Token]) -> Answer:
        """Return a matrix, alone in brackets or after a factor."""
        if is_mark(tokens[0], "(", "[") and matching(tokens, 0) == len(tokens) - 1:
            return self._matrix(tokens[1:-1])
        start = next(i for i, t in enumerate(tokens) if t.text.startswith("begin:"))
        name = tokens[start].text.removeprefix("begin:")
        last = tokens[-1]
        if name not in _MATRICES or last.text != f"end:{name}" or last.kind != "command":
            raise Unreadable(f"the environment {name}, or what stands after it")
        rows, _ = split(tokens[start + 1 : -1], lambda t: is_mark(t, "\\\\"))
        if not rows[-1]:
            rows.pop()
        cells = [split(row, lambda t: is_mark(t, "&"))[0] for row in rows]
        if not cells or len({len(row) for row in cells}) != 1:
            raise Unreadable("a matrix whose rows differ in length")
        factor_tokens = tokens[:start]
        if factor_tokens and is_mark(factor_tokens[-1], "*"):
            factor_tokens = factor_tokens[:-1]
        if len(factor_tokens) == 1 and is_mark(factor_tokens[0], "-"):
            factor_tokens = [*factor_tokens, Token("number", "1", number=Numeral(Fraction(1), "1"))]
        factor = self._value(factor_tokens) if factor_tokens else None
        return Matrix(
            tuple(
                tuple(
                    node if factor is None else Node("*", (factor, node))
                    for node in (self._value(cell) for cell in row)
                )
                for row in cells
            )
        )

    def _based(self, tokens: list[Token]) -> Answer:
        """Return a number that says its base, or what does not."""
        negative = is_mark(tokens[0], "-")
        rest = tokens[1:] if negative else tokens
        number = _number_in_base(rest)
        if number is None or number.base == 10:
            return self._quantity(tokens)
        return Based(-number.value if negative else number.value, number.base)

    def _quantity(self, tokens: list[Token]) -> Answer:
        found = measures.quantity(tokens)
        if found is None:
            return Expression(self._value(tokens))
        value = times(self._value(found.value), Fraction(found.factor))
        if found.unit is None:
            return Expression(value)
        product = self._node_or_none(tokens) if found.needs_unit else None
        quantity = Quantity(value, found.unit, found.needs_unit, product)
        if not found.rest:
            return quantity
        rest = self._quantity(found.rest)
        joined = measures.joined([quantity, rest])
        if joined is None:
            raise Unreadable("two quantities side by side")
        return joined

    def _value(self, tokens: list[Token]) -> Node:
        """Return the expression that tokens make."""
        if not tokens:
            raise Unreadable("a value is missing")
        if _is_range_or_date(tokens):
            self.doubts.append("numbers with - or / between them may be a range, a score or a date")
        return ExpressionReader(tokens, self._sign or 1, self.doubts).read()

    def _node_or_none(self, tokens: list[Token]) -> Node | None:
        try:
            return self._value(tokens)
        except Unreadable:
            return None


def _is_to(token: Token) -> bool:
    return token.kind in ("word", "text") and token.text.lower() == "to"


def _is_range_or_date(tokens: list[Token]) -> bool:
    """Say whether tokens are like 10-20, 2026-11-30 or 30/11/2026."""
    signs = {token.text for token in tokens[1::2]}
    numbers = all(token.kind == "number" for token in tokens[::2])
    return (
        numbers
        and len(tokens) % 2 == 1
        and ((len(tokens) >= 3 and signs == {"-"}) or (len(tokens) >= 5 and signs == {"/"}))
    )


def _phrase(tokens: list[Token]) -> Text | None:
    """Return words as a text; None: they are letters of a formula, or there is more than words."""
    if len(tokens) > 2 and is_mark(tokens[0], "(") and matching(tokens, 0) == len(tokens) - 1:
        return _phrase(tokens[1:-1])
    words = [token for token in tokens if token.kind in ("word", "text")]
    others = [token for token in tokens if token.kind not in ("word", "text")]
    if not words or not all(is_mark(token, "-", "'", "/") for token in others):
        return None
    long = [
        w for w in words if len(w.text) > 1 and w.text not in CONSTANTS | dict.fromkeys(FUNCTIONS)
    ]
    text = "".join((" " if t.spaced else "") + t.text for t in tokens).strip().casefold()
    if others:
        spelled = any(len(w.text) > (3 if w.kind == "word" else 1) for w in long)
        return Text(text) if spelled and len(long) == len(words) else None
    if len(words) == 1 and words[0].kind == "word" and len(words[0].text) < 4 and long:
        try:
            return Text(text, ExpressionReader(words, 1, []).read())
        except Unreadable:
            return Text(text)
    if not long or any(w.text in FUNCTIONS for w in words):
        return None
    return Text(text)


def _share_name(items: list[Answer]) -> list[Answer]:
    """Return the answers of x = 1, 2 as x = 1, x = 2."""
    first, *rest = items
    if not isinstance(first, Named) or any(isinstance(item, Named | Relation) for item in rest):
        return items
    return [first, *(Named(first.name, item, first.node) for item in rest)]


def _combined(items: list[Answer], words: set[str]) -> Answer:
    """Return a list of answers; intervals of one name that words join are one set."""
    names = {item.name for item in items if isinstance(item, Named)}
    intervals = [i.value for i in items if isinstance(i, Named) and isinstance(i.value, Interval)]
    if len(intervals) < len(items) or len(names) != 1:
        return Collection("list", tuple(items))
    if "or" in words:
        return Named(names.pop(), Union(tuple(intervals)))
    if len(intervals) == 2:
        lows = [i for i in intervals if i.high == _INFINITY]
        highs = [i for i in intervals if i.low == negated(_INFINITY)]
        if len(lows) == len(highs) == 1:
            low, high = lows[0], highs[0]
            return Named(names.pop(), Interval(low.low, high.high, low.with_low, high.with_high))
    return Collection("list", tuple(items))


def _approximates(value: Answer, exact: Answer) -> bool:
    """Say whether one answer is a decimal of another one, to as many digits as it shows."""
    if not isinstance(value, Expression) or not isinstance(exact, Expression):
        return False
    shown = decimal(value.node)
    return shown is not None and not symbols(exact.node) and shows(shown, exact.node)


def _clock(runs: list[list[Token]], half: str, tokens: list[Token]) -> Clock | None:
    """Return a time such as 12:00 or 3:05:09 pm; None: it is a ratio."""
    numbers = [run[0].number if len(run) == 1 else None for run in runs]
    texts = [number.plain if number is not None else "" for number in numbers]
    if len(runs) > 3 or not all(texts) or (len(runs) == 1 and not half):
        return None
    if len(runs) > 1 and any(token.spaced for token in tokens[1:]):
        return None
    hour, *rest = (int(text) for text in texts)
    if any(len(text) != 2 for text in texts[1:]) or hour > 24 or any(part > 59 for part in rest):
        return None
    return Clock((hour, *(rest or [0])), half)


def _rows(items: tuple[Answer, ...]) -> Matrix | None:
    """Return [[1, 2], [3, 4]] as a matrix."""
    rows: list[tuple[Node, ...]] = []
    for item in items:
        if isinstance(item, Interval) and item.with_low and item.with_high:
            rows.append((item.low, item.high))
        elif isinstance(item, Collection) and item.kind == "brackets":
            nodes = [inner.node for inner in item.items if isinstance(inner, Expression)]
            if len(nodes) != len(item.items):
                return None
            rows.append(tuple(nodes))
        else:
            return None
    return Matrix(tuple(rows))


def _number_in_base(tokens: list[Token]) -> Numeral | None:
    """Return 101_2, (101)_2, 101 base 2 or 0x1F as a number."""
    if len(tokens) == 1 and tokens[0].number is not None:
        return tokens[0].number
    words = [t for t in tokens if not is_mark(t, "(", ")", "{", "}") and t.text != "in"]
    if len(words) != 3 or len(tokens) - len(words) > 4 or words[0].kind != "number":
        return None
    number, middle, base = words
    if not (middle.text.lower() == "base" or is_mark(middle, "_")):
        return None
    if number.number is None or base.number is None or not base.number.plain:
        return None
    if not number.number.plain:
        raise Unreadable("digits that aren't a whole number before a base")
    return in_base(number.number.plain, int(base.number.plain))
