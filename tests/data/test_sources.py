"""Folders, single files, pieces and the hub: where rows come from, and what is missing there."""

import json
import re
import sys
from collections.abc import Callable
from math import ceil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.file_formats import read_file
from data.rows import Row
from data.sources import read_rows, split_rows
from pipeline.errors import DataError
from tests.paths import DATASETS

CHEMISTRY = DATASETS / "sciknoweval" / "chemistry"

Writer = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Writer:
    """Writes rows to a file in the test's folder."""

    def to_file(rows: list[Any], name: str = "rows.json") -> Path:
        path = tmp_path / name
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        return path

    return to_file


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
