"""Plain data on their way between the response's process and the verifier.

A response's process is not believed, so what it sends is JSON, which makes nothing but Python's own
types: no object with an `__eq__` of its own gets here. What JSON has no word for is an object with
one key: tuple, set, frozenset, dict (a list of pairs), bytes and bytearray (hexadecimal), complex,
and int for whole numbers beyond 64 bits (hexadecimal).
"""

import json

from data.code_tests.inside import DEEPEST

_LITERALS = (bool, int, float, complex, str, bytes, bytearray, type(None))


def read(value: object, depth: int = 0) -> object:
    """Return the data that a decoded JSON value stands for.

    Raises:
        ValueError, TypeError, KeyError, OverflowError: it stands for none; a set of lists, say.
    """
    if depth > DEEPEST + 1:
        raise ValueError("nested too deeply")
    if isinstance(value, list):
        return [read(item, depth + 1) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) != 1:
        raise ValueError("expected an object with one key")
    ((kind, content),) = value.items()
    if kind in ("int", "bytes", "bytearray"):
        if not isinstance(content, str):
            raise TypeError("expected a text")
        if kind == "int":
            return int(content, 16)
        return bytes.fromhex(content) if kind == "bytes" else bytearray.fromhex(content)
    items = [read(item, depth + 1) for item in content]
    if kind == "dict":
        return dict(items)  # type: ignore[arg-type]
    if kind == "complex":
        real, imaginary = items
        return complex(real, imaginary)  # type: ignore[call-overload]
    return {"tuple": tuple, "set": set, "frozenset": frozenset}[kind](items)


def decoded(line: bytes) -> dict[str, object] | None:
    """Return a reply as its one key and content, or None if it is no reply."""
    try:
        message = json.loads(line)
        if not isinstance(message, dict) or len(message) != 1:
            return None
        if "value" in message:
            message["value"] = read(message["value"])
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None
    return message


def literal(value: object) -> str:
    """Return plain data as one line of ASCII that Python reads back.

    Raises:
        TypeError: it isn't plain data.
    """
    _expect_plain(value)
    return ascii(value)


def _expect_plain(value: object) -> None:
    kind = type(value)
    if kind is dict:
        for pair in value.items():  # type: ignore[attr-defined]
            _expect_plain(pair)
    elif kind in (list, tuple, set, frozenset):
        for item in value:  # type: ignore[attr-defined]
            _expect_plain(item)
    elif kind not in _LITERALS:
        raise TypeError(f"a test hands over a {kind.__name__}, which is no plain data")


def listed(value: object) -> object:
    """Return data with lists in place of tuples, as JSON has them."""
    if isinstance(value, list | tuple):
        return [listed(item) for item in value]
    if isinstance(value, dict):
        return {key: listed(item) for key, item in value.items()}
    return value


def shown(value: object, most: int) -> str:
    """Return data as Python writes them, visibly cut if they are long."""
    try:
        text = repr(value)
    except ValueError:  # thousands of digits
        text = "a number too long to be written"
    return cut(text, most)


def cut(text: str, most: int) -> str:
    """Return a text of at most `most` characters."""
    return text if len(text) <= most else f"{text[: most - 2]} …"
