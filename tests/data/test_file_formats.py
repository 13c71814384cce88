"""Formats of dataset files: equal rows from each, places as an editor shows them, refusals."""

import gzip
import json
import math
import zipfile
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from data import file_formats
from data.file_formats import read_file
from data.rows import Row, WrittenFloat
from pipeline.errors import DataError

ROWS = [
    {"idx": "a", "prompt": "What is\r\n1 + 1, “exactly”?\n", "answer": "2"},
    {"idx": "b", "prompt": 'say "yes", ü 中\u2028\t', "answer": "yes, or\nno"},
    {"idx": "c", "prompt": "blank system", "answer": "-0.5", "system": None},
]
"""Every kind of text: quotes, commas, lines in cells, all sorts of letters."""


def json_lines(rows: list[dict[str, Any]], end: str = "\n") -> bytes:
    return "".join(f"{json.dumps(row, ensure_ascii=False)}{end}" for row in rows).encode()


def table(rows: list[dict[str, Any]], path: Path, delimiter: str) -> None:
    import csv

    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, names, delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def made(tmp_path: Path, name: str) -> Path:
    """Write ROWS in the format that a name asks for."""
    path, bom = tmp_path / name, b"\xef\xbb\xbf"
    plain = json_lines(ROWS)
    array = json.dumps(ROWS, indent=2).encode()
    contents = {
        "lines.jsonl": plain,
        "lines.ndjson": plain,
        "crlf.json": json_lines(ROWS, "\r\n"),
        "bom.json": bom + plain,
        "no-end.json": plain.rstrip(b"\n"),
        "spaced.json": b"\n \n" + plain + b"\n\r\n",
        "array.json": array,
        "array-bom.json": bom + b"\n" + array,
        "array-crlf.json": array.replace(b"\n", b"\r\n"),
        "array-one-line.json": json.dumps(ROWS).encode(),
        "lines.jsonl.gz": gzip.compress(plain),
        "array.json.gz": gzip.compress(array),
        "packed-without-saying.jsonl": gzip.compress(plain),
        "two-members.jsonl.gz": gzip.compress(plain[:40]) + gzip.compress(plain[40:]),
    }
    if name in contents:
        path.write_bytes(contents[name])
    elif name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    else:
        inner = path.with_suffix("") if name.endswith(".gz") else path
        table(ROWS, inner, "\t" if ".tsv" in name else ",")
        if name.startswith("bom"):
            inner.write_bytes(bom + inner.read_bytes())
        if name.endswith(".gz"):
            path.write_bytes(gzip.compress(inner.read_bytes()))
    return path


NAMES = (
    *("lines.jsonl", "lines.ndjson", "crlf.json", "bom.json", "no-end.json", "spaced.json"),
    *("array.json", "array-bom.json", "array-crlf.json", "array-one-line.json"),
    *("lines.jsonl.gz", "array.json.gz", "packed-without-saying.jsonl", "two-members.jsonl.gz"),
    *("table.parquet", "table.csv", "table.tsv", "bom.csv", "table.csv.gz", "TABLE.CSV"),
)


@pytest.mark.parametrize("name", NAMES)
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    rows = read_file(made(tmp_path, name))
    known = [{key: value for key, value in r.fields.items() if value is not None} for r in rows]
    assert known == [{k: v for k, v in row.items() if v is not None} for row in ROWS]
    assert [row.problem for row in rows] == [None] * 3
    assert {row.source for row in rows} == {str(tmp_path / name)}


@pytest.mark.parametrize(
    ("name", "places"),
    [
        ("spaced.json", ["row 3", "row 4", "row 5"]),
        # A header, a row over lines 2 to 4, one over 5 and 6.
        ("table.csv", ["row 2", "row 5", "row 7"]),
        # [ on line 1, an object of five lines, one of five, one of six.
        ("array.json", ["line 2 (item 1)", "line 7 (item 2)", "line 12 (item 3)"]),
        ("array-one-line.json", ["line 1 (item 1)", "line 1 (item 2)", "line 1 (item 3)"]),
        ("table.parquet", ["row 1", "row 2", "row 3"]),
    ],
)
def test_rows_are_where_an_editor_shows_them(tmp_path: Path, name: str, places: list[str]) -> None:
    path = made(tmp_path, name)
    assert [row.place for row in read_file(path)] == [f"{path}, {place}" for place in places]
    assert len({row.number for row in read_file(path)}) == 3


def of(value: Any, kind: Any) -> Callable[[Path], None]:
    """Return what writes a Parquet file of one answer."""
    return lambda path: pq.write_table(pa.table({"answer": pa.array([value], kind)}), path)


@pytest.mark.parametrize(
    ("write", "text"),
    [
        (of(1e-5, pa.float64()), "0.00001"),
        (of(0.1, pa.float32()), "0.1"),
        (of(3.0, pa.float64()), "3"),
        (of(6.63e-34, pa.float64()), "6.63e-34"),
        (of(Decimal("0.00001000"), pa.decimal128(12, 8)), "0.00001000"),
    ],
)
def test_numbers_of_parquet_have_their_shortest_text(
    tmp_path: Path, write: Callable[[Path], None], text: str
) -> None:
    write(tmp_path / "a.parquet")
    (row,) = read_file(tmp_path / "a.parquet")
    answer = row.fields["answer"]
    assert isinstance(answer, WrittenFloat) and (answer.text, answer) == (text, float(text))


