"""Reading of datasets: files, folders, splits, names, and what is said when something is wrong."""

import json
from pathlib import Path
from typing import Any

import pytest

from data.file_formats import read_file
from data.rows import Row, WrittenFloat, load_questions
from pipeline.errors import DataError, RowError
from pipeline.task import BadRows, Message, Question
from tests.data.conftest import Writer
from tests.paths import DATASETS

CHEMISTRY = DATASETS / "sciknoweval" / "chemistry"


def gold(row: Row) -> str:
    """Take any answer as it is."""
    return json.dumps(row.fields["answer"])


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
    assert f"{answer!r} {one.fields['list']}" == f"{text} [{text}]"
    assert one.fields["whole"] == int("7" * 40)


def test_two_rows_of_one_name_are_an_error(write: Writer, tmp_path: Path) -> None:
    path = write([row(1), row(2), row(1)], "test.json")
    with pytest.raises(DataError) as caught:
        load_questions(str(tmp_path), "test", "t", gold)
    assert f"{path}, row 1 and {path}, row 3 are both named d-1" in str(caught.value)


def test_a_whole_number_may_be_written_as_a_float(write: Writer, tmp_path: Path) -> None:
    path = write([row(7.0), row(8)], "test.json")
    asked = load_questions(str(tmp_path), "test", "t", gold)
    assert [question.prompt_id for question in asked] == ["d-7", "d-8"]
    write([row(7.0), row(7)], "test.json")
    with pytest.raises(DataError, match=f"{path}, row 2 are both named d-7"):
        load_questions(str(tmp_path), "test", "t", gold)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ('{"prompt": ', "row 3: not valid JSON"),
        ("\udcff", "row 3: not UTF-8"),
        ("[" * 100_000, "row 3: not valid JSON"),
        ("[1]", "row 3: got a list, expected one JSON object"),
        ('{"prompt": "", "answer": "A"}', "row 3: prompt is ''"),
        ('{"answer": "A"}', "row 3: there is no prompt; its fields are answer"),
        ('{"prompt": null, "answer": "A"}', "row 3: prompt is None"),
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


def test_the_first_bad_rows_are_those_that_come_first_in_the_file(write: Writer) -> None:
    path = write([row(i, answer="A" if i % 8 else None) for i in range(40)])

    def some(one: Row) -> str:
        if one.fields["answer"] is None:
            raise RowError(f"{one.place}: none")
        return gold(one)

    with pytest.raises(BadRows) as caught:
        load_questions(str(path), "train", "t", some)
    numbers = [int(str(error).split("row ")[1].split(":")[0]) for error in caught.value.errors]
    assert len(numbers) > 2 and numbers == sorted(numbers)
    path = write([row(i) for i in range(40)])
    whole = [q.prompt_id for q in load_questions(str(path), "train", "t", gold)]
    left = [q.prompt_id for q in caught.value.questions]
    assert left == [name for name in whole if name in left] and len(left) + len(numbers) == 36
