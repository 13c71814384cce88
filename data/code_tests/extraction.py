"""The code of a response, and what it defines."""

import ast
from collections.abc import Iterable, Iterator, Sequence

LONGEST_CODE = 100_000
"""Characters of code that are run at most."""

_LANGUAGES = ("", "python", "python3", "py")


class NoCode(Exception):
    """A response holds no code that could be run; the text says why, for its feedback."""


def last_block(response: str) -> str:
    """Return the last fenced block of Python or of no language, or the whole text if there is none.

    A fence that is never closed reaches to the end of the text.
    """
    found: list[str] | None = None
    block: list[str] | None = None
    fence, named = "", False
    for line in response.splitlines(keepends=True):
        mark = line.strip()
        if block is None:
            if mark.startswith(("```", "~~~")):
                fence = mark[0] * (len(mark) - len(mark.lstrip(mark[0])))
                named = mark.removeprefix(fence).strip().lower() in _LANGUAGES
                block = []
        elif mark == fence:
            found, block = (block if named else found), None
        else:
            block.append(line)
    if block is not None and named:
        found = block
    return response if found is None else "".join(found)


def code_of(response: str, functions: Sequence[str], prompt: str) -> str:
    """Return the code of a response that defines some functions.

    Args:
        response: what the policy wrote; any text at all.
        functions: names that must be defined, of a method its class's, a dot and its own; if there
            are none, any program will do.
        prompt: code that indented code goes on with: signature and docstring of a function.

    Raises:
        NoCode: there is none.
    """
    code = last_block(response)
    if not code.strip():
        raise NoCode("There is no code.")
    if len(code) > LONGEST_CODE:
        raise NoCode(f"The code is longer than {LONGEST_CODE:,} characters.")
    problems = []
    goes_on = bool(prompt) and code.lstrip("\r\n")[:1] in (" ", "\t")
    for text in (code, f"{prompt}\n{code}")[: 1 + goes_on]:
        try:
            tree = ast.parse(text)
        except SyntaxError as error:
            problems.append(f"The code is no valid Python: {_place(error)}.")
            continue
        except (ValueError, RecursionError, MemoryError) as error:
            reason = str(error) or type(error).__name__
            problems.append(f"The code can't be read as Python: {reason}.")
            continue
        missing = sorted(set(functions) - set(_defined(tree.body)))
        if not missing:
            return text
        problems.append(f"The code does not define {', '.join(missing)}.")
    raise NoCode(problems[0])


def _place(error: SyntaxError) -> str:
    """Return what is wrong with code, and in which line."""
    if error.lineno is None:
        return error.msg
    line = " ".join((error.text or "").split())[:80]
    return f"{error.msg} (line {error.lineno}{f': {line}' if line else ''})"


def _defined(body: Iterable[ast.stmt]) -> Iterator[str]:
    """Yield the names that a module defines, and its classes' methods behind a dot."""
    for node in body:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                yield node.name
            case ast.ClassDef():
                yield node.name
                yield from (f"{node.name}.{name}" for name in _defined(node.body))
            case ast.Assign() | ast.AnnAssign():
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                yield from (target.id for target in targets if isinstance(target, ast.Name))
            case ast.Import() | ast.ImportFrom():
                yield from (alias.asname or alias.name for alias in node.names)
            case ast.If() | ast.Try() | ast.With():
                inner = [*node.body, *getattr(node, "orelse", ()), *getattr(node, "finalbody", ())]
                yield from _defined(inner)
            case _:
                pass


def before(prompt: str, function: str) -> str:
    """Return what a prompt has before the definition of a function: imports and helpers.

    Raises:
        ValueError: it doesn't define the function.
    """
    for node in ast.parse(prompt).body:
        if isinstance(node, ast.FunctionDef) and node.name == function:
            first = min([node.lineno, *(line.lineno for line in node.decorator_list)])
            return "".join(prompt.splitlines(keepends=True)[: first - 1])
    raise ValueError(f"its prompt does not define {function}")
