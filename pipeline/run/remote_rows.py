"""A few rows of a large table on a store, without the rest of it.

The two ends of an Arrow file say where the bytes of each column are; the manifest says which rows
belong to a rollout. So a sparse file of the table's size is filled at both ends and mapped; Arrow
then tells where the wanted rows lie, and only these bytes are fetched. All requests read the same
state of the object, and the mirror stays as it is.

A SHA-256 covers a whole file, not a part: reading by range verifies the size, the schema and the
rollout of the rows, and no more. `srpo check` reads everything.
"""

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa

from pipeline.errors import StoreError
from pipeline.remote import objects
from pipeline.remote.client import Address, Changed
from pipeline.remote.mirror_files import is_placeholder, temporary_beside
from pipeline.remote.objects import Object
from pipeline.tables.arrow_reading import arrow_rows

WHOLE = 8 << 20
"""Bytes up to which a table is fetched whole: one request, and a full check."""
_END = 64 << 10
_GAP = 256 << 10
_SIDE_BY_SIDE = 8

Span = tuple[int, int]
"""First byte and the one after the last."""


def rows_by_range(path: Path, address: Address, first: int, rows: int) -> pa.Table | None:
    """Return rows [first, first + rows) of a table, neither validated nor hashed.

    Args:
        path: where the table is in the mirror.
        address: where it is on the store.

    Returns:
        None if it is to be read whole: it is here, it is small, or its layout is unknown.

    Raises:
        StoreError: the store failed, or the table changed meanwhile.
    """
    if not is_placeholder(path) or path.stat().st_size <= WHOLE:
        return None
    part = temporary_beside(path)
    try:
        return _rows(part, address, path.stat().st_size, first, rows)
    except Changed:
        raise StoreError(f"{path}: changed while it was read; run the command again") from None
    finally:
        part.unlink(missing_ok=True)


def _rows(part: Path, address: Address, size: int, first: int, rows: int) -> pa.Table | None:
    known = objects.stat(address)
    if known.size != size:
        raise Changed(str(address))
    with part.open("w+b") as file:
        file.truncate(size)
        _fill(file, address, known, [(0, _END), (size - _END, size)])
        for texts in (False, True):
            mapped = _mapped(part, size)
            if mapped is None:
                return None
            base, data = mapped
            spans = [s for c in data.columns for s in _spans(c.chunk(0), first, rows, texts)]
            spans = [(start - base, end - base) for start, end in spans]
            if not all(0 <= start <= end <= size for start, end in spans):
                return None  # not as the manifest says
            _fill(file, address, known, spans)
        mapped = _mapped(part, size)
    return None if mapped is None else mapped[1].slice(first, rows)


def _mapped(part: Path, size: int) -> tuple[int, pa.Table] | None:
    """Map the file; return its address in memory and its table, if that has one record batch."""
    with pa.memory_map(str(part)) as source:
        whole = source.read_buffer(size)
    try:
        data = arrow_rows(whole)
    except (
        pa.ArrowException,
        OSError,
        ValueError,
    ):  # compressed, or its metadata is longer than what was fetched
        return None
    known = all(c.num_chunks == 1 and _is_known(c.type) for c in data.columns)
    return (whole.address, data) if known else None


def _is_known(kind: pa.DataType) -> bool:
    if pa.types.is_fixed_size_list(kind):
        return _is_known(kind.value_type)
    tests = (pa.types.is_string, pa.types.is_integer, pa.types.is_floating)
    return any(test(kind) for test in tests)


def _spans(array: pa.Array, first: int, rows: int, texts: bool) -> Iterator[Span]:
    """Yield where in memory the rows are: all but texts, or texts once their offsets are here."""
    validity, contents = array.buffers()[:2]
    if validity is not None and not texts:
        yield validity.address + first // 8, validity.address + (first + rows + 7) // 8
    if pa.types.is_fixed_size_list(array.type):
        each = array.type.list_size
        yield from _spans(array.values, first * each, rows * each, texts)
    elif texts and pa.types.is_string(array.type):
        offsets = np.frombuffer(contents, dtype=np.int32)[[first, first + rows]]
        start = array.buffers()[2].address
        yield start + int(offsets[0]), start + int(offsets[1])
    elif not texts:
        width = 4 if pa.types.is_string(array.type) else array.type.bit_width // 8
        more = 1 if pa.types.is_string(array.type) else 0  # an offset at each end
        yield contents.address + width * first, contents.address + width * (first + rows + more)


def _fill(file: BinaryIO, address: Address, known: Object, spans: Iterable[Span]) -> None:
    """Fetch these bytes into their places; one request for spans that are nearly adjacent."""
    wanted: list[Span] = []
    for start, end in sorted(spans):
        if wanted and start - wanted[-1][1] <= _GAP:
            wanted[-1] = (wanted[-1][0], max(end, wanted[-1][1]))
        elif end > start:
            wanted.append((start, end))

    def fetch(span: Span) -> None:
        os.pwrite(file.fileno(), objects.read_range(address, known, *span), span[0])

    with ThreadPoolExecutor(_SIDE_BY_SIDE, thread_name_prefix="ranges") as pool:
        for _ in pool.map(fetch, wanted):
            pass
