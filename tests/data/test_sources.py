"""Folders, single files, pieces and the hub: where rows come from, and what is missing there."""

import gzip
import json
import os
import re
import sys
from math import ceil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.file_formats import read_file
from data.rows import Row
from data.sources import read_rows, split_rows
from pipeline.errors import DataError
from tests.data.conftest import Writer
from tests.paths import DATASETS

CHEMISTRY = DATASETS / "sciknoweval" / "chemistry"


def row(index: int | None, **fields: Any) -> dict[str, Any]:
    """A made-up row."""
    return {"idx": index, "dataset": "d", "prompt": f"q{index}", "answer": "A", **fields}


@given(st.integers(2, 400))
def test_a_single_file_is_split_without_loss(count: int) -> None:
    rows = [Row({}, "f", i) for i in range(count)]
    train, test = split_rows(rows, "train"), split_rows(rows, "test")
    assert len(test) == ceil(count / 10)
    assert sorted(r.number for r in train + test) == list(range(count))


def test_small_split_is_the_published_permutation(write: Writer) -> None:
    # What numpy.random.default_rng(42).permutation(11) gives; ceil(11 / 10) = 2 are for test.
    path = write([row(i) for i in range(11)])
    assert [r.fields["idx"] for r in read_rows(str(path), "test")] == [6, 7]
    train = [0, 10, 3, 5, 2, 4, 9, 1, 8]
    assert [r.fields["idx"] for r in read_rows(str(path), "train")] == train


@pytest.mark.skipif(not CHEMISTRY.is_dir(), reason=f"the benchmark is not at {CHEMISTRY}")
def test_the_papers_split_of_chemistry_is_reproduced(write: Writer) -> None:
    published = {name: read_file(CHEMISTRY / f"{name}.json") for name in ("train", "test")}
    joined = [r.fields for rows in published.values() for r in rows]
    path = write(sorted(joined, key=lambda fields: int(str(fields["idx"]))))
    for name, count in (("train", 1890), ("test", 210)):
        ours = [r.fields for r in read_rows(str(path), name)]  # type: ignore[arg-type]
        assert len(ours) == count
        assert ours == [r.fields for r in published[name]]


def test_missing_data_is_one_clear_line(write: Writer, tmp_path: Path) -> None:
    def message(path: Path | str | None) -> str:
        with pytest.raises(DataError) as caught:
            read_rows(None if path is None else str(path), "train")
        return str(caught.value)

    assert "data.path is not set" in message(None)
    assert "there is no such file or folder" in message(tmp_path / "absent.json")
    assert "there is no such file or folder" in message("absent.json")
    assert "has no train.json or train.jsonl: a folder needs" in message(tmp_path)
    write([], "train.json")
    assert "has no rows" in message(tmp_path)
    assert "has no rows" in message(tmp_path / "train.json")
    assert "has one row" in message(write([row(1)], "one.json"))
    write([row(1)], "train.jsonl")
    assert "both train.json and train.jsonl" in message(tmp_path)


def test_a_folder_with_test_only_says_what_to_do(write: Writer, tmp_path: Path) -> None:
    path = write([row(i) for i in range(20)], "test.json")
    hint = f"has no train.json or train.jsonl; add it, or set data.path to the single file {path}"
    with pytest.raises(DataError, match=re.escape(hint)):
        read_rows(str(tmp_path), "train")
    assert len(read_rows(str(tmp_path), "test")) == 20
    assert [len(read_rows(str(path), s)) for s in ("train", "test")] == [18, 2]


def fake_hub(splits: Any, version: str = "4.5.0") -> SimpleNamespace:
    """Something that looks like the `datasets` library."""

    def load_dataset(name: str) -> Any:
        if isinstance(splits, Exception):
            raise splits
        return splits

    return SimpleNamespace(__version__=version, load_dataset=load_dataset)


