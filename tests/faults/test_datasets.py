"""Hostile datasets: one line that names file and row, or the documented way; nothing runs."""

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data import file_formats, science_qa, tool_use
from data.registry import open_task
from flows.session.session import Session
from pipeline.config.load import load_config
from pipeline.errors import DataError
from pipeline.task import Message
from pipeline.text import printable

LONGEST_LINE = 1000
Load = Callable[..., str]


def line(**fields: Any) -> bytes:
    """One good row of science_qa, or one with other fields; surrogates stay escapes."""
    return json.dumps({"idx": 1, "prompt": "q", "answer": "A", **fields}).encode() + b"\n"


GOOD = line(idx=0)
FILES = {
    "empty": (b"", "has no rows"),
    "only-space": (b" \n\t\n", "has no rows"),
    "not-json": (GOOD + b"hello\n", "row 2: not valid JSON"),
    "half-a-line": (GOOD + line()[:20], "row 2: not valid JSON"),
    "two-on-a-line": (GOOD[:-1] + line(), "row 1: not valid JSON"),
    "array": (b"[" + GOOD[:-1] + b",\n7]", "line 2 (item 2): got a int"),
    "deep-array-file": (b"[" * 100_000 + b"]" * 100_000, "line 1: not valid JSON"),
    "half-an-array": (b"[" + GOOD[:-1] + b",\n{", "line 2: not valid JSON"),
    "pretty": (json.dumps({"prompt": "q"}, indent=1).encode(), "row 1: an object over several"),
    "number": (GOOD + b"7\n", "row 2: got a int"),
    "deep-array": (GOOD + b"[" * 100_000 + b"]" * 100_000, "row 2: not valid JSON"),
    "deep-object": (b'{"a":' * 100_000 + b"}" * 100_000, "row 1: not valid JSON"),
    "key-twice": (b'{"prompt": "q", "answer": "A", "answer": "B"}\n', "'answer' comes twice"),
    "nan": (GOOD + b'{"idx": NaN, "prompt": "q", "answer": "A"}\n', "NaN is not JSON"),
    "digits": (b'{"idx": ' + b"9" * 5000 + b"}", "row 1: not valid JSON"),
    "not-utf8": (GOOD + b'{"prompt": "\xff\xfe"}\n', "row 2: not UTF-8"),
    "raw-nul": (GOOD + b'{"prompt": "a\x00b"}\n', "row 2: not valid JSON"),
    "id-twice": (GOOD + line(idx=0), "are both named science_qa-0"),
    "id-same-text": (line(idx=1) + line(idx="1"), "are both named science_qa-1"),
    "id-list": (GOOD + line(idx=[1]), "row 2: idx is [1]"),
    "id-bool": (GOOD + line(idx=True), "row 2: idx is True"),
    "id-float": (GOOD + line(idx=1.5), "row 2: idx is 1.5"),
    "id-long": (GOOD + line(idx="x" * 10_000), "row 2: dataset and idx make the prompt id"),
    "id-controls": (GOOD + line(idx="\x1b[31m\x07"), "characters that can be seen"),
    "id-surrogate": (GOOD + line(idx="\ud800"), "characters that can be seen"),
    "id-right-to-left": (GOOD + line(dataset="\u202eabc"), "characters that can be seen"),
    "dataset-object": (GOOD + line(dataset={"a": 1}), "row 2: dataset is {'a': 1}"),
    "no-prompt": (GOOD + b'{"idx": 3, "answer": "A"}\n', "row 2: there is no prompt"),
    "prompt-list": (GOOD + line(prompt=["q"]), "row 2: prompt is ['q']"),
    "prompt-empty": (GOOD + line(prompt=" \n"), "row 2: prompt is"),
    "system-number": (GOOD + line(system=3), "row 2: system is 3"),
    "surrogate": (GOOD + line(prompt="a\udfff"), "half of a surrogate pair at character 1"),
    "gold-missing": (GOOD + b'{"idx": 3, "prompt": "q"}\n', "row 2: the gold answer is None"),
    "gold-list": (GOOD + line(answer=["A"]), "row 2: the gold answer is ['A']"),
    "gold-other": (GOOD + line(answer="E"), "row 2: the gold answer is 'E'"),
    "gold-deep": (
        b'{"prompt": "q", "answer": ' + b"[" * 900 + b"]" * 900 + b"}",
        "row 1: ",
    ),
    "csv": (b"\xef\xbb\xbfprompt,answer\n\"a\nb\",A\n", "row 1: not valid JSON"),
    "parquet": (b"PAR1" + b"\x00" * 100 + b"PAR1", "can't be read as Parquet"),
    "gzip": (gzip.compress(b" " * 10_000_000), "has no rows"),
    "pickle": (b"cos\nsystem\n(S'touch canary'\ntR.", "row 1: not valid JSON"),
}  # fmt: skip


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Returns the one line with which a task refuses its test split under a path."""
    monkeypatch.chdir(tmp_path)

    def load(path: Path | str, task: str = "science_qa") -> str:
        with pytest.raises(DataError) as caught:
            open_task(task).load(str(path), "test")
        message = str(caught.value)
        shown = printable(message, LONGEST_LINE - 50)  # as the command prints it
        assert "\n" not in message and len(shown) < LONGEST_LINE
        assert not (tmp_path / "canary").exists()
        return message

    return load


@pytest.mark.parametrize("name", FILES)
def test_hostile_files(refused: Load, tmp_path: Path, name: str) -> None:
    content, expected = FILES[name]
    path = tmp_path / "test.json"
    path.write_bytes(content)
    message = refused(tmp_path)
    assert str(path) in message and expected in message


@pytest.mark.parametrize(
    ("task", "gold"),
    [
        *(("mathematics", gold) for gold in ("", "[[[[", None, True, [], {}, "\ud800", "\x00")),
        ("mathematics", "1+" * 5000 + "1"),
        ("mathematics", "(" * 40),
        ("mathematics", "__import__('os').system('touch canary')"),
        *(("tool_use", gold) for gold in ("", "[", [], [[]], [{"Action": ""}], [{"Action": 3}])),
        ("tool_use", [{"Action": "a\nb", "Action_Input": "{}"}]),
        ("tool_use", [{"Action": "a", "Action_Input": '{"x": NaN}'}]),
        ("tool_use", [{"Action": "a", "Action_Input": '{"x": 1e999}'}]),
        ("tool_use", [{"Action": "a", "Action_Input": '{"a":' * 5000 + "1" + "}" * 5000}]),
    ],
)
def test_gold_answers_that_can_not_be_read(
    refused: Load, tmp_path: Path, task: str, gold: Any
) -> None:
    (tmp_path / "test.json").write_bytes(line(answer=gold))
    assert "test.json, row 1: the gold answer is" in refused(tmp_path, task)


@pytest.mark.parametrize("gold", ["\\binom{10000000}{5000000}", "10^{10^{10}}", "1e999999999"])
def test_gold_that_would_take_for_ever_is_refused(refused: Load, tmp_path: Path, gold: str) -> None:
    (tmp_path / "test.json").write_bytes(line(answer=gold))
    assert "row 1: the gold answer is" in refused(tmp_path, "mathematics")


@pytest.mark.parametrize("size", [file_formats.LONGEST_ROW + 1, 1_000_000_000, 400 * 2**30])
def test_a_line_without_end_is_not_read_to_its_end(
    refused: Load, tmp_path: Path, size: int
) -> None:
    with (tmp_path / "test.json").open("wb") as file:
        file.write(GOOD)
        file.truncate(size + len(GOOD))  # sparse: no disk is used
    assert "test.json, row 2: over 16 MiB" in refused(tmp_path)


def test_a_file_that_memory_could_not_hold(
    refused: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_formats, "LARGEST_FILE", 2**27)
    with (tmp_path / "test.json").open("wb") as file:
        file.write(GOOD)
        for _ in range(10):  # lines of 15 MiB of NUL bytes: bad rows, and no disk is used
            file.seek(15 * 2**20, os.SEEK_CUR)
            file.write(b"\n")
    assert "GiB up to here" in refused(tmp_path)


def test_what_is_no_file(refused: Load, tmp_path: Path) -> None:
    for name, make in (
        ("pipe", lambda path: os.mkfifo(path)),
        ("folder", lambda path: path.mkdir()),
        ("loop", lambda path: path.symlink_to(path.name)),
        ("zero", lambda path: path.symlink_to("/dev/zero")),
    ):
        (tmp_path / name).mkdir()
        make(tmp_path / name / "test.json")
        assert "has no test.json" in refused(tmp_path / name)
    (tmp_path / "around").symlink_to("around")
    assert "neither a regular file nor a folder" in refused("/dev/zero")
    for path in (tmp_path / "around", "a\0b.json", "x" * 5000 + ".json"):
        assert "there is no such file or folder" in refused(path)
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "test.json").symlink_to("/proc/self/mem")
    assert "can't be read" in refused(tmp_path / "memory")


def test_code_in_a_dataset_folder_is_never_run(refused: Load, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    canary = f"open({str(tmp_path / 'canary')!r}, 'w')\n"
    for name in ("set.py", "__init__.py", "dataset.py", "conftest.py", "sitecustomize.py"):
        (folder / name).write_text(canary)
    for name in ("train.pkl", "train.pt", "test.npy"):
        (folder / name).write_bytes(b"cposix\nsystem\n(S'touch canary'\ntR.")
    (folder / "dataset_infos.json").write_text("{}")
    assert "has no test.json" in refused(folder)
    (folder / "test.json").write_bytes(GOOD)
    assert len(science_qa.load(str(folder), "test")) == 1
    assert not (tmp_path / "canary").exists()


def test_odd_texts_and_names_stay_as_they_are(tmp_path: Path) -> None:
    """Paths, markup and scripts of the right are texts: nothing is opened or shown by them."""
    texts = ["a\x00b", "\u202eright\u2066", "<script>alert(1)</script>", "{{7*7}}", "\x1b[2J"]
    names = ["../../etc/passwd", "/etc/passwd", "<img src=x onerror=alert(1)>", "a b", "-rf"]
    made = [line(idx=n, prompt=t) for n, t in zip(names, texts, strict=True)]
    (tmp_path / "test.json").write_bytes(b"\xef\xbb\xbf" + b"".join(made))
    found = science_qa.load(str(tmp_path), "test")
    assert [q.prompt_id for q in found] == [f"science_qa-{name}" for name in names]
    assert [q.messages for q in found] == [(Message("user", text),) for text in texts]


def test_a_prompt_of_10_mb_is_skipped_and_counted(tmp_path: Path) -> None:
    long = line(idx=9, prompt="What is 1 + 1? " * 700_000)
    for name in ("train.json", "test.json"):
        (tmp_path / name).write_bytes(GOOD + long)
    config = load_config(
        "demo", ["data.task=science_qa", f"data.path={tmp_path}", "run.threads=1", "run.steps=1"]
    )
    session = Session.create(tmp_path / "run", config)
    assert session.questions.skipped == {"train": 1, "test": 1}
    session.close()


TASK = """
from pipeline.task import Message, Question, Verdict
VERIFIER = "v/1"
def verify(response, reference): return Verdict(0.0, True)
def load(path, split): return [Question({})]
"""


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("1, (Message('user', 'q'),), '1'", "prompt_id is 1"),
        ("'\\ud800', (Message('user', 'q'),), '1'", "prompt_id is"),
        ("'x' * 999, (Message('user', 'q'),), '1'", "prompt_id is"),
        ("'a', (), '1'", "messages are ()"),
        ("'a', 'q', '1'", "messages are 'q'"),
        ("'a', (Message('user', None),), '1'", "messages are"),
        ("'a', (Message('user', '\\ud800'),), '1'", "half of a surrogate pair"),
        ("'a', (Message('user', 'q'),), None", "reference is None"),
        ("'a', (Message('user', 'q'),), 'x'), Question('a', (Message('user', 'q'),), 'x'", "twice"),
    ],
)
def test_a_task_of_ones_own_with_odd_questions(
    tmp_path: Path, question: str, expected: str
) -> None:
    path = tmp_path / "mine.py"
    path.write_text(TASK.replace("{}", question))
    with pytest.raises(DataError, match="train split, question") as caught:
        Session.create(tmp_path / "run", load_config("demo", [f"data.task={path}"]))
    assert expected in str(caught.value) and not (tmp_path / "run").exists()


def test_the_tools_of_a_row_may_be_hostile_texts(tmp_path: Path) -> None:
    calls = [{"Action": "../x<script>", "Action_Input": {"a": "\x00\u202e", "b": "9" * 100_000}}]
    (tmp_path / "test.json").write_bytes(line(answer=calls))
    (question,) = tool_use.load(str(tmp_path), "test")
    assert json.loads(question.reference) == calls
