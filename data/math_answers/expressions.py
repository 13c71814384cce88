"""Expressions: numbers, symbols and what is computed of them, read by recursive descent.

    sum      = [+ -] product { (+ - ±) product }
    product  = power { (* /) power | power }         2x, 2\\sqrt{3}, 3(x + 1)
    power    = postfix [ ^ power ]
    postfix  = primary { ! ° }
    primary  = number | symbol | \\frac{}{} | \\sqrt{} | function argument | ( sum ) | |sum|

A product without a sign never takes a number on its right (x2, (3)4): nobody can say what it means.
"""

from dataclasses import dataclass
from fractions import Fraction

from data.math_answers.lexing import Token
from data.math_answers.literals import Numeral, Unreadable, words

DEEPEST = 30
"""Brackets, fractions, roots and powers inside of each other."""

FUNCTIONS = words(
    """
    sin cos tan cot sec csc asin acos atan sinh cosh tanh ln log exp sqrt abs arcsin arccos
    arctan arg cbrt
    """
)
CONSTANTS = {"pi": "pi", "e": "e", "i": "i", "infty": "infty", "inf": "infty", "infinity": "infty"}
GREEK = words(
    """
    alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau
    upsilon phi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega ell hbar
    """
)
CALCULUS = words(
    """
    int iint iiint oint sum prod limit limsup liminf partial nabla
    """
)
_DECORATIONS = words(
    """
    overline vec hat tilde dot ddot underline overbrace
    """
)
_NAMERS = frozenset(["angle", "triangle", "measuredangle"])
_OPENING = {"(": ")", "[": "]", "{": "}", "|(": ")|", "floor(": ")floor", "ceil(": ")ceil"}


class NeedsCalculus(Unreadable):
    """An integral, sum, product or limit: what this grammar leaves to another reader."""


@dataclass(frozen=True, slots=True)
class Node:
    """A number, a symbol, or an operation on other nodes.

    Attributes:
        op: number, symbol, constant, an operator, or a function's name.
        args: what it is applied to.
        name: of a symbol or constant.
        number: as it was written.
    """

    op: str
    args: tuple["Node", ...] = ()
    name: str = ""
    number: Numeral | None = None


def whole(value: int) -> Node:
    """Return a whole number."""
    return Node("number", number=Numeral(Fraction(value)))


def _pieces(text: str) -> list[str]:
    """Return the names in a run of letters: itself, a name and a letter (pix, sinx), or letters.

    Raises:
        Unreadable: it is a word.
    """
    if text in CONSTANTS or text in FUNCTIONS:
        return [text]
    if text[:-1] in FUNCTIONS or text[:-1] == "pi":
        return [text[:-1], text[-1]]
    if len(text) > 3 or any(name in text for name in ("pi", "sin", "cos", "tan", "log", "ln")):
        raise Unreadable(f"the word {text} in an expression")
    return list(text)


def _is_infix(token: Token) -> bool:
    """Say whether a token is an operator of TeX that stands between its arguments."""
    return token.kind == "command" and token.text in ("over", "choose")


def _quotient(top: Node, bottom: Node) -> Node:
    """Return one expression over another; d/dx, dy/dx and d^2y/dx^2 are none."""
    first = top.args[0] if top.op == "*" else top
    first = first.args[0] if first.op == "^" else first
    if bottom.op == "*" and first.name == bottom.args[0].name == "d":
        raise NeedsCalculus("a derivative")
    return Node("/", (top, bottom))


