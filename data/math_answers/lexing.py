"""From the text of an answer to tokens: LaTeX, plain text and Unicode come out alike.

    \\dfrac12  \\frac{1}{2}  ½        command frac { 1 } { 2 }   or the number 1/2
    \\left( x \\right)  (x)          ( x )
    \\leq  ≤  <=                     <=
    x²  x^2  x**2                   x ^ 2
    \\text{10 cm}                    10, then the upright word cm

Letters outside of \\text are `word`s, runs that the grammar takes apart; inside they are `text`.
"""

import re
import unicodedata
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

from data.math_answers.literals import Numeral, Unreadable, read_numeral, words

Kind = Literal["number", "word", "text", "command", "mark"]

LONGEST = 1000
"""Characters of an answer: what is longer is no final answer, and would take time to read."""


@dataclass(frozen=True, slots=True)
class Token:
    """A piece of an answer.

    Attributes:
        kind: what it is; marks are operators, brackets and separators.
        text: as it stands, or the one name that all spellings of it have.
        spaced: whether white space stands before it.
        number: the value of a number.
    """

    kind: Kind
    text: str
    spaced: bool = False
    number: Numeral | None = None


STYLES = words(
    """
    displaystyle textstyle scriptstyle limits nolimits left right middle big Big bigg Bigg bigl
    bigr Bigl Bigr biggl biggr Biggl Biggr bigm rm bf it mathbf boldsymbol mathit bm mathnormal
    pmb boxed fbox mathopen mathclose ensuremath
    """
)
_SPACES = words(
    """
    quad qquad enspace thinspace space hfill nobreakspace newline medspace
    """
)
_UPRIGHT = words(
    """
    text textrm textbf textit textsf texttt textnormal textup mathrm mathsf mathtt mbox hbox
    operatorname emph unit
    """
)
_MARKS = {
    "times": "*", "cdot": "*", "ast": "*", "cdotp": "*", "div": "/", "pm": "±", "mp": "∓",
    "le": "<=", "leq": "<=", "leqslant": "<=", "ge": ">=", "geq": ">=", "geqslant": ">=",
    "lt": "<", "gt": ">", "ne": "!=", "neq": "!=", "approx": "~", "in": "in", "cup": "∪",
    "cap": "∩", "setminus": "∖", "backslash": "∖", "bigcup": "∪",
    "lbrace": "set{", "rbrace": "}set",
    "lbrack": "[", "rbrack": "]", "langle": "<|", "rangle": "|>", "lvert": "|(", "rvert": ")|",
    "vert": "|", "mid": "mid", "colon": ":", "ldots": "...", "dots": "...", "cdots": "...",
    "dotsc": "...", "dotsb": "...", "circ": "deg", "degree": "deg", "prime": "'", "lparen": "(",
    "rparen": ")", "lfloor": "floor(", "rfloor": ")floor", "lceil": "ceil(", "rceil": ")ceil",
    "lor": "or", "vee": "or", "land": "and", "wedge": "and", "euro": "€", "pounds": "£",
    "%": "%", "$": "$", "{": "set{", "}": "}set", "\\": "\\\\", "_": "_", "&": "&", "#": "#",
    "|": "||", "(": "", ")": "", "[": "", "]": "",
}  # fmt: skip
_COMMANDS = {
    "dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "dbinom": "binom", "tbinom": "binom",
    "varnothing": "emptyset", "bar": "overline", "widehat": "hat", "overrightarrow": "vec",
    "arcsin": "asin", "arccos": "acos", "arctan": "atan", "tg": "tan", "ctg": "cot",
    "lim": "limit", "varepsilon": "epsilon", "varphi": "phi", "vartheta": "theta",
}  # fmt: skip
_CHARACTERS = {
    "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "×": "*", "⋅": "*", "·": "*", "∙": "*",
    "•": "*", "∗": "*", "÷": "/", "∕": "/", "⁄": "/", "±": "±", "∓": "∓", "≤": "<=", "⩽": "<=",
    "≥": ">=", "⩾": ">=", "≠": "!=", "≈": "~", "∈": "in", "∪": "∪", "∩": "∩", "∖": "∖", "…": "...",
    "⋯": "...", "°": "deg", "º": "deg", "′": "'", "’": "'", "⟨": "<|", "⟩": "|>", "∣": "|",
    "⌊": "floor(", "⌋": ")floor", "⌈": "ceil(", "⌉": ")ceil", "∨": "or", "∧": "and", "€": "€",
    "£": "£", "¢": "¢", "：": ":", "，": ",", "、": ",", "；": ";", "∶": ":", "¥": "¥", "₹": "₹",
}  # fmt: skip
_NAMED = {
    "π": "pi", "∞": "infty", "√": "root", "∛": "cbrt", "∅": "emptyset", "ℝ": "R", "ℤ": "Z",
    "ℕ": "N", "ℚ": "Q", "ℂ": "C", "∠": "angle", "△": "triangle", "ϕ": "phi", "∫": "int",
    "∑": "sum", "∏": "prod",
}  # fmt: skip
_RAISED = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿˣ", "0123456789+-nx", strict=True))
_LOWERED = dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋ₙ", "0123456789+-n", strict=True))
_TWO = ("<=", ">=", "!=", "**", "=>", "->", "==", "||")
_PLAIN = frozenset("+-*/^_()[]{}|,;:=<>!'%$&¢€£¥#")
_COMMAND = re.compile(r"\\([A-Za-z]+|.)", re.DOTALL)
_WORD = re.compile(r"[^\W\d_]{2,}['’][^\W\d_]+|[^\W\d_]+")
_UPRIGHT_WORD = re.compile(r"[^\W\d_]+(?:['’\-–][^\W\d_]+)*")
_DOMAIN = re.compile(r"\\mathbb\s*(?:\{\s*([A-Z])\s*\}|([A-Z]))")
_ARGUMENTS = {"frac": 2, "dfrac": 2, "tfrac": 2, "cfrac": 2, "binom": 2, "dbinom": 2, "tbinom": 2,
              "sqrt": 1, "overline": 1, "vec": 1, "hat": 1, "bar": 1}  # fmt: skip


