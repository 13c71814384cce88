"""Rows of one dataset file: JSON lines, a JSON array, CSV, or Parquet; the text formats also gzip.

Idea: the first bytes of a file say what it is, whatever its name says (CSV alone is told by its
name). What is none of these formats is refused with what it is and what to do about it. A row that
can't be read keeps its reason (`Row.problem`) and its place, so that the others may be used; what
makes the rest of the file uncertain, such as a quote that is never closed, is an error.

Rows are named as an editor shows them: by the line on which they begin.
"""

import csv
import gzip
import itertools
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, time
from decimal import Decimal
from pathlib import Path
from typing import IO, Any, cast

from data.row import Row, WrittenFloat
from pipeline.errors import DataError
from pipeline.text import printable

LONGEST_ROW = 16 * 2**20
"""Bytes of one line of a file, and of one cell."""
LARGEST_FILE = 4 * 2**30
"""Bytes of a file, unpacked, all of which is held in memory."""
LONGEST_REASON = 200
"""Characters of a reason in a message: it may quote the file."""
_HEAD = 512
_GZIP = b"\x1f\x8b"
_PARQUET = b"PAR1"
_BOM = b"\xef\xbb\xbf"
_REFUSED = (
    (b"version https://git-lfs", "a Git LFS pointer, not the data: run git lfs pull"),
    (b"PK\x03\x04", "a zip archive or an Excel file: unpack it, or save it as CSV"),
    (b"ARROW1", "an Arrow file: save it as Parquet"),
    (b"\xff\xff\xff\xff", "an Arrow stream: save it as Parquet"),
    (b"FEA1", "a Feather file: save it as Parquet"),
    (b"Obj\x01", "an Avro file: save it as Parquet"),
    (_GZIP, "packed by gzip twice: unpack it once"),
    (b"\xff\xfe", "UTF-16: save it as UTF-8"),
    (b"\xfe\xff", "UTF-16: save it as UTF-8"),
    (b"\x28\xb5\x2f\xfd", "packed by zstd: unpack it, or pack it by gzip"),
    (b"BZh", "packed by bzip2: unpack it, or pack it by gzip"),
    (b"\xfd7zXZ", "packed by xz: unpack it, or pack it by gzip"),
    (b"7z\xbc\xaf", "a 7z archive: unpack it"),
    (b"Rar!", "a rar archive: unpack it"),
    (b"SQLite format 3", "a database: save its rows as JSON lines"),
    (b"%PDF", "a PDF: save its rows as JSON lines"),
    (b"\x89HDF", "an HDF5 file: save its rows as Parquet"),
    (b"\x93NUMPY", "a NumPy array: save its rows as JSON lines"),
    (b"\x80", "a pickle, which may run code: save its rows as JSON lines"),
    (b"<", "a page of HTML or XML: get the data file itself"),
)
"""What a file may begin with, and what it is then."""
_EXPECTED = "expected JSON lines, a JSON array, CSV or Parquet"
_PER_LINE = "expected one JSON object per line"
_SPACE = re.compile(r"[ \t\n\r]*")
_TRAILING_COMMA = re.compile(r",\s*[}\]]")
_DELIMITERS = {".csv": ",", ".tsv": "\t"}


def read_file(path: Path) -> list[Row]:
    """Return the rows of a file, those that can't be read with the reason.

    Raises:
        DataError: the file can't be read, is of no known format, too large, or has no rows.
    """
    with _open(path) as (file, packed):
        head = file.read(_HEAD)
        file.seek(0)
        _refuse_others(path, head)
        start = head.removeprefix(_BOM).lstrip()
        suffix = path.with_suffix("").suffix if path.suffix.lower() == ".gz" else path.suffix
        if head.startswith(_PARQUET):
            if packed:
                raise DataError(f"{path} is Parquet inside gzip: unpack it")
            rows = list(_parquet_rows(path, file))
        elif suffix.lower() in _DELIMITERS:
            rows = list(_csv_rows(path, file, _DELIMITERS[suffix.lower()]))
        elif start.startswith(b"["):
            rows = list(_array_rows(path, file))
        else:
            rows = list(_line_rows(path, file))
    if not rows:
        raise DataError(f"{path} has no rows: {_EXPECTED}")
    return rows


