"""Tests that are code: run assertion by assertion, so that the one that fails can be told.

An `assert` says nothing but that it failed. So each is rewritten before the tests run:

    assert f(1) == 2        ▶    try:
                                     _compared_(0, f(1), 2)
                                 except Exception as _error_:
                                     _raised_(0, _error_)

Both sides are evaluated once and in order, as before; number 0 finds operator and source. Tests run
in the verifier's process, with the functions of the response replaced by proxies.
"""

import ast
import operator
import random
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from types import CodeType
from typing import Any

from data.code_tests.plain_data import cut, listed, shown
from data.code_tests.process import Failed

LONGEST_CALL, LONGEST_VALUE = 300, 200
"""Characters of a call and of a value in feedback."""

_OPERATORS: dict[type[ast.cmpop], tuple[str, Callable[[Any, Any], object]]] = {
    ast.Eq: ("==", operator.eq),
    ast.NotEq: ("!=", operator.ne),
    ast.Lt: ("<", operator.lt),
    ast.LtE: ("<=", operator.le),
    ast.Gt: (">", operator.gt),
    ast.GtE: (">=", operator.ge),
    ast.Is: ("is", operator.is_),
    ast.IsNot: ("is not", operator.is_not),
    ast.In: ("in", lambda left, right: left in right),
    ast.NotIn: ("not in", lambda left, right: left not in right),
}

Call = Callable[[str, tuple[object, ...], dict[str, object]], object]
"""Calls a function of the response: its name, arguments, keyword arguments."""


@dataclass(frozen=True)
class Failure:
    """A test that failed.

    Attributes:
        call: the call that it was about, as Python: `f(1, 2)`.
        happened: what it did: `returned 3`, `raised …`, `gave no answer within …`.
        expected: what the test wanted instead.
        reason: what the test itself said of it, to go on with behind `happened`.
    """

    call: str
    happened: str
    expected: str | None = None
    reason: str = ""


class _Enough(BaseException):
    """The first failure was found, and no more are wanted."""


class Tests:
    """Runs tests against the functions of a response, and keeps what failed.

    Args:
        call: calls a function of the response.
        all_of_them: go on behind a failure.

    Attributes:
        number: of assertions that were made.
        failures: in order.
    """

    def __init__(self, call: Call, all_of_them: bool) -> None:
        self._call, self._all = call, all_of_them
        self._last: tuple[str, tuple[object, ...], dict[str, object]] | None = None
        self._happened: Callable[[], str] = str
        self.number = 0
        self.failures: list[Failure] = []

    def called(self, name: str, arguments: tuple[object, ...], named: dict[str, object]) -> object:
        """Call a function, and remember it for feedback."""
        self._last = (name.rpartition(".")[2], arguments, named)
        try:
            value = self._call(name, arguments, named)
        except Failed as failed:
            text = str(failed)
            self._happened = lambda: text
            raise
        self._happened = lambda: f"returned {shown(value, LONGEST_VALUE)}"
        return value

    def passed(self) -> None:
        """Count an assertion that holds."""
        self.number += 1

    def failed(self, expected: str | None, error: BaseException | None = None) -> None:
        """Count an assertion that doesn't hold, or that an error kept from being made."""
        self.number += 1
        call, happened = "The test's own code", "fails"
        if self._last is not None:
            call, happened = _written(*self._last), self._happened()
        reason = ""
        if error is not None and not isinstance(error, Failed):
            happened = f"{happened}, on which its test raises {type(error).__name__}"
            # Its text may tell what the test expected.
            reason = cut(" ".join(f": {error}".split()), LONGEST_VALUE)
        self.failures.append(Failure(call, happened, expected, reason))
        if not self._all:
            raise _Enough

    def run_cases(self, function: str, cases: Sequence[tuple[list[object], object]]) -> None:
        """Call a function with the arguments of each case; lists and tuples are the same here."""
        try:
            for arguments, expected in cases:
                try:
                    value = self.called(function, tuple(arguments), {})
                except Failed as failed:
                    self.failed(shown(expected, LONGEST_VALUE), failed)
                    continue
                if listed(value) == expected:
                    self.passed()
                else:
                    self.failed(shown(expected, LONGEST_VALUE))
        except _Enough:
            return

    def run(self, code: str, setup: str, names: Mapping[str, str]) -> None:
        """Run test code.

        Args:
            code: with assertions.
            setup: code that runs before it and defines what it needs.
            names: names in the test code that stand for functions of the response, and theirs.

        Raises:
            Exception: `setup` does.
        """
        tree = ast.parse(code)
        asserts = _Rewriting(names)
        asserts.visit(tree)
        namespace: dict[str, object] = {"__name__": "tests"}
        # Tests that draw their inputs draw the same ones each time.
        state = random.getstate()
        random.seed(0)
        try:
            exec(compile(setup, "<setup>", "exec"), namespace)
            namespace |= {name: self._proxy(function) for name, function in names.items()}
            namespace |= {
                "_compared_": self._comparing(asserts.found),
                "_true_": self._judging(asserts.found),
                "_raised_": lambda number, error: self.failed(asserts.found[number].wanted, error),
            }
            self._run(compile(ast.fix_missing_locations(tree), "<tests>", "exec"), namespace)
        finally:
            random.setstate(state)

    def _run(self, tests: CodeType, namespace: dict[str, object]) -> None:
        """Run tests to their end, or to the first failure if no more are wanted."""
        try:
            try:
                exec(tests, namespace)
            except Exception as error:
                self.failed(None, error)  # of code between assertions; the others can't be made
        except _Enough:
            return

    def _proxy(self, function: str) -> Callable[..., object]:
        return lambda *arguments, **named: self.called(function, arguments, named)

    def _comparing(self, found: Sequence["_Assertion"]) -> Callable[[int, object, object], None]:
        def compared(number: int, left: object, right: object) -> None:
            assertion = found[number]
            name, compare = assertion.compared
            if compare(left, right):
                self.passed()
                return
            wanted = shown(right, LONGEST_VALUE)
            if assertion.mirrored:
                wanted = shown(left, LONGEST_VALUE)
            elif not assertion.direct:
                wanted = (
                    f"{assertion.source} {name} {wanted} (its left side is "
                    f"{shown(left, LONGEST_VALUE)})"
                )
            elif name != "==":
                wanted = f"a value {name} {wanted}"
            self.failed(wanted)

        return compared

    def _judging(self, found: Sequence["_Assertion"]) -> Callable[[int, object], None]:
        def judged(number: int, value: object) -> None:
            if value:
                self.passed()
            else:
                self.failed(found[number].wanted)

        return judged


