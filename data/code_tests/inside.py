"""What runs in a response's own process: its program, or one call of its functions after another.

`process.py` starts an interpreter with the text of this file, which therefore imports nothing of
the project and only what costs no time. The argument is the descriptor of a socket. Requests come
as lines of Python literals, replies go as lines of JSON:

    ◀  {"hello": 1}                                        before any code of the response is here
    ▶  (kind, preamble, code)                              kind: "functions" or "program"
    ◀  {"ready": 1} or {"raised": …}                       for functions, when both have run
    ▶  (function, arguments, keyword arguments)
    ◀  {"value": …}, {"raised": …}, {"other": what it is}   a value is written as plain_data.py says

Nothing here can be relied on once the response's code runs. It needn't be: the other side takes any
reply for what the function returned.
"""

import os
import sys
from _json import encode_basestring_ascii as quoted

TYPE_CHECKING = False  # typing has it, and takes a while to import
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

FILE = "<response>"
DEEPEST = 100
_SHORT = 2**63


class NotPlain(Exception):
    """A value that is no plain data; the text says what it is."""


def written(value: object, depth: int = 0) -> str:
    """Return plain data as JSON; subclasses count as what they derive from."""
    if depth > DEEPEST:
        raise NotPlain("data nested too deeply")
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        plain = int(value)
        return str(plain) if -_SHORT < plain < _SHORT else f'{{"int": "{plain:x}"}}'
    if isinstance(value, float):
        text = float.__repr__(value)
        return {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}.get(text, text)
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, complex):
        return f'{{"complex": [{written(value.real)}, {written(value.imag)}]}}'
    if isinstance(value, bytes | bytearray):
        return f'{{"{"bytes" if isinstance(value, bytes) else "bytearray"}": "{value.hex()}"}}'
    if isinstance(value, list):
        return _all(value, depth)
    if isinstance(value, dict):
        return f'{{"dict": {_all(dict.items(value), depth)}}}'
    for kind in (tuple, set, frozenset):
        if isinstance(value, kind):
            return f'{{"{kind.__name__}": {_all(value, depth)}}}'
    raise NotPlain(f"an object of type {type(value).__name__}")


def _all(values: "Iterable[object]", depth: int) -> str:
    return f"[{', '.join([written(value, depth + 1) for value in values])}]"


def described(error: BaseException) -> str:
    """Return an exception's type, text and line in the response's code, as JSON."""
    try:
        text = str(error)[:1000]
    except BaseException as another:
        text = f"(its text can't be had: {type(another).__name__})"
    line, place = 0, error.__traceback__
    while place is not None:
        if place.tb_frame.f_code.co_filename == FILE:
            line = place.tb_lineno
        place = place.tb_next
    if isinstance(error, SyntaxError) and error.filename == FILE:
        line = error.lineno or 0
    return f'{{"raised": [{quoted(type(error).__name__)}, {quoted(text)}, {line}]}}'


def serve(socket: int) -> None:
    """Say hello, run what comes, and answer calls."""
    requests = os.fdopen(os.dup(socket), "rb")
    reply(socket, '{"hello": 1}')
    kind, preamble, code = eval(requests.readline())
    name = "__main__" if kind == "program" else "solution"
    module = type(sys)(name)
    sys.modules[name] = module
    builtins = vars(sys.modules["builtins"])
    builtins["exit"] = builtins["quit"] = sys.exit  # which the module site would have added
    namespace = vars(module)
    try:
        exec(compile(preamble, "<prompt>", "exec"), namespace)
        exec(compile(code, FILE, "exec"), namespace)
    except BaseException as error:
        if kind == "functions" or not isinstance(error, SystemExit):
            reply(socket, described(error))
        return
    if kind == "program":
        return
    reply(socket, '{"ready": 1}')
    for request in requests:
        function, arguments, named = eval(request, {"nan": float("nan"), "inf": float("inf")})
        reply(socket, answered(namespace, function, arguments, named))


def answered(namespace: "dict[str, Any]", function: str, arguments: "Any", named: "Any") -> str:
    """Return the reply to one call."""
    try:
        first, _, method = function.partition(".")
        called = namespace[first]
        if method:
            called = getattr(called(), method)
        return f'{{"value": {written(called(*arguments, **named))}}}'
    except NotPlain as found:
        return f'{{"other": {quoted(str(found))}}}'
    except BaseException as error:
        return described(error)


def reply(socket: int, text: str) -> None:
    """Send one line."""
    data = f"{text}\n".encode()
    while data:
        data = data[os.write(socket, data) :]
