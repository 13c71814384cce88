"""Finding compressed parts of an Arrow file before anything unpacks them.

A few bytes may unpack to any size, and Arrow asks for that memory without a limit. Our tables are
never compressed, so such a file is not one of ours. Arrow shows its users no message headers; the
few fields that are needed are taken from them here.

    file     "ARROW1" 0 0, messages, footer, its length (int32), "ARROW1"
    footer   a flatbuffer: version, schema, dictionaries, record batches (places of messages)
    message  -1 (int32), length of its head (int32), head, body
    head     a flatbuffer: version, kind of header, header, length of the body
    header   of a record batch, a flatbuffer: rows, nodes, buffers, compression
"""

import struct
from collections.abc import Iterator

_MAGIC = b"ARROW1"
_PLACE = struct.Struct("<qi4xq")
_DICTIONARIES, _BATCHES = 2, 3
_HEADER, _COMPRESSION = 2, 3


def is_compressed(data: memoryview) -> bool:
    """Tell whether a part of an Arrow IPC file is compressed, or is a dictionary.

    Args:
        data: the whole file, as bytes; only its heads are read.

    Raises:
        ValueError: it is not an Arrow IPC file.
    """
    try:
        return _is_compressed(data)
    except struct.error:
        raise ValueError("its footer names places that are not in it") from None


def _is_compressed(data: memoryview) -> bool:
    end = len(data) - len(_MAGIC) - 4
    if end < 0 or bytes(data[end + 4 :]) != _MAGIC:
        raise ValueError("it does not end as an Arrow file does")
    start = end - _int32(data, end)
    footer = _table(data, start)
    if any(True for _ in _places(data, footer, _DICTIONARIES)):
        return True
    for place in _places(data, footer, _BATCHES):
        if _int32(data, place) != -1:
            raise ValueError("its messages are of a format before Arrow 0.15")
        head = _table(data, place + 8)
        header = _reference(data, head, _HEADER)
        if header is not None and _field(data, header, _COMPRESSION) is not None:
            return True
    return False


def _places(data: memoryview, footer: int, number: int) -> Iterator[int]:
    """Yield where the messages of a footer's list begin."""
    first = _reference(data, footer, number)
    if first is None:
        return
    for i in range(_int32(data, first)):
        yield _unpacked(_PLACE, data, first + 4 + i * _PLACE.size)[0]


def _table(data: memoryview, start: int) -> int:
    """Return the place of a flatbuffer's root table."""
    return start + _int32(data, start)


def _field(data: memoryview, table: int, number: int) -> int | None:
    """Return the place of a table's field; None: it has none."""
    fields = table - _int32(data, table)
    slot = 4 + 2 * number
    if slot >= _unpacked(_UINT16, data, fields)[0]:
        return None
    offset = _unpacked(_UINT16, data, fields + slot)[0]
    return table + offset if offset else None


def _reference(data: memoryview, table: int, number: int) -> int | None:
    """Return what a field refers to: a table or a list."""
    place = _field(data, table, number)
    return None if place is None else place + _int32(data, place)


_UINT16, _INT32 = struct.Struct("<H"), struct.Struct("<i")


def _int32(data: memoryview, place: int) -> int:
    return int(_unpacked(_INT32, data, place)[0])


def _unpacked(what: struct.Struct, data: memoryview, place: int) -> tuple[int, ...]:
    """Unpack at a place, which must be in the file (negative ones would count from its end)."""
    if place < 0:
        raise struct.error
    return what.unpack_from(data, place)