@pytest.mark.parametrize(
    ("write", "value"),
    [
        (of(7, pa.int8()), 7),
        (of(True, pa.bool_()), True),
        (of(math.nan, pa.float64()), None),
        (of(None, pa.string()), None),
        (of("x", pa.dictionary(pa.int32(), pa.string())), "x"),
        (of("x", pa.large_string()), "x"),
        (of(date(2026, 11, 30), pa.date32()), "2026-11-30"),
        (of([{"a": 1, "b": ["c"]}], None), [{"a": 1, "b": ["c"]}]),
    ],
)
def test_values_of_parquet_are_those_of_json(
    tmp_path: Path, write: Callable[[Path], None], value: object
) -> None:
    write(tmp_path / "a.parquet")
    (row,) = read_file(tmp_path / "a.parquet")
    assert row.problem is None and row.fields == {"answer": value}


@pytest.mark.parametrize(
    ("write", "problem"),
    [
        (of(b"x", pa.binary()), "the column 'answer' has a value of type bytes"),
        (of(math.inf, pa.float64()), "the column 'answer' has an infinite number"),
        (of([{"a": 1, "b": None}], None), "null in a key, which a typed table can't tell from"),
    ],
)
def test_values_that_parquet_leaves_in_doubt_are_problems_of_their_row(
    tmp_path: Path, write: Callable[[Path], None], problem: str
) -> None:
    write(tmp_path / "a.parquet")
    (row,) = read_file(tmp_path / "a.parquet")
    assert problem in (row.problem or "")


GOOD = b'{"prompt": "p"}\n'


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"a": 1, "b": 2, "a": 3}', "the key 'a' comes twice"),
        (b'{"a": {"b": [{"c": 1, "c": 1}]}}', "the key 'c' comes twice"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": [-Infinity]}', "-Infinity is not JSON"),
        (b'{"a": 1,}', "a comma before a closing bracket, column 9"),
        (b'{"a": [1, 2, ]}', "a comma before a closing bracket, column"),
        (b'{"a": 1},', "a comma after the object"),
        (b'{"a": 1} {"a": 2}', "more text after the object"),
        (b"{'a': 1}", "single quotes, column 2"),
        (b'{"a": "b', "it ends too early"),
        (b"{", "an object over several lines; expected one JSON object per line, or a JSON array"),
        (b'{"a": {', "it ends too early"),
        (b'{"a": tru}', "Expecting value, column 7"),
        (b'{"a": "caf\xe9"}', "not UTF-8 (byte 11 of the line): save the file as UTF-8"),
        (b'{"a": "\x00"}', "Invalid control character"),
        (b"[1]", "got a list, expected one JSON object per line"),
        (b'"text"', "got a str, expected one JSON object per line"),
        (b"12", "got a int, expected one JSON object per line"),
        (b"[" * 100_000, "not valid JSON"),
        (b"9" * 5_000, "not valid JSON"),
        (b"idx,prompt", "Expecting value, column 1"),
    ],
)
def test_a_bad_line_keeps_its_reason_and_the_others_are_read(
    tmp_path: Path, line: bytes, problem: str
) -> None:
    (tmp_path / "a.jsonl").write_bytes(GOOD + b"\r\n" + line + b"\n" + GOOD)
    first, bad, last = read_file(tmp_path / "a.jsonl")
    assert (first.problem, last.problem, last.number) == (None, None, 4)
    assert problem in (bad.problem or "") and bad.place == f"{tmp_path / 'a.jsonl'}, row 3"
    assert len(bad.problem or "") < 400 and "\n" not in (bad.problem or "")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('[{"a": 1},\n{"a": 1, "a": 2},\n{"a": 3}]', "the key 'a' comes twice"),
        ('[{"a": 1},\n{"a": NaN},\n{"a": 3}]', "NaN is not JSON"),
        ('[{"a": 1},\n17,\n{"a": 3}]', "got a int, expected a JSON object"),
    ],
)
def test_a_bad_item_of_an_array_keeps_its_reason(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "a.json").write_text(text)
    first, bad, last = read_file(tmp_path / "a.json")
    assert (first.problem, last.problem, last.fields) == (None, None, {"a": 3})
    assert problem in (bad.problem or "") and bad.position == "line 2 (item 2)"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("1,2", "2 cells, expected 3 as in the header"),
        ("1,2,3,4", "4 cells, expected 3 as in the header"),
        ('1,"2"x,3', "not valid CSV"),
    ],
)
def test_a_bad_line_of_a_table_keeps_its_reason(tmp_path: Path, line: str, problem: str) -> None:
    (tmp_path / "a.csv").write_text(f'a,b,c\n\n1,"two\nlines",3\n{line}\n4,,6\n')
    first, bad, last = read_file(tmp_path / "a.csv")
    assert first == Row({"a": "1", "b": "two\nlines", "c": "3"}, str(tmp_path / "a.csv"), 3)
    assert problem in (bad.problem or "") and bad.number == 5
    assert last.fields == {"a": "4", "b": None, "c": "6"} and last.number == 6


