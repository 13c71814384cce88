"""Reading of datasets: files, folders, splits, names, and what is said when something is wrong."""

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

from data.rows import Row, WrittenFloat, load_questions, read_file, read_rows, split_rows
from pipeline.errors import DataError
from pipeline.task import Message, Question
from tests.paths import DATASETS

CHEMISTRY = DATASETS / "sciknoweval" / "chemistry"

Writer = Callable[..., Path]


def gold(row: Row) -> str:
    """Take any answer as it is."""
    return json.dumps(row.fields["answer"])


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


def test_folder_with_two_files_holds_the_splits(write: Writer, tmp_path: Path) -> None:
    write([row(3), row(1)], "train.json")
    write([row(2)], "test.jsonl")
    train = load_questions(str(tmp_path), "train", "t", gold)
    assert [q.prompt_id for q in train] == ["d-3", "d-1"]
    assert [q.prompt_id for q in load_questions(str(tmp_path), "test", "t", gold)] == ["d-2"]


def test_texts_stay_verbatim_and_an_empty_system_is_none(write: Writer, tmp_path: Path) -> None:
    prompt, system = " \n q\u2028 ü \n", "\nsystem \n"
    write([row(i, prompt=prompt, system=s) for i, s in enumerate((system, "", None))], "test.json")
    first, *others = load_questions(str(tmp_path), "test", "t", gold)
    user = Message("user", prompt)
    assert first == Question("d-0", (Message("system", system), user), '"A"')
    assert [question.messages for question in others] == [(user,), (user,)]


def test_a_row_without_idx_is_named_by_its_file_and_line(write: Writer, tmp_path: Path) -> None:
    for name in ("train.json", "test.json"):
        write([{"prompt": "p", "answer": "A"}, {"prompt": "p", "answer": "A"}], name)
    names = [
        question.prompt_id
        for split in ("train", "test")
        for question in load_questions(str(tmp_path), split, "t", gold)
    ]
    assert names == ["t-train-1", "t-train-2", "t-test-1", "t-test-2"]


@pytest.mark.parametrize(
    "text", ["0.00001", "1e-5", "1.0", "1.50", "1E400", "0.1234567890123456789"]
)
def test_numbers_keep_their_text(tmp_path: Path, text: str) -> None:
    (tmp_path / "rows.json").write_text(
        f'{{"answer": {text}, "list": [{text}], "whole": {"7" * 40}}}'
    )
    (one,) = read_file(tmp_path / "rows.json")
    answer = one.fields["answer"]
    assert isinstance(answer, WrittenFloat) and (answer.text, answer) == (text, float(text))
    assert json.dumps(answer) == json.dumps(float(text)) and one.fields["list"] == [float(text)]
    assert one.fields["whole"] == int("7" * 40)


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


def test_two_rows_of_one_name_are_an_error(write: Writer, tmp_path: Path) -> None:
    path = write([row(1), row(2), row(1)], "test.json")
    with pytest.raises(DataError) as caught:
        load_questions(str(tmp_path), "test", "t", gold)
    assert f"{path}, row 1 and {path}, row 3 are both named d-1" in str(caught.value)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ('{"prompt": ', "row 3: not valid JSON"),
        ("\udcff", "row 3: not valid JSON"),
        ("[" * 100_000, "row 3: not valid JSON"),
        ("[1]", "row 3: got a list, expected one JSON object"),
        ('{"prompt": "", "answer": "A"}', "row 3: prompt is ''"),
        ('{"answer": "A"}', "row 3: prompt is None"),
        ('{"prompt": 5, "answer": "A"}', "row 3: prompt is 5"),
        ('{"prompt": "p", "system": 5, "answer": "A"}', "row 3: system is 5"),
        ('{"prompt": "p", "idx": [1], "answer": "A"}', r"row 3: idx is \[1\]"),
        ('{"prompt": "a\\ud83d", "answer": "A"}', "row 3: the user text has half of a surrogate"),
    ],
)
def test_a_broken_row_is_named(tmp_path: Path, bad: str, message: str) -> None:
    text = '{"prompt": "p", "idx": 1, "answer": "A"}\n\n' + bad + "\n"
    (tmp_path / "test.json").write_text(text, errors="surrogateescape")
    with pytest.raises(DataError, match=message) as caught:
        load_questions(str(tmp_path), "test", "t", gold)
    assert str(tmp_path / "test.json") in str(caught.value) and "\n" not in str(caught.value)


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