def test_hub_datasets_are_read_like_folders_or_files(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row(i) for i in range(20)]
    monkeypatch.setitem(sys.modules, "datasets", fake_hub({"train": rows[:15], "test": rows[15:]}))
    assert [r.fields["idx"] for r in read_rows("o/d", "test")] == [15, 16, 17, 18, 19]
    monkeypatch.setitem(sys.modules, "datasets", fake_hub({"train": rows}))
    assert len(read_rows("o/d", "test")) == 2
    monkeypatch.setitem(sys.modules, "datasets", fake_hub({"train": rows, "dev": rows}))
    with pytest.raises(DataError, match="has no split test, it has: train, dev"):
        read_rows("o/d", "test")


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (None, "pip install 'datasets>=4'"),
        (fake_hub({}, "3.6.0"), "datasets 3.6.0 can run code from a dataset"),
        (fake_hub(ConnectionError("no\nnet")), "nor a Hugging Face dataset that can be read: no n"),
    ],
)
def test_an_unreachable_hub_is_one_clear_line(
    monkeypatch: pytest.MonkeyPatch, module: Any, message: str
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", module)
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        read_rows("owner/dataset", "test")
    assert "\n" not in str(caught.value)


def pieces(folder: Path, split: str, count: int, rows: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for n in range(count):
        table = pa.Table.from_pylist([row(n * rows + i) for i in range(rows)])
        pq.write_table(table, folder / f"{split}-{n:05d}-of-{count:05d}.parquet")


@pytest.mark.parametrize("inside", ["", "data"])
def test_pieces_of_the_hub_are_read_in_order(tmp_path: Path, inside: str) -> None:
    pieces(tmp_path / inside, "train", 3, 4)
    pieces(tmp_path / inside, "test", 1, 2)
    assert [r.fields["idx"] for r in read_rows(str(tmp_path), "train")] == list(range(12))
    assert [r.fields["idx"] for r in read_rows(str(tmp_path), "test")] == [0, 1]
    (tmp_path / inside / "train-00001-of-00003.parquet").unlink()
    with pytest.raises(DataError, match=r"2 of 3 pieces train-…-of-….parquet are there"):
        read_rows(str(tmp_path), "train")


@pytest.mark.parametrize("name", ["train.csv", "train.parquet", "train.jsonl.gz", "train.ndjson"])
def test_a_folder_may_have_any_format(tmp_path: Path, name: str) -> None:
    rows, path = [row(i) for i in range(3)], tmp_path / name
    if name.endswith("parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif name.endswith("csv"):
        pl.DataFrame(rows).write_csv(path)
    else:
        text = "".join(f"{json.dumps(r)}\n" for r in rows).encode()
        path.write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    assert [str(r.fields["idx"]) for r in read_rows(str(tmp_path), "train")] == ["0", "1", "2"]
    (tmp_path / "train.json").write_text("{}")
    with pytest.raises(DataError, match=f"has both train.json and {re.escape(name)}: remove one"):
        read_rows(str(tmp_path), "train")


def test_a_folder_without_splits_says_what_it_has(tmp_path: Path) -> None:
    for name in ("README.md", *(f"part-{n}.csv" for n in range(6))):
        (tmp_path / name).write_text("x")
    (tmp_path / "train.json").mkdir()
    with pytest.raises(DataError) as caught:
        read_rows(str(tmp_path), "train")
    shown = "it has README.md, part-0.csv, part-1.csv, part-2.csv, part-3.csv and 3 more"
    assert shown in str(caught.value)
    (tmp_path / "dataset_dict.json").write_text("{}")
    with pytest.raises(DataError, match="save_to_disk writes: save each split by"):
        read_rows(str(tmp_path), "train")


def test_what_is_neither_file_nor_folder(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(DataError, match="neither a regular file nor a folder"):
        read_rows(str(tmp_path / "pipe.json"), "train")
    for name in ("absent.CSV", "absent.jsonl.gz", "./absent.parquet"):
        with pytest.raises(DataError, match="there is no such file or folder"):
            read_rows(name, "train")


@pytest.mark.parametrize("name", ["Train.jsonl", "TRAIN.JSON"])
def test_names_in_capitals(write: Writer, name: str) -> None:
    folder = write([{"prompt": "p"}], name).parent
    assert [row.number for row in read_rows(str(folder), "train")] == [1]


@pytest.mark.parametrize("inside", ["", "data"])
def test_a_file_and_pieces_of_one_split(write: Writer, inside: str) -> None:
    folder = write([{"prompt": "p"}], "train.jsonl").parent
    (folder / inside).mkdir(exist_ok=True)
    piece = Path(inside) / "train-00000-of-00001.parquet"
    pq.write_table(pa.table({"prompt": ["q"]}), folder / piece)
    with pytest.raises(DataError, match=f"has both train.jsonl and {re.escape(str(piece))}: "):
        read_rows(str(folder), "train")