@dataclass(frozen=True)
class _Assertion:
    """What an assertion wants.

    Attributes:
        source: of its left side, or of the whole.
        wanted: in words, where no value says it; None: its right side's value does.
        compared: name and function of its operator.
        direct: its left side is nothing but a call of the response's function.
        mirrored: its right side is, and the operator is ==.
    """

    source: str
    wanted: str | None = None
    compared: tuple[str, Callable[[Any, Any], object]] = _OPERATORS[ast.Eq]
    direct: bool = False
    mirrored: bool = False


class _Rewriting(ast.NodeTransformer):
    """Rewrites the assertions of a module."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = names
        self.found: list[_Assertion] = []

    def visit_Assert(self, node: ast.Assert) -> ast.stmt:
        if isinstance(node.test, ast.Constant):
            return ast.Pass()  # `assert True` is in many tests, and says nothing
        number = ast.Constant(len(self.found))
        match node.test:
            case ast.Compare(left=left, ops=[kind], comparators=[right]):
                equal = isinstance(kind, ast.Eq) and not self._is_call(left)
                self.found.append(
                    _Assertion(
                        self._source(left),
                        None,
                        _OPERATORS[type(kind)],
                        direct=self._is_call(left),
                        mirrored=equal and self._is_call(right),
                    )
                )
                check = _call("_compared_", number, left, right)
            case ast.UnaryOp(op=ast.Not(), operand=inner) if self._is_call(inner):
                self.found.append(_Assertion(self._source(inner), "False"))
                check = _call("_true_", number, node.test)
            case test:
                wanted = "True" if self._is_call(test) else f"that {self._source(test)} holds"
                self.found.append(_Assertion(self._source(test), wanted))
                check = _call("_true_", number, test)
        report = _call("_raised_", number, ast.Name("_error_", ast.Load()))
        handler = ast.ExceptHandler(ast.Name("Exception", ast.Load()), "_error_", [report])
        return ast.copy_location(ast.Try([check], [handler], [], []), node)

    def _is_call(self, node: ast.expr) -> bool:
        match node:
            case ast.Call(func=ast.Name(id=name)):
                return name in self._names
        return False

    def _source(self, node: ast.expr) -> str:
        """Return code as text, with the functions' own names."""
        return cut(ast.unparse(_Renaming(self._names).visit(deepcopy(node))), LONGEST_VALUE)


class _Renaming(ast.NodeTransformer):
    """Gives names other ones."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = names

    def visit_Name(self, node: ast.Name) -> ast.Name:
        node.id = self._names.get(node.id, node.id)
        return node


def _call(function: str, *arguments: ast.expr) -> ast.Expr:
    return ast.Expr(ast.Call(ast.Name(function, ast.Load()), list(arguments), []))


def _written(name: str, arguments: Sequence[object], named: Mapping[str, object]) -> str:
    """Return a call as Python, cut if it is long."""
    texts = [shown(value, LONGEST_CALL) for value in arguments]
    texts += [f"{key}={shown(value, LONGEST_CALL)}" for key, value in named.items()]
    return f"{name}({cut(', '.join(texts), LONGEST_CALL)})"


def names_called(code: str) -> set[str]:
    """Return the names that test code calls and neither defines nor imports."""
    nodes = list(ast.walk(ast.parse(code)))
    called = {n.func.id for n in nodes if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
    own = {n.id for n in nodes if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Load)}
    own |= {n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    own |= {(n.asname or n.name).partition(".")[0] for n in nodes if isinstance(n, ast.alias)}
    return called - own