def with_braces(text: str) -> str:
    """Return a text in which arguments of fractions and roots have braces: \\frac12 too.

    TeX takes one character where there is no brace: \\sqrt12 is the root of 1, then 2.
    """
    out: list[str] = []
    position = 0
    while position < len(text):
        match = _COMMAND.match(text, position)
        name = match[1] if match else ""
        out.append(match[0] if match else text[position])
        position += len(out[-1])
        if name not in _ARGUMENTS:
            continue
        if name == "sqrt" and (index := re.compile(r"\s*\[[^\[\]]*\]").match(text, position)):
            out.append(index[0])
            position = index.end()
        wrapped, position = _braced(text, position, _ARGUMENTS[name])
        out.append(wrapped)
    return "".join(out)


def _braced(text: str, position: int, count: int) -> tuple[str, int]:
    """Return the arguments at a position, each in braces, and where they end."""
    out = []
    for _ in range(count):
        while text[position : position + 1].isspace():
            position += 1
        if position >= len(text) or text[position] == "}":
            raise Unreadable("a fraction or root lacks an argument")
        if text[position] == "{":
            end = closing_brace(text, position)
            out.append("{" + with_braces(text[position + 1 : end]) + "}")
            position = end + 1
        else:
            match = _COMMAND.match(text, position)
            if match and match[1] in _ARGUMENTS:
                inner, end = _braced(text, match.end(), _ARGUMENTS[match[1]])
                out.append("{" + match[0] + inner + "}")
                position = end
            else:
                out.append("{" + (match[0] if match else text[position]) + "}")
                position = match.end() if match else position + 1
    return "".join(out), position


def closing_brace(text: str, start: int) -> int:
    """Return where the brace that opens at a position closes.

    Raises:
        Unreadable: it does not.
    """
    depth, position = 0, start
    while position < len(text):
        if text[position] == "\\":
            position += 2
            continue
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return position
        position += 1
    raise Unreadable("a brace is not closed")


