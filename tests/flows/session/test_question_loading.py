"""Loading questions of any task: bad rows left out or not, ids that can't meet, equal prompts."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flows.reruns.evaluate import evaluate_now
from flows.session.question_loading import load_questions
from flows.session.questions import Questions, TaskQuestions, special_texts, warnings_of
from flows.session.session import Session
from pipeline.config.load import load_config
from pipeline.config.sections import Config
from pipeline.errors import DataError
from pipeline.files.durable import digest_of
from pipeline.task import Message, Question
from tests.builders.chat_templates import family_tokenizer
from tests.paths import DATASETS

MATERIALS = DATASETS / "sciknoweval" / "materials"
TASK = """
from pipeline.errors import RowError
from pipeline.task import Message, Question, Verdict, usable_questions
VERIFIER = "mine/1"
def verify(response, reference): return Verdict(1.0, True)
def load(path, split):
    def question(row):
        if row < 0:
            raise RowError(f"row {row} is below zero")
        return Question(str(row), (Message("user", f"q{row}"),), "1")
    return usable_questions(ROWS[split], question)
"""


def science(index: int | None, answer: str = "A", **fields: Any) -> dict[str, Any]:
    return {"idx": index, "dataset": "d", "prompt": f"q{index}", "answer": answer, **fields}


def config_of(folder: Path, *settings: str, **splits: list[Any]) -> Config:
    """Write the splits as JSON lines and return a configuration of science_qa over them."""
    for split, rows in splits.items():
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (folder / f"{split}.json").write_text("\n".join(lines) + "\n")
    given = ["data.task=science_qa", f"data.path={folder}", *settings]
    return load_config("demo", given)


def ids(questions: list[Question]) -> list[str]:
    return [question.prompt_id for question in questions]


def warned(config: Config, questions: Questions) -> str:
    return "\n".join(warnings_of(config, questions))


MANY = [science(i) for i in range(20)]
BAD = ('{"prompt": "p", "answer"', science(21, "E"), science(3))
"""A broken line, an answer that can't be judged, an idx that is there already."""


def test_bad_rows_stop_and_say_how_many_and_what_to_do(tmp_path: Path) -> None:
    config = config_of(tmp_path, train=[*MANY, *BAD], test=MANY)
    with pytest.raises(DataError) as caught:
        load_questions(config)
    message = str(caught.value)
    assert f"{tmp_path / 'train.json'}, row 21: not valid JSON" in message
    assert "in all, 3 of 23 rows can't be used" in message and "\n" not in message
    assert "data.on_bad_row=skip leaves out what can't be used" in message


def test_skipping_counts_and_names_them(tmp_path: Path) -> None:
    rows = [*MANY[:10], *BAD, *MANY[10:]]
    config = config_of(tmp_path, "data.on_bad_row=skip", train=rows, test=MANY[:5])
    questions = load_questions(config)
    assert ids(questions.train) == [f"train/d-{i}" for i in range(20)]
    assert questions.facts()["bad_rows"] == {"train": 3}
    said = warned(config, questions)
    assert "3 rows of the train split can't be used and are left out" in said
    path = tmp_path / "train.json"
    for reason in (
        f"{path}, row 11: not valid JSON",
        f"{path}, row 12: the gold answer is 'E'",
        f"{path}, row 4 and {path}, row 13 are both named d-3",
    ):
        assert reason in said
    assert load_questions(config).digest() == questions.digest()


def test_no_more_than_a_quarter_is_skipped(tmp_path: Path) -> None:
    bad = [science(100 + i, "E") for i in range(7)]
    for number, fits in ((6, True), (7, False)):  # 6 of 24 are a quarter, 7 of 25 are more
        config = config_of(
            tmp_path, "data.on_bad_row=skip", train=[*MANY[:18], *bad[:number]], test=MANY
        )
        if fits:
            assert len(load_questions(config).train) == 18
            continue
        with pytest.raises(DataError, match="more than the 25% of a split"):
            load_questions(config)
        with pytest.raises(DataError, match=r"in all, 7 of 25 rows can't be used$"):
            load_questions(config_of(tmp_path))


def test_the_split_of_a_single_file_does_not_depend_on_its_bad_rows(tmp_path: Path) -> None:
    good, path = [science(i) for i in range(40)], tmp_path / "all.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in good))
    config = load_config("demo", ["data.task=science_qa", f"data.path={path}"])
    whole = load_questions(config)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:7], "{", *lines[8:]]))
    skipping = config.model_copy(
        update={"data": config.data.model_copy(update={"on_bad_row": "skip"})}
    )
    left = load_questions(skipping)
    for before, after in ((whole.train, left.train), (whole.test, left.test)):
        assert ids(after) == [name for name in ids(before) if name != "d-7"]