@contextmanager
def _open(path: Path) -> Iterator[tuple[IO[bytes], bool]]:
    """Yield a file, unpacked if it begins as gzip does, and whether it does."""
    try:
        with path.open("rb") as plain:
            packed = plain.read(len(_GZIP)) == _GZIP
            plain.seek(0)
            yield cast(IO[bytes], gzip.GzipFile(fileobj=plain)) if packed else plain, packed
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{path}: its gzip data are cut short or damaged ({_words(error)}); copy it again"
        ) from error
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror or error}") from error


def _refuse_others(path: Path, head: bytes) -> None:
    """Refuse what begins as no format that is read here."""
    if not head:
        raise DataError(f"{path} has no rows: the file is empty")
    for start, what in _REFUSED:
        if head.startswith(start):
            raise DataError(f"{path} is {what}; {_EXPECTED}")
    if head[257:262] == b"ustar":
        raise DataError(f"{path} is a tar archive: unpack it; {_EXPECTED}")
    if b"\0" in head[:4]:
        raise DataError(f"{path} begins with NUL bytes: it is UTF-16, or no text; {_EXPECTED}")


def _lines(path: Path, file: IO[bytes]) -> Iterator[bytes]:
    """Yield the lines of a file, never more in memory than the longest that is allowed.

    Only \\n ends a line: JSON strings may hold the other characters str.splitlines splits at.
    """
    number = size = 0
    while line := file.readline(LONGEST_ROW + 1):
        number, size = number + 1, size + len(line)
        if len(line) > LONGEST_ROW:
            raise DataError(f"{path}, row {number}: over {LONGEST_ROW // 2**20} MiB; {_PER_LINE}")
        if size > LARGEST_FILE:
            raise DataError(_too_large(f"{path}, row {number}"))
        yield line.removeprefix(_BOM) if number == 1 else line


def _too_large(place: str) -> str:
    return (
        f"{place}: over {LARGEST_FILE // 2**30} GiB up to here, which a run would hold in memory; "
        "take fewer rows"
    )


class _Decoder:
    """Decodes JSON values strictly; what Python's decoder would let pass is noted as a problem."""

    def __init__(self) -> None:
        self._problems: list[str] = []
        self._json = json.JSONDecoder(
            object_pairs_hook=self._once,
            parse_constant=self._no_constant,
            parse_float=WrittenFloat,
        )

    def decode(self, text: str, at: int = 0) -> tuple[object, int, str | None]:
        """Return the value at a place of a text, where it ends, and what is wrong with it.

        Raises:
            ValueError, RecursionError: there is no JSON.
        """
        self._problems.clear()
        value, end = self._json.raw_decode(text, at)
        return value, end, self._problems[0] if self._problems else None

    def _once(self, pairs: list[tuple[str, object]]) -> dict[str, object]:
        """Return an object; of a key that comes twice nobody knows which value was meant."""
        found = dict(pairs)
        if len(found) < len(pairs):
            counts = Counter(name for name, _ in pairs)
            twice = next(name for name in counts if counts[name] > 1)
            self._problems.append(f"not valid JSON (the key {twice!r} comes twice)")
        return found

    def _no_constant(self, name: str) -> None:
        self._problems.append(f"not valid JSON ({name} is not JSON)")


def _line_rows(path: Path, file: IO[bytes]) -> Iterator[Row]:
    """Yield the rows of JSON lines; empty lines are skipped but counted."""
    decoder = _Decoder()
    for number, line in enumerate(_lines(path, file), start=1):
        if not line.strip():
            continue
        fields, problem = _object_of(line, decoder)
        yield Row(fields, str(path), number, problem=problem)


def _object_of(line: bytes, decoder: _Decoder) -> tuple[dict[str, object], str | None]:
    """Return the object of one line, and what is wrong with it."""
    try:
        text = line.decode().strip(" \t\r\n")
        if text == "{":
            return {}, f"an object over several lines; {_PER_LINE}, or a JSON array of them"
        value, end, problem = decoder.decode(text)
    except UnicodeDecodeError as error:
        return {}, f"not UTF-8 (byte {error.start + 1} of the line): save the file as UTF-8"
    except (ValueError, RecursionError) as error:
        return {}, f"not valid JSON ({_json_words(error)}); {_PER_LINE}"
    if problem is None and end < len(text):
        after = "a comma" if text[end:].strip() == "," else "more text"
        problem = f"not valid JSON ({after} after the object)"
    if problem is not None:
        return {}, f"{_bounded(problem)}; {_PER_LINE}"
    if not isinstance(value, dict):
        return {}, f"got a {type(value).__name__}, {_PER_LINE}"
    return value, None


