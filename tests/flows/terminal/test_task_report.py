"""`srpo doctor TASK`: questions as a run gets them, and what its verifier says of gold."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from flows.terminal.task_report import gold_text, print_task_report
from pipeline.errors import ConfigError, DataError

TASK = """
from pipeline.task import Message, Question, Verdict
VERIFIER = "mine/1"
def load(path, split):
    rows = {"train": range(30), "test": range(30, 40)}[split]
    return [Question(f"q{n}", (Message("user", f"Say {n}."),), str(n)) for n in rows]
def verify(response, reference):
    return Verdict(float(RIGHT), True, feedback="so it is")
"""


def report(target: str, *overrides: str) -> tuple[bool, str]:
    """Return whether all is well, and what is printed, white space folded."""
    file = io.StringIO()
    well = print_task_report(Console(file=file, width=300), target, overrides)
    return well, " ".join(file.getvalue().split())


def own_task(folder: Path, right: str) -> str:
    path = folder / "mine.py"
    path.write_text(TASK.replace("RIGHT", right))
    return str(path)


def science(index: int, **fields: Any) -> dict[str, Any]:
    return {
        "idx": index,
        "dataset": "d",
        "prompt": f"q{index}",
        "answer": "ABCD"[index % 4],
    } | fields


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def test_a_shipped_task_is_well() -> None:
    well, said = report("arithmetic")
    assert well and "!!" not in said
    assert "2,048 train, 128 test" in said and "arithmetic/1, from arithmetic" in said
    assert "1,088 of 1,088 are judged right, written as <reasoning>, then <answer>" in said
    assert "0 of 1,088 are judged right with another's answer" in said
    assert "empty responses 0 of 1,088 are judged right" in said
    assert said.count("system: Work in steps. user: What is ") == 10


def test_rows_left_out_and_equal_prompts_are_named(tmp_path: Path) -> None:
    write(tmp_path / "train.json", [*(science(n) for n in range(20)), science(20, answer="E")])
    write(tmp_path / "test.json", [science(30), science(31, prompt="q7")])
    with pytest.raises(DataError, match="row 21: the gold answer is 'E'"):
        report("science_qa", f"data.path={tmp_path}")
    well, said = report("science_qa", f"data.path={tmp_path}", "data.on_bad_row=skip")
    assert well and "20 train, 2 test" in said
    assert "22 of 22 are judged right" in said
    assert "note data 1 rows of the train split can't be used and are left out" in said
    assert "note data 1 of 2 questions of the test split have a prompt that is also in" in said


def test_a_task_with_solutions_of_its_own_is_judged_by_them(tmp_path: Path) -> None:
    rows = [
        {
            "task_id": index,
            "text": f"Write a function that adds {index}.",
            "code": f"def add(x):\n    return x + {index + (index == 3)}",
            "test_list": [f"assert add({index}) == {2 * index}"],
        }
        for index in range(4)
    ]
    write(tmp_path / "mbpp.jsonl", rows)
    well, said = report("code", f"data.path={tmp_path / 'mbpp.jsonl'}")
    assert not well and "!! gold answers 3 of 4 are judged right, written as the task's own" in said
    assert "(add(3) returned 7, expected 6.)" in said
    assert "ok empty responses 0 of 4 are judged right" in said


@pytest.mark.parametrize(
    ("right", "well", "phrases"),
    [
        ("response == reference", True, ["40 of 40 are judged right, written as the answer alone"]),
        (
            "True",
            False,
            ["!! empty responses 40 of 40 are judged right", "note other answers 40 of"],
        ),
        ("False", True, ["note gold answers written as", "can't be checked (so it is)"]),
        ("1 / 0", False, ["!! gold answers written as", "ZeroDivisionError: division by zero"]),
        (
            "reference in response and reference != '7'",
            False,
            ["!! gold answers 39 of 40 are judged right", "; q7: 7 (so it is)"],
        ),
    ],
)
def test_a_verifier_that_is_wrong_about_gold_is_found(
    tmp_path: Path, right: str, well: bool, phrases: list[str]
) -> None:
    found, said = report(own_task(tmp_path, right))
    assert found == well
    for phrase in phrases:
        assert phrase in said


def test_a_configuration_is_looked_at_by_its_tasks(tmp_path: Path) -> None:
    path, task = tmp_path / "mine.toml", own_task(tmp_path, "response == reference")
    path.write_text(
        f'[data.mixture.a]\ntask = "arithmetic"\n[data.mixture.b]\ntask = "{task}"\n'
        '[model]\npath = "demo"\n'
    )
    well, said = report(str(path))
    assert well and "a: questions 2,048 train" in said and "b: questions 30 train" in said
    assert "(a) system: Work in steps." in said and "(b) user: Say" in said


def test_with_a_model_prompts_are_counted_in_its_tokens() -> None:
    well, said = report("arithmetic", "model.path=demo")
    assert well and "train prompts of 25 tokens in the middle, 25 at most, by the" in said
    assert "tokens in the middle" not in report("arithmetic")[1]


def test_texts_of_the_model_s_special_tokens_are_named(tmp_path: Path) -> None:
    rows = [science(n) for n in range(8)]
    write(tmp_path / "train.json", [*rows, science(8, prompt="what is <|im_end|>?")])
    write(tmp_path / "test.json", [science(9)])
    settings = (f"data.path={tmp_path}", "model.path=demo")
    _, said = report("science_qa", *settings)
    assert "1 of 9 questions of the train split hold <|im_end|> (first d-8)" in said


def test_what_is_no_task_is_one_line() -> None:
    with pytest.raises(DataError, match="there is no task 'chess'"):
        report("chess")
    with pytest.raises(ConfigError, match="unknown key"):
        report("arithmetic", "data.pth=x")


def test_gold_answers_are_texts_as_people_write_them() -> None:
    assert [gold_text(t) for t in ('"A"', "17", '{"a": 1}', "no json")] == [
        "A",
        "17",
        '{"a": 1}',
        "no json",
    ]
