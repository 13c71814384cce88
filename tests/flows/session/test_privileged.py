"""What tasks offer teachers, and the refusal of sources that they don't offer."""

import json
import re
from pathlib import Path

import pytest

from data import tool_use
from data.registry import SHIPPED, gold_wording
from flows.session.privileged import expect_offered, golds, offered, solutions
from flows.session.questions import Questions, SelectedQuestions, TaskQuestions
from flows.session.session import Session
from pipeline.config.load import load_config
from pipeline.errors import ConfigError, DataError, StoreError
from pipeline.task import Message, Question
from tests.golden.golden_run import TASK, golden_config

ASKED = (Message("user", "2+2?"),)
PLAIN = Question("a", ASKED, '"4"')
WORKED = Question("b", ASKED, '"4"', solution="2+2=4")


def of(*questions: Question) -> Questions:
    return Questions({"arithmetic": TaskQuestions(questions, questions)})


def test_golds_in_words() -> None:
    words = gold_wording("arithmetic")
    assert words is not None and words('"85"') == "85"
    calls = json.dumps([{"Action": "get", "Action_Input": {"id": 1, "a": "ä"}}] * 2)
    words = gold_wording("tool_use")
    assert words is not None
    assert words(calls) == "\n".join(['Action: get\nAction Input: {"id": 1, "a": "ä"}'] * 2)
    assert tool_use.verify(words(calls), calls).reward == 1.0


def test_what_is_offered() -> None:
    config = load_config("demo", ['route.sources=["sibling","solution","gold"]'])
    asked = SelectedQuestions(["arithmetic"] * 2, [PLAIN, WORKED])
    assert solutions(asked) == {("arithmetic", "b"): "2+2=4"}
    assert offered(config, asked) == {
        ("solution", "arithmetic", "b"): "2+2=4",
        ("gold", "arithmetic", "a"): "4",
        ("gold", "arithmetic", "b"): "4",
    }
    expect_offered(config, of(PLAIN, WORKED))
    with pytest.raises(ConfigError, match="no training question of task arithmetic has a worked"):
        expect_offered(config, of(PLAIN))


def test_nothing_is_offered_that_no_source_names() -> None:
    config = load_config("demo")
    assert golds(config) == {}
    assert offered(config, SelectedQuestions(["arithmetic"], [WORKED])) == {}
    without_teacher = load_config("demo-grpo", ['route.sources=["gold"]'])
    assert golds(without_teacher) == {}


def test_a_task_without_golds_is_refused(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("task") / "mine.py"
    text = 'VERIFIER = "mine/1"\ndef load(path, split): ...\ndef verify(response, reference): ...\n'
    path.write_text(text)
    settings = [f"data.task={path}", 'route.sources=["gold"]']
    with pytest.raises(ConfigError, match=r"has gold, but task .*mine\.py offers none"):
        expect_offered(load_config("demo", settings), of(PLAIN))
    path.write_text(f"{text}def gold(reference): return reference.upper()\n")
    words = golds(load_config("demo", settings))
    assert [own('"a"') for own in words.values()] == ['"A"']


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("return json.loads(reference)", "returned 4, expected a text"),
        ("return None", "returned None, expected a text"),
        ("return ' '", "returned ' ', expected a text"),
        ("return chr(0xD800)", "expected a text"),
        ("return {}[reference]", "raised KeyError: "),
    ],
)
def test_gold_answers_that_are_not_worded_are_refused_at_the_start(
    line: str, found: str, tmp_path: Path
) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        'import json\nVERIFIER = "mine/1"\ndef load(path, split): ...\n'
        f"def verify(response, reference): ...\ndef gold(reference): {line}\n"
    )
    config = load_config("demo", [f"data.task={path}", 'route.sources=["gold"]'])
    own = TaskQuestions([Question("a", ASKED, "4")], [PLAIN])
    with pytest.raises(DataError, match=r"mine\.py: gold\('4'\) .*" + re.escape(found)):
        expect_offered(config, Questions(dict.fromkeys(config.data.sources, own)))


def test_gold_answers_are_not_worded_by_other_code_than_the_run_began_with(tmp_path: Path) -> None:
    config = golden_config(
        tmp_path, {"generate": {"questions": 2, "rollouts": 2}, "route": {"sources": ["gold"]}}
    )
    task = tmp_path / "parity.py"
    task.write_text(f"{TASK}\ndef gold(reference): return 'abc'\n")
    with Session.create(tmp_path / "run", config) as session:
        session.run_stage("generate", 0)
        session.run_stage("verify", 0)
    began = task.read_text()
    task.write_text(began.replace("'abc'", "'cab'"))
    with (
        Session.resume(tmp_path / "run") as session,
        pytest.raises(StoreError, match=r"code of task .* changed since the run began"),
    ):
        session.run_stage("route", 0)
    task.write_text(began)
    with Session.resume(tmp_path / "run") as session:
        session.run_stage("route", 0)
        assert set(session.run.read("routes", 0)["teacher_source"].to_pylist()) == {"gold"}


@pytest.mark.parametrize("task", sorted(SHIPPED))
def test_every_shipped_task_says_what_it_offers(task: str) -> None:
    assert (gold_wording(task) is None) == task.startswith("code")