class Lexer:
    """Cuts one text into tokens.

    Attributes:
        tokens: what was found so far.
        doubts: what has another usual meaning.
    """

    def __init__(self, text: str) -> None:
        self.tokens: list[Token] = []
        self.doubts: list[str] = []
        self._text = text
        self._at = 0
        self._spaced = False
        self._brackets: list[bool] = []

    def run(self, upright: bool = False) -> list[Token]:
        """Return all tokens.

        Raises:
            Unreadable: a character, command or number that no answer has.
        """
        text = self._text
        while self._at < len(text):
            character = text[self._at]
            if character.isspace() or character == "~":
                self._at, self._spaced = self._at + 1, True
            elif self._numeral():
                continue
            elif character == "\\":
                self._command()
            elif character.isalpha() and character not in _NAMED:
                self._word(upright)
            else:
                self._mark(character)
        self._read_crosses()
        return self.tokens

    def _read_crosses(self) -> None:
        """Take the letter x of 6.63 x 10^-34 for the sign it stands for."""
        for at, (left, cross, ten, power) in enumerate(
            zip(self.tokens, self.tokens[1:], self.tokens[2:], self.tokens[3:], strict=False)
        ):
            if (left.kind, cross.text, ten.text, power.text) == ("number", "x", "10", "^"):
                self.tokens[at + 1] = Token("mark", "*", cross.spaced)

    def _add(self, kind: Kind, text: str, number: Numeral | None = None) -> None:
        self.tokens.append(Token(kind, text, self._spaced, number))
        self._spaced = False
        if kind == "mark":
            if text in ("(", "[", "set{", "<|"):
                self._brackets.append(self._one_sided())
            elif text in (")", "]", "}set", "|>") and self._brackets:
                self._brackets.pop()

    def _one_sided(self) -> bool:
        """Say whether the commas of the bracket that opens here may lack a space as separators."""
        depth = 0
        for position in range(self._at, len(self._text)):
            character = self._text[position]
            if character in "([{":
                depth += 1
            elif character in ")]}":
                depth -= 1
                if depth < 0:
                    return True
            elif depth == 0 and character == ";":
                return False
            elif depth == 0 and character == ",":
                after = self._text[position + 1 : position + 2]
                if after.isspace() or after == "\\":
                    return False
        return True

    def _numeral(self) -> bool:
        """Take a number if one stands here; letters before it would make it a part of a word."""
        text, at = self._text, self._at
        character = text[at]
        if not (character in "0123456789.\\" or "A" <= character <= "Z"):
            return False
        if character == "." and text.startswith("...", at):
            return False
        before = text[at - 1 : at]
        if before == "." or (before.isalnum() and not character.isdigit()):
            return False
        opened = bool(self._brackets and self._brackets[-1])
        found = read_numeral(text, at, opened, self.doubts)
        if found is None:
            return False
        self._at = found[1]
        self._add("number", text[at : self._at], found[0])
        return True

    def _word(self, upright: bool) -> None:
        match = (_UPRIGHT_WORD if upright else _WORD).match(self._text, self._at)
        assert match is not None
        # A raised digit counts as a character of words.
        raised = (i for i, c in enumerate(match[0]) if (c in _RAISED and c != "ⁿ") or c in _LOWERED)
        word = match[0][: next(raised, None)]
        self._at += len(word)
        value = unicodedata.name(word[0], "") if len(word) == 1 and not word.isascii() else ""
        if value.startswith("GREEK SMALL LETTER ") and not upright:
            self._add("command", value.rpartition(" ")[2].lower())
        elif value.startswith("GREEK CAPITAL LETTER ") and not upright:
            self._add("command", value.rpartition(" ")[2].capitalize())
        elif upright or not word.isascii() or "'" in word or "’" in word:
            self._add("text", word.replace("’", "'"))
        else:
            self._add("word", word)

    def _mark(self, character: str) -> None:
        text, at = self._text, self._at
        if text.startswith("...", at):
            self._at += 3
            self._add("mark", "...")
        elif character == "." and self._after_word() and not text[at + 1 : at + 2].isalnum():
            self._at += 1
        elif text[at : at + 2] in _TWO:
            self._at += 2
            self._add("mark", {"**": "^", "==": "="}.get(text[at : at + 2], text[at : at + 2]))
        elif character in _RAISED or character in _LOWERED:
            self._shifted(_RAISED if character in _RAISED else _LOWERED)
        elif character in _NAMED:
            self._at += 1
            self._add("command", _NAMED[character])
        elif character in _CHARACTERS or character in _PLAIN:
            self._at += 1
            self._add("mark", _CHARACTERS.get(character, character))
        elif unicodedata.category(character) == "No" and 0 < unicodedata.numeric(character) < 1:
            self._at += 1
            value = Fraction(unicodedata.numeric(character)).limit_denominator(10)
            self._add("number", character, Numeral(value))
        else:
            raise Unreadable(f"the character {character!r}")

    def _after_word(self) -> bool:
        """Say whether the last token is a word, after which a full stop says nothing."""
        last = self.tokens[-1] if self.tokens else None
        return last is not None and last.kind in ("word", "text") and len(last.text) > 1

    def _shifted(self, table: dict[str, str]) -> None:
        """Take a run of raised or lowered characters as `^{…}` or `_{…}`."""
        end = self._at
        while end < len(self._text) and self._text[end] in table:
            end += 1
        inner = "".join(table[c] for c in self._text[self._at : end])
        self._at = end
        self._add("mark", "^" if table is _RAISED else "_")
        self._add("mark", "{")
        self._nested(inner, upright=False)
        self._add("mark", "}")

    def _nested(self, inner: str, upright: bool) -> None:
        lexer = Lexer(inner)
        lexer._brackets = self._brackets[-1:]
        found = lexer.run(upright)
        self.doubts += lexer.doubts
        if found:
            found[0] = replace(found[0], spaced=found[0].spaced or self._spaced)
        self.tokens += found
        self._spaced = lexer._spaced or (self._spaced and not found)

    def _command(self) -> None:
        """Take what begins with a backslash."""
        if domain := _DOMAIN.match(self._text, self._at):
            self._at = domain.end()
            self._add("command", domain[1] or domain[2])
            return
        match = _COMMAND.match(self._text, self._at)
        if match is None:
            raise Unreadable("a backslash at the end")
        self._at = match.end()
        name = match[1]
        if name in STYLES:
            if name in ("left", "right") and self._text.startswith(".", self._at):
                self._at += 1
        elif name in _SPACES or name in ",;: !>":
            self._spaced = self._spaced or name != "!"
        elif name in _UPRIGHT:
            self._upright(name)
        elif name in ("begin", "end"):
            self._environment(name)
        elif name in _MARKS:
            if _MARKS[name]:
                self._add("mark", _MARKS[name])
        elif name.isalpha():
            self._add("command", _COMMANDS.get(name, name))
        else:
            raise Unreadable(f"the command \\{name}")

    def _upright(self, name: str) -> None:
        text = self._text
        while text[self._at : self._at + 1].isspace() or text.startswith("*", self._at):
            self._at += 1
        if not text.startswith("{", self._at):
            raise Unreadable(f"\\{name} without a brace")
        end = closing_brace(text, self._at)
        inner = text[self._at + 1 : end]
        self._at = end + 1
        if re.fullmatch(r"\\?\s*", inner):
            self._spaced = True
            return
        self._nested(inner, upright=True)

    def _environment(self, name: str) -> None:
        match = re.compile(r"\{([A-Za-z]+)\*?\}").match(self._text, self._at)
        if match is None:
            raise Unreadable(f"\\{name} without a name")
        self._at = match.end()
        if name == "begin" and match[1] == "array":
            columns = re.compile(r"\s*(?:\[[a-z]\])?\s*\{[lcr|\s]*\}").match(self._text, self._at)
            if columns is None:
                raise Unreadable("an array without columns")
            self._at = columns.end()
        self._add("command", f"{name}:{match[1]}")
