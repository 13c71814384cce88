"""Memory-mapped Arrow files whose pages can be released: they count as the process's memory."""

import mmap
from pathlib import Path

import pyarrow as pa

from pipeline.errors import StoreError
from pipeline.tables.arrow_reading import arrow_rows


class MappedTable:
    """A table over a memory-mapped file; nothing is read before it is touched.

    Attributes:
        table: the rows; its buffers point into the file.
    """

    def __init__(self, path: Path) -> None:
        try:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self.table: pa.Table = arrow_rows(pa.py_buffer(self._map))
        except FileNotFoundError:
            raise StoreError(f"{path}: missing") from None
        except (ValueError, OSError, pa.ArrowException) as error:
            raise StoreError(f"{path}: not a readable Arrow file: {error}") from None

    def release(self) -> None:
        """Release the memory of all pages; a page that is touched again is read again."""
        self._map.madvise(mmap.MADV_DONTNEED)