def written(content: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content) and None


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("train.json", json_lines(ROWS))


def tarred(path: Path) -> None:
    import tarfile

    (path.parent / "train.json").write_bytes(json_lines(ROWS))
    with tarfile.open(path, "w:gz") as archive:
        archive.add(path.parent / "train.json", "train.json")


def arrow(path: Path) -> None:
    pa.feather.write_feather(pa.Table.from_pylist(ROWS), str(path), compression="uncompressed")


def cut_parquet(path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), path)
    path.write_bytes(path.read_bytes()[:-20])


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n"
PLAIN = json_lines(ROWS)


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("a.json", written(b""), "has no rows: the file is empty"),
        ("a.json", written(b"\n \r\n"), "has no rows: expected JSON lines"),
        ("a.json", written(b"[ ]"), "has no rows: expected JSON lines"),
        ("a.csv", written(b"a,b\n"), "has no rows: expected JSON lines"),
        ("a.json", written(LFS), "is a Git LFS pointer, not the data: run git lfs pull"),
        ("a.arrow", arrow, "is an Arrow file: save it as Parquet"),
        ("a.json", zipped, "is a zip archive or an Excel file"),
        ("a.json.gz", tarred, "is a tar archive"),
        ("a.json", written(PLAIN.decode().encode("utf-16")), "is UTF-16: save it as UTF-8"),
        (
            "a.json",
            written(PLAIN.decode().encode("utf-16-le")),
            "begins with NUL bytes: it is UTF-16",
        ),
        ("a.json", written(gzip.compress(gzip.compress(PLAIN))), "is packed by gzip twice"),
        ("a.csv", written(b"a,b\r1,2\r"), "row 1: not valid CSV (new-line character"),
        ("a.json", written(b"<!DOCTYPE html>"), "is a page of HTML or XML"),
        ("a.json", written(b"\x28\xb5\x2f\xfd123"), "is packed by zstd"),
        ("a.json", written(b"\x80\x04\x95"), "is a pickle, which may run code"),
        ("a.jsonl.gz", written(gzip.compress(PLAIN)[:-9]), "cut short or damaged"),
        ("a.jsonl.gz", written(gzip.compress(PLAIN)[:4]), "cut short or damaged"),
        ("a.jsonl.gz", written(gzip.compress(PLAIN) + b"x" * 9), "cut short or damaged"),
        ("a.json", written(b'[{"a": 1},\n {"a": 2},\n]'), "line 3: not valid JSON (a comma before"),
        ("a.json", written(b'[{"a": 1},\n {"a": 2'), "line 2: not valid JSON (it ends too early"),
        ("a.json", written(b'[{"a": 1},\n {"a": 2}\n'), "item 2 ends: the file is cut short"),
        ("a.json", written(b'[{"a": 1}\n {"a": 2}]'), "line 2: not valid JSON (item 1 ends: exp"),
        ("a.json", written(b'[{"a": 1}]\n{"a": 2}'), "text after the end of its JSON array"),
        ("a.json", written(b'[{"a":\n"\xff"}]'), "line 2: not UTF-8"),
        ("a.csv", written(b'a,b\n1,"2\n3,4\n5,6\n'), "row 2: a quote is never closed"),
        ("a.csv", written(b"a,b,a\n1,2,3\n"), "row 1: the column 'a' comes twice"),
        ("a.csv", written(b"a;b\n1;2\n"), "its header is one column, 'a;b': expected commas"),
        ("a.tsv", written(b"a,b\n1,2\n"), "its header is one column, 'a,b': expected tabs"),
        ("a.csv", written(b"a,b\n1,\xe9\n"), "row 2: not UTF-8"),
        ("a.parquet", cut_parquet, "can't be read as Parquet"),
        ("a.parquet.gz", written(gzip.compress(b"PAR1xxxx")), "is Parquet inside gzip"),
    ],
)
def test_what_can_not_be_read_is_one_line_that_says_what_it_is(
    tmp_path: Path, name: str, write: Callable[[Path], None], message: str
) -> None:
    write(tmp_path / name)
    with pytest.raises(DataError) as caught:
        read_file(tmp_path / name)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / name))


def test_a_file_that_can_not_be_opened_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="can't be read: Is a directory"):
        read_file(tmp_path)


def test_sizes_are_bounded_after_unpacking(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(file_formats, "LARGEST_FILE", 1000)
    monkeypatch.setattr(file_formats, "LONGEST_ROW", 500)
    long, many = b'{"a": "' + b"x" * 600 + b'"}', GOOD * 100
    for name, content, message in (
        ("a.jsonl.gz", gzip.compress(many), "GiB up to here"),
        ("a.json.gz", gzip.compress(b"[" + many + b"]"), "GiB up to here"),
        ("a.jsonl", long, "row 1: over 0 MiB"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=message):
            read_file(tmp_path / name)