def _array_rows(path: Path, file: IO[bytes]) -> Iterator[Row]:
    """Yield the objects of a JSON array, each with the line on which it begins."""
    text = _text(path, file)
    decoder, line, seen = _Decoder(), 1, 0
    at = text.index("[") + 1
    for number in itertools.count(1):
        at = _after_space(text, at)
        line, seen = line + text.count("\n", seen, at), at
        if number == 1 and text.startswith("]", at):
            break
        try:
            value, at, problem = decoder.decode(text, at)
        except (ValueError, RecursionError) as error:
            where = f"{path}, line {getattr(error, 'lineno', line)}"
            raise DataError(f"{where}: not valid JSON ({_json_words(error)})") from error
        if problem is None and not isinstance(value, dict):
            problem = f"got a {type(value).__name__}, expected a JSON object"
        fields = value if isinstance(value, dict) else {}
        position = f"line {line} (item {number})"
        yield Row(fields, str(path), number, position, problem and _bounded(problem))
        at = _after_space(text, at)
        if text.startswith("]", at):
            break
        if not text.startswith(",", at):
            found = f"line {1 + text.count(chr(10), 0, at)}"
            short = "the file is cut short" if at == len(text) else "expected a comma or ]"
            raise DataError(f"{path}, {found}: not valid JSON (item {number} ends: {short})")
        at += 1
    if rest := text[_after_space(text, at) + 1 :].strip():
        raise DataError(
            f"{path}: text after the end of its JSON array ({_bounded(rest)}); expected one array, "
            "or one JSON object per line"
        )


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


def _text(path: Path, file: IO[bytes]) -> str:
    """Return a whole file as text."""
    content = file.read(LARGEST_FILE + 1)
    if len(content) > LARGEST_FILE:
        raise DataError(_too_large(str(path)))
    try:
        return content.removeprefix(_BOM).decode()
    except UnicodeDecodeError as error:
        line = 1 + content.count(b"\n", 0, error.start)
        raise DataError(f"{path}, line {line}: not UTF-8: save the file as UTF-8") from error


def _json_words(error: Exception) -> str:
    """Return what is wrong with a JSON text: the decoder's words, or what people call it."""
    if not isinstance(error, json.JSONDecodeError):
        return _words(error)
    text, at = error.doc, error.pos
    comma = text.rfind(",", 0, at + 1)
    if _TRAILING_COMMA.match(text, at) or (comma >= 0 and _is_trailing(text, comma, at)):
        return f"a comma before a closing bracket, column {error.colno}"
    if text.startswith("'", at):
        return f"single quotes, column {error.colno}; JSON has double ones"
    if not text[at:].strip() or error.msg.startswith("Unterminated string"):
        return f"it ends too early; {error.msg}, column {error.colno}"
    return f"{error.msg}, column {error.colno}"


def _is_trailing(text: str, comma: int, at: int) -> bool:
    """Return whether nothing but space lies between a comma and a closing bracket at a place."""
    return not text[comma + 1 : at].strip() and text[at : at + 1] in ("}", "]")


def _words(error: BaseException) -> str:
    return _bounded(str(error)) or type(error).__name__


def _bounded(text: str) -> str:
    return printable(" ".join(text.split()), LONGEST_REASON)


def _csv_rows(path: Path, file: IO[bytes], delimiter: str) -> Iterator[Row]:
    """Yield the rows of a table with a header; every cell is text, an empty one is missing.

    Raises:
        DataError: the header can't be used, or a quote is never closed, which hides what follows.
    """
    csv.field_size_limit(LONGEST_ROW)
    reader = csv.reader(_decoded(path, file), delimiter=delimiter, strict=True)
    header: list[str] = []
    while True:
        line, problem = reader.line_num + 1, None
        try:
            cells = next(reader, None)
        except csv.Error as error:
            if "unexpected end of data" in str(error):
                raise DataError(f"{path}, row {line}: a quote is never closed") from error
            cells, problem = [""], f"not valid CSV ({_words(error)})"
        if cells is None:
            return
        if not cells:
            continue
        if not header:
            header = _header(path, line, cells, problem, delimiter)
            continue
        if problem is None and len(cells) != len(header):
            problem = f"{len(cells)} cells, expected {len(header)} as in the header"
        fields: dict[str, object] = {}
        if problem is None:
            fields = {name: cell or None for name, cell in zip(header, cells, strict=True)}
        yield Row(fields, str(path), line, problem=problem)