class ExpressionReader:
    """Reads one run of tokens as an expression.

    Attributes:
        both_signs: whether a ± was met: the text then means two values.
        doubts: what has another usual meaning.
    """

    def __init__(self, tokens: list[Token], sign: int, doubts: list[str]) -> None:
        self.both_signs = 0
        self.doubts = doubts
        self._tokens, self._sign = tokens, sign
        self._at = self._depth = self._bars = 0

    def read(self) -> Node:
        """Return the expression that all tokens make.

        Raises:
            Unreadable: they don't make one.
        """
        node = self._sum()
        if self._at < len(self._tokens):
            raise Unreadable(f"{self._tokens[self._at].text!r} is not expected there")
        return node

    def _peek(self, ahead: int = 0) -> Token | None:
        at = self._at + ahead
        return self._tokens[at] if at < len(self._tokens) else None

    def _is(self, *texts: str, ahead: int = 0) -> bool:
        token = self._peek(ahead)
        return token is not None and token.kind == "mark" and token.text in texts

    def _take(self, text: str) -> None:
        if not self._is(text):
            found = self._peek()
            raise Unreadable(f"{text!r} expected, not {found.text if found else 'the end'!r}")
        self._at += 1

    def _deeper(self) -> None:
        self._depth += 1
        if self._depth > DEEPEST:
            raise Unreadable(f"nested more than {DEEPEST} deep")

    def _sum(self) -> Node:
        self._deeper()
        terms: list[Node] = []
        while True:
            negative = False
            if self._is("+", "-", "±", "∓"):
                negative = self._negative()
            elif terms:
                break
            product = self._product()
            terms.append(Node("neg", (product,)) if negative else product)
            if not self._is("+", "-", "±", "∓"):
                break
        self._depth -= 1
        return terms[0] if len(terms) == 1 else Node("+", tuple(terms))

    def _negative(self) -> bool:
        """Take a sign; say whether it is minus in the reading of ± that is made."""
        sign = self._tokens[self._at].text
        self._at += 1
        if sign in "±∓":
            self.both_signs += 1
            return (sign == "±") == (self._sign < 0)
        return sign == "-"

    def _product(self) -> Node:
        above, below = [self._signed_power()], list[Node]()
        slashed = False
        while True:
            if self._is("*", "/"):
                slashed = self._is("/")
                self._at += 1
                (below if slashed else above).append(self._signed_power())
            elif self._begins_factor():
                if slashed:
                    self.doubts.append("what stands after the slash may be a product: use brackets")
                above.append(self._power())
            else:
                break
        top = above[0] if len(above) == 1 else Node("*", tuple(above))
        if not below:
            return top
        return _quotient(top, below[0] if len(below) == 1 else Node("*", tuple(below)))

    def _begins_factor(self) -> bool:
        """Say whether what comes next is multiplied without a sign."""
        token = self._peek()
        if token is None:
            return False
        if token.kind == "number":  # 3!7! has one reading
            return self._at > 0 and self._is("!", ahead=-1)
        if token.kind != "mark":
            return not (token.text.startswith("end:") or _is_infix(token))
        return token.text in ("(", "[", "{", "|(", "floor(", "ceil(") or (
            token.text == "|" and self._bars == 0
        )

    def _signed_power(self) -> Node:
        """Return a factor after a sign of its own, as in 3 * -2."""
        if self._is("+", "-"):
            negative = self._negative()
            power = self._power()
            return Node("neg", (power,)) if negative else power
        return self._power()

    def _power(self) -> Node:
        base = self._postfix()
        if not self._is("^"):
            return base
        self._at += 1
        return Node("^", (base, self._exponent()))

    def _exponent(self) -> Node:
        self._deeper()
        exponent = self._exponent_inside()
        self._depth -= 1
        return exponent

    def _exponent_inside(self) -> Node:
        if self._is("+", "-", "±", "∓"):
            negative = self._negative()
            exponent = self._exponent()
            return Node("neg", (exponent,)) if negative else exponent
        token = self._peek()
        if token is not None and token.kind == "word" and len(token.text) > 1:
            raise Unreadable(f"an exponent {token.text} without braces")
        base = self._postfix()
        if self._is("^"):
            self._at += 1
            return Node("^", (base, self._exponent()))
        return base

    def _postfix(self) -> Node:
        node = self._primary()
        while True:
            if self._is("!"):
                if node.op == "factorial":
                    raise Unreadable("a factorial of a factorial, or a double one")
                self._at += 1
                node = Node("factorial", (node,))
            elif self._is("deg"):
                self._at += 1
                node = Node("degree", (node,))
            elif self._is("^") and self._is("deg", ahead=1):
                self._at += 2
                node = Node("degree", (node,))
            elif self._is("^") and self._is("{", ahead=1) and self._is("deg", ahead=2):
                self._at += 3
                self._take("}")
                node = Node("degree", (node,))
            elif self._is("%"):
                self._at += 1
                node = Node("/", (node, whole(100)))
            else:
                return node

    def _primary(self) -> Node:
        token = self._peek()
        if token is None:
            raise Unreadable("it ends where a value is expected")
        self._at += 1
        if token.kind == "number":
            return self._number(token)
        if token.kind == "word":
            return self._letters(token)
        if token.kind == "text":
            return self._upright(token)
        if token.kind == "command":
            return self._command(token)
        if token.text in _OPENING:
            inner = self._inside(token.text)
            return (
                Node({"|(": "abs", "floor(": "floor", "ceil(": "ceil"}[token.text], (inner,))
                if (token.text in ("|(", "floor(", "ceil("))
                else inner
            )
        if token.text == "|":
            self._bars += 1
            inner = self._sum()
            self._bars -= 1
            self._take("|")
            return Node("abs", (inner,))
        raise Unreadable(f"{token.text!r} is not expected there")

    def _inside(self, opening: str) -> Node:
        """Return what stands between a bracket that was taken and its closing one."""
        bars, self._bars = self._bars, 0
        inner = self._sum()
        if (token := self._peek()) is not None and opening == "{" and _is_infix(token):
            self._at += 1
            other = self._sum()
            inner = (
                _quotient(inner, other) if token.text == "over" else Node("binom", (inner, other))
            )
        self._bars = bars
        self._take(_OPENING[opening])
        return inner

    def _number(self, token: Token) -> Node:
        """Return a number, with the fraction that makes it a mixed one."""
        assert token.number is not None
        if token.number.base != 10:
            raise Unreadable("a number with a base inside of an expression")
        if self._is("_"):
            raise Unreadable("an index below a number")
        node = Node("number", number=token.number)
        if not token.number.proper:
            return node
        fraction, taken = self._proper_fraction()
        if fraction is None:
            return node
        self._at += taken
        return Node("number", number=Numeral(token.number.value + fraction))

    def _proper_fraction(self) -> tuple[Fraction | None, int]:
        """Return the fraction of a mixed number that follows, and its tokens.

        Raises:
            Unreadable: a number and an improper fraction stand side by side.
        """
        after = self._tokens[self._at : self._at + 7]
        numbers = [token.number for token in after]
        texts = [token.text for token in after]
        top = bottom = None
        taken = 0
        if after and after[0].kind == "number" and numbers[0] is not None:
            if not texts[0].isascii() and len(texts[0]) == 1:  # a character such as ½
                return numbers[0].value, 1
            if after[0].spaced and texts[1:2] == ["/"] and len(after) > 2:
                top, bottom, taken = numbers[0], numbers[2], 3
        elif texts[:2] == ["frac", "{"] and texts[3:5] == ["}", "{"] and texts[6:7] == ["}"]:
            top, bottom, taken = numbers[2], numbers[5], 7
        if top is None or bottom is None or not top.proper or not bottom.proper:
            return None, 0
        if not 0 < top.value < bottom.value:
            raise Unreadable("a whole number beside an improper fraction")
        return top.value / bottom.value, taken

    def _letters(self, token: Token) -> Node:
        """Return what a run of letters begins with; what is left of it is multiplied."""
        first, *others = _pieces(token.text)
        if others:
            rest = [Token("word", text) for text in others]
            self._tokens = [*self._tokens[: self._at], *rest, *self._tokens[self._at :]]
        if first in CONSTANTS:
            return self._constant(CONSTANTS[first])
        return self._function(first) if first in FUNCTIONS else self._symbol(first)

    def _constant(self, name: str) -> Node:
        if self._is("_"):
            return self._symbol(name)
        return Node("constant", name=name)

    def _symbol(self, name: str) -> Node:
        """Return a symbol with what belongs to its name: an index, primes."""
        if self._is("_"):
            self._at += 1
            name = f"{name}_{self._index()}"
        while self._is("'"):
            self._at += 1
            name += "'"
        function = name[0] in "fgh" and not name[1:].isalpha()
        if self._is("(") and (function or name in ("Gamma", "zeta") or name.endswith("'")):
            raise Unreadable(f"the value {name}(…) of a function that isn't known")
        return Node("symbol", name=name)

    def _index(self) -> str:
        """Return what stands below a symbol, as text."""
        token = self._peek()
        if token is None:
            raise Unreadable("an index is missing")
        self._at += 1
        if token.kind != "mark":
            return token.text
        if token.text != "{":
            raise Unreadable(f"the index {token.text}")
        parts: list[str] = []
        while not self._is("}"):
            inner = self._peek()
            if inner is None or inner.text == "{":
                raise Unreadable("an index that isn't closed, or has braces in it")
            parts.append(inner.text)
            self._at += 1
        self._at += 1
        return "".join(parts)

    def _upright(self, token: Token) -> Node:
        """Return what a word in \\text or \\mathrm means: a letter, a constant or a function."""
        if token.text in CONSTANTS:
            return self._constant(CONSTANTS[token.text])
        if token.text in FUNCTIONS:
            return self._function(token.text)
        if len(token.text) == 1:
            return self._symbol(token.text)
        raise Unreadable(f"the word {token.text} in an expression")

    def _command(self, token: Token) -> Node:
        name = token.text
        if name in CALCULUS:
            raise NeedsCalculus(f"\\{name}")
        if name in ("pi", "infty"):
            return self._constant(name)
        if name in GREEK:
            return self._symbol(name)
        if name == "frac":
            return _quotient(self._group(), self._group())
        if name == "binom":
            return Node("binom", (self._group(), self._group()))
        if name == "sqrt":
            return self._root()
        if name in ("root", "cbrt"):
            degree = whole(2 if name == "root" else 3)
            return Node("root", (self._primary(), degree))
        if name in FUNCTIONS or name == "lg":
            return self._function(name)
        if name in _DECORATIONS:
            return self._symbol(f"{name} {self._group_text()}")
        if name in _NAMERS:
            following = self._peek()
            if following is not None and following.kind in ("word", "text"):
                self._at += 1
                return self._symbol(f"{name} {following.text}")
        raise Unreadable(f"\\{name}")

    def _group(self) -> Node:
        self._take("{")
        return self._inside("{")

    def _group_text(self) -> str:
        """Return the letters in a group, as in \\overline{AB}."""
        self._take("{")
        text = ""
        while not self._is("}"):
            token = self._peek()
            if token is None or token.kind not in ("word", "text", "command"):
                raise Unreadable("a decoration over more than letters")
            text += token.text
            self._at += 1
        self._at += 1
        return text

    def _root(self) -> Node:
        degree = whole(2)
        if self._is("["):
            self._at += 1
            degree = self._sum()
            self._take("]")
        return Node("root", (self._group(), degree))

    def _function(self, name: str) -> Node:
        """Return a function of its argument: \\sin x, \\sin^2 x, \\log_2 8, sqrt(2)."""
        base: Node | None = whole(10) if name == "lg" else None
        power: Node | None = None
        if self._is("_"):
            if name != "log":
                raise Unreadable(f"an index below {name}")
            self._at += 1
            base = self._base()
        elif name == "log" and self._has_plain_base():
            base = self._primary()
        if self._is("^"):
            self._at += 1
            power = self._exponent()
        name = {"arcsin": "asin", "arccos": "acos", "arctan": "atan"}.get(name, name)
        if self._inverse(power):
            if name not in ("sin", "cos", "tan"):
                raise Unreadable(f"the inverse of {name}")
            name, power = f"a{name}", None
        if name in ("sqrt", "cbrt"):
            node = Node("root", (self._primary(), whole(2 if name == "sqrt" else 3)))
        else:
            argument = self._argument()
            if base is not None:
                node = Node("/", (Node("ln", (argument,)), Node("ln", (base,))))
            else:
                node = Node(name, (argument,))
        return node if power is None else Node("^", (node, power))

    def _base(self) -> Node:
        """Return the base of a logarithm; TeX takes one character where there is no brace."""
        return self._primary()

    def _has_plain_base(self) -> bool:
        """Say whether the digits of log2(8) come next."""
        token = self._peek()
        digits = token is not None and token.kind == "number" and not token.spaced
        return digits and self._is("(", "{", ahead=1)

    @staticmethod
    def _inverse(power: Node | None) -> bool:
        """Say whether the power of a function means its inverse."""
        if power is None or power.op != "neg" or power.args[0].number is None:
            return False
        return power.args[0].number.value == 1

    def _argument(self) -> Node:
        """Return a function's argument: a group, or a product up to the next sign or function."""
        if self._is("(", "{", "[", "|", "|("):
            return self._primary()
        negative = self._is("-")
        if negative:
            self._at += 1
        node = self._power()
        while self._begins_factor() and not self._is_function() and not self._is("(", "[", "{"):
            node = Node("*", (node, self._power()))
        if self._is("(", "[", "{"):
            self.doubts.append("what a function's argument is: put it into brackets")
        return Node("neg", (node,)) if negative else node

    def _is_function(self) -> bool:
        token = self._peek()
        return token is not None and (token.text in FUNCTIONS or token.text == "lg")
