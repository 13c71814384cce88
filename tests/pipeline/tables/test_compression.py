"""Compressed parts of Arrow files are seen in their heads, before anything is unpacked."""

import io
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.tables.compression import is_compressed

ROWS = pa.table({"n": range(10), "text": ["zero"] * 10})


def file_of(data: pa.Table, **options: Any) -> bytes:
    """An Arrow IPC file of several record batches."""
    sink = io.BytesIO()
    written = pa.ipc.IpcWriteOptions(**options)
    with pa.ipc.new_file(sink, data.schema, options=written) as writer:
        writer.write_table(data, max_chunksize=4)
    return sink.getvalue()


@pytest.mark.parametrize("data", [ROWS, ROWS.slice(0, 0), pa.table({}), ROWS.select(["n"])])
def test_plain_files_are_plain(data: pa.Table) -> None:
    assert not is_compressed(memoryview(file_of(data)))


@pytest.mark.parametrize("codec", ["zstd", "lz4"])
def test_compressed_files_are_found(codec: str) -> None:
    assert is_compressed(memoryview(file_of(ROWS, compression=codec)))


def test_a_dictionary_which_may_be_compressed_counts_as_one() -> None:
    words = ROWS.set_column(1, "text", ROWS["text"].dictionary_encode())
    assert is_compressed(memoryview(file_of(words)))


def test_messages_whose_heads_stand_elsewhere_are_refused() -> None:
    old = file_of(ROWS, compression="zstd", use_legacy_format=True)
    with pytest.raises(ValueError, match=r"before Arrow 0\.15"):
        is_compressed(memoryview(old))


@given(st.binary(max_size=64), st.integers(0, 200), st.integers(0, 255))
def test_bytes_that_are_no_file_are_a_value_error(noise: bytes, at: int, byte: int) -> None:
    """Whatever the bytes say, no place outside of them is read, and no loop is endless."""
    damaged = bytearray(file_of(ROWS, compression="zstd"))
    damaged[-1 - at % len(damaged)] = byte
    for data in (noise, noise + b"ARROW1", bytes(damaged)):
        try:
            is_compressed(memoryview(data))
        except ValueError:
            continue