def _decoded(path: Path, file: IO[bytes]) -> Iterator[str]:
    for number, line in enumerate(_lines(path, file), start=1):
        try:
            yield line.decode()
        except UnicodeDecodeError as error:
            raise DataError(f"{path}, row {number}: not UTF-8: save the file as UTF-8") from error


def _header(
    path: Path, line: int, cells: list[str], problem: str | None, delimiter: str
) -> list[str]:
    """Return the names of the columns."""
    names = [cell.strip() for cell in cells]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if problem is None and twice:
        problem = f"the column {_bounded(twice[0])!r} comes twice"
    elif problem is None and len(names) == 1 and any(mark in names[0] for mark in ",;\t|"):
        shown = "commas" if delimiter == "," else "tabs"
        problem = f"its header is one column, {_bounded(names[0])!r}: expected {shown} between"
    if problem is not None:
        raise DataError(f"{path}, row {line}: {problem}")
    return names


def _parquet_rows(path: Path, file: IO[bytes]) -> Iterator[Row]:
    """Yield the rows of a Parquet file, numbered from 1; their values are those of JSON."""
    # Here, because the verifiers' child processes import tasks and read no files.
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        parquet = pq.ParquetFile(file)
        metadata, schema = parquet.metadata, parquet.schema_arrow
        size = sum(metadata.row_group(n).total_byte_size for n in range(metadata.num_row_groups))
        if size > LARGEST_FILE:
            raise DataError(_too_large(str(path)))
        if twice := [name for name, count in Counter(schema.names).items() if count > 1]:
            raise DataError(f"{path}: the column {twice[0]!r} comes twice")
        singles = {field.name for field in schema if field.type in (pa.float32(), pa.float16())}
        number = 0
        for batch in parquet.iter_batches():
            for values in batch.to_pylist():
                number += 1
                yield plain_row(values, str(path), number, singles)
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{path} can't be read as Parquet ({_words(error)}); copy or write it again"
        ) from error


def plain_row(
    values: dict[str, Any],
    source: str,
    number: int,
    singles: set[str] | frozenset[str] = frozenset(),
) -> Row:
    """Return a row of a typed table, its values as JSON would have them.

    Args:
        singles: columns of numbers of 32 bits, whose shortest text is another than in 64.
    """
    fields, problem = {}, None
    for name, value in values.items():
        try:
            fields[name] = _plain(value, name in singles)
        except TypeError as error:
            problem = problem or f"the column {name!r} has {error}: leave it out or make it text"
    if _has_null_key(fields.get("answer")):
        problem = problem or (
            "its answer has objects with null in a key, which a typed table can't tell from no key "
            "at all: store answers as JSON text"
        )
    return Row(fields, source, number, problem=problem)


def _plain(value: Any, single: bool = False) -> object:
    """Return a value of a typed table as JSON would have it; NaN is how tables write nothing."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        if abs(value) == float("inf"):
            raise TypeError("an infinite number, which JSON has no word for")
        return None if value != value else _number(value, single)
    if isinstance(value, Decimal):
        return WrittenFloat(f"{value:f}")
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    raise TypeError(f"a value of type {type(value).__name__}, which JSON has no word for")


def _number(value: float, single: bool) -> WrittenFloat:
    """Return a number with its shortest text, in digits unless that takes very many."""
    import numpy as np

    exact = np.float32(value) if single else np.float64(value)
    digits = 1e-20 < abs(value) < 1e20 or value == 0
    return WrittenFloat(np.format_float_positional(exact, trim="-") if digits else str(exact))


def _has_null_key(value: object) -> bool:
    if isinstance(value, dict):
        return any(item is None or _has_null_key(item) for item in value.values())
    return isinstance(value, list) and any(_has_null_key(item) for item in value)