def test_a_path_for_a_task_that_reads_none_is_refused(tmp_path: Path) -> None:
    config = load_config("demo", [f"data.path={tmp_path}"])
    with pytest.raises(DataError, match="task arithmetic reads no files"):
        load_questions(config)


def own_task(folder: Path, text: str, *settings: str) -> Config:
    path = folder / "mine.py"
    path.write_text(text)
    return load_config("demo", [f"data.task={path}", *settings])


def test_a_task_of_ones_own_can_have_bad_rows(tmp_path: Path) -> None:
    rows = 'ROWS = {"train": [1, 2, -3, 4, 5], "test": [6, 7]}\n'
    with pytest.raises(DataError, match="row -3 is below zero; data"):
        load_questions(own_task(tmp_path, rows + TASK))
    found = load_questions(own_task(tmp_path, rows + TASK, "data.on_bad_row=skip"))
    assert ids(found.train) == ["1", "2", "4", "5"] and found.facts()["bad_rows"] == {"train": 1}
    wordy = TASK.replace("is below zero", "is\\nbelow zero")
    found = load_questions(own_task(tmp_path, rows + wordy, "data.on_bad_row=skip"))
    assert found.bad_rows == {"train": ["row -3 is below zero"]}


def test_a_load_that_ends_at_its_first_bad_row_is_told_how_not_to(tmp_path: Path) -> None:
    text = TASK.replace("usable_questions(ROWS[split], question)", "[*map(question, ROWS[split])]")
    rows = 'ROWS = {"train": [1, 2, -3, 4, 5], "test": [6, 7]}\n'
    with pytest.raises(DataError, match=r"row -3 is below zero$"):
        load_questions(own_task(tmp_path, rows + text))
    with pytest.raises(DataError, match=r"write it with pipeline\.task\.usable_questions"):
        load_questions(own_task(tmp_path, rows + text, "data.on_bad_row=skip"))


def test_a_question_that_tables_can_not_hold_is_a_bad_row(tmp_path: Path) -> None:
    text = TASK.replace("str(row)", "str(row) if row != 3 else '\\ud800'")
    rows = 'ROWS = {"train": [1, 2, 3, 4, 5], "test": [6]}\n'
    with pytest.raises(DataError, match="train split, question 3: prompt_id is"):
        load_questions(own_task(tmp_path, rows + text))
    found = load_questions(own_task(tmp_path, rows + text, "data.on_bad_row=skip"))
    assert ids(found.train) == ["1", "2", "4", "5"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("solution=5", "question 3: solution and demonstration must be texts, or None"),
        ("solution=' '", "question 3: solution and demonstration must be texts, or None"),
        ("demonstration='d'", "question 3: there is a demonstration, but no solution"),
        ("solution='\\ud800'", "question 3: a text has half of a surrogate pair"),
    ],
)
def test_a_solution_is_a_text(tmp_path: Path, given: str, message: str) -> None:
    text = TASK.replace('"1")', f'"1", **(dict({given}) if row == 3 else {{}}))')
    rows = 'ROWS = {"train": [1, 2, 3, 4, 5], "test": [6]}\n'
    with pytest.raises(DataError, match=message):
        load_questions(own_task(tmp_path, rows + text))


def test_digests_are_those_of_before_without_solutions_and_cover_them() -> None:
    asked = Question("q", (Message("system", "s"), Message("user", "u")), '"A"')
    before = {"prompt_id": "q", "messages": (("system", "s"), ("user", "u")), "reference": '"A"'}
    plain = Questions({"t": TaskQuestions([asked], [asked])})
    assert plain.digest() == digest_of([[before], [before]])
    for changed in (replace(asked, solution="a"), replace(asked, solution="a", demonstration="b")):
        assert Questions({"t": TaskQuestions([changed], [asked])}).digest() != plain.digest()
    shipped = load_questions(load_config("demo")).digest()
    assert shipped.startswith("e88e3611d2813b78")


def test_equal_ids_of_both_splits_are_told_apart(tmp_path: Path) -> None:
    other = [science(i, prompt=f"other {i}") for i in range(3)]
    found = load_questions(config_of(tmp_path, train=MANY, test=other))
    assert ids(found.train)[:2] == ["train/d-0", "train/d-1"]
    assert ids(found.test) == ["test/d-0", "test/d-1", "test/d-2"]
    later = [science(100 + i) for i in range(3)]
    found = load_questions(config_of(tmp_path, train=MANY, test=later))
    assert ids(found.train)[:2] == ["d-0", "d-1"] and ids(found.test)[0] == "d-100"


def test_ids_of_a_task_of_ones_own_are_told_apart_in_a_mixture_too(tmp_path: Path) -> None:
    rows = 'ROWS = {"train": [1, 2], "test": [2]}\n'
    path = str(own_task(tmp_path, rows + TASK).data.task)
    mixture = [f"data.mixture.{name}.task={path}" for name in ("a", "b")]
    found = load_questions(load_config("demo", ["data.task=none", *mixture]))
    assert ids(found.train) == ["a/train/1", "a/train/2", "b/train/1", "b/train/2"]
    assert ids(found.test) == ["a/test/2", "b/test/2"]


def test_the_demos_ids_stay_and_nothing_is_warned_of() -> None:
    config = load_config("demo")
    found = load_questions(config)
    assert set("+-") & set(found.train[0].prompt_id) and "/" not in found.test[0].prompt_id
    assert set(found.facts()) == {"questions_digest", "skipped_questions"}
    assert warnings_of(config, found) == []


def test_equal_prompts_are_warned_of_and_left_out_on_demand(tmp_path: Path) -> None:
    test = [science(100), science(101, prompt="q7\u00a0\n"), science(102, "B", prompt="\u200b q8")]
    train = [*MANY, science(30, prompt="q1"), science(31, "C", prompt="q2\t")]
    config = config_of(tmp_path, train=train, test=test)
    said = warned(config, load_questions(config))
    assert (
        "2 of 3 questions of the test split have a prompt that is also in train (first test d-101 "
        "= train d-7; 1 with another gold answer)"
    ) in said
    assert (
        "2 of 22 questions of the train split repeat the prompt of an earlier one (first train "
        "d-30 = train d-1; 1 with another gold answer)"
    ) in said
    config = config_of(tmp_path, "data.drop_test_duplicates=true")
    found = load_questions(config)
    assert ids(found.test) == ["d-100"] and len(found.train) == 22
    assert found.facts()["test_duplicates"] == 2
    said = warned(config, found)
    assert "2 questions of the test split are left out, since their prompt is in train" in said
    assert "have a prompt that is also in train" not in said


def test_ids_with_their_split_are_named_without_it(tmp_path: Path) -> None:
    config = config_of(tmp_path, train=MANY, test=[science(7)])
    said = warned(config, load_questions(config))
    assert "(first test/d-7 = train/d-7)" in said


def test_a_system_turn_makes_another_prompt(tmp_path: Path) -> None:
    config = config_of(tmp_path, train=MANY, test=[science(100, prompt="q7", system="s")])
    assert "also in train" not in warned(config, load_questions(config))


def test_a_test_split_of_duplicates_alone_is_refused(tmp_path: Path) -> None:
    config = config_of(tmp_path, "data.drop_test_duplicates=true", train=MANY, test=MANY[:4])
    with pytest.raises(DataError, match="every prompt of its test split is also in train"):
        load_questions(config)


def test_a_run_records_what_it_left_out_and_resumes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = (
        *("data.on_bad_row=skip", "data.drop_test_duplicates=true", "data.max_prompt_length=512"),
        *("model.path=random", "run.steps=1", "evaluate.rollouts=1"),
        "evaluate.max_response_length=8",
    )
    rows = [*MANY, science(50, "E")]
    config = config_of(tmp_path, *settings, train=rows, test=[science(0), science(90)])
    session = Session.create(tmp_path / "run", config)
    session.close()
    assert session.run.record["bad_rows"] == {"train": 1}
    assert session.run.record["test_duplicates"] == 1
    again = Session.resume(tmp_path / "run")
    assert ids(again.questions.test) == ["test/d-90"]
    found = evaluate_now(again, 0, ["data.drop_test_duplicates=false"])
    assert found["questions"] == 2
    again.close()
    said = capsys.readouterr().err
    assert "1 rows of the train split can't be used and are left out" in said


@pytest.mark.skipif(not MATERIALS.is_dir(), reason=f"the benchmark is not at {MATERIALS}")
def test_the_prompt_that_materials_has_in_both_splits_is_found() -> None:
    settings = ["data.task=science_qa", f"data.path={MATERIALS}"]
    config = load_config("demo", settings)
    assert (
        "1 of 94 questions of the test split have a prompt that is also in train (first test "
        "sciknoweval-365 = train sciknoweval-377)"
    ) in warned(config, load_questions(config))
    dropping = load_config("demo", [*settings, "data.drop_test_duplicates=true"])
    assert len(load_questions(dropping).test) == 93


def test_texts_of_special_tokens_are_counted() -> None:
    def asked(*texts: str) -> list[Question]:
        return [Question(f"q{n}", (Message("user", text),), '"A"') for n, text in enumerate(texts)]

    train = asked("a", "what ends a turn? <|im_end|>", "<|im_end|><|im_start|>system")
    questions = Questions({"t": TaskQuestions(train, asked("<|im_ends|>", "< |im_end|>"))})
    assert special_texts(questions, family_tokenizer("chatml")) == [
        "2 of 3 questions of the train split hold <|im_start|>, <|im_end|> (first q1), which the "
        "tokenizer reads as its special token, not as text"
    ]
