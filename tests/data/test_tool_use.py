"""Tool calls: how responses are read, when calls are equal, which gold is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.tool_use import canonical, load, read_calls, verify
from pipeline.errors import DataError
from tests.paths import DATASETS

TOOLALPACA = DATASETS / "toolalpaca"


def gold(*calls: tuple[str, dict[str, Any]]) -> str:
    """A reference."""
    return json.dumps([{"Action": name, "Action_Input": value} for name, value in calls])


def stated(*calls: tuple[str, dict[str, Any]]) -> str:
    """A response in the demanded form."""
    return "\n".join(
        f"Thought: next\nAction: {name}\nAction Input: {json.dumps(value)}" for name, value in calls
    )


def reward(response: str, reference: str) -> float:
    """The reward of a response that must be judged without an error."""
    verdict = verify(response, reference)
    assert verdict.error is None
    return verdict.reward


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
names = st.from_regex(r"\w{1,12}", fullmatch=True)
arguments = st.dictionaries(st.text(), values, max_size=4)


@given(st.lists(st.tuples(names, arguments), min_size=1, max_size=4), st.data())
def test_stated_calls_come_back_equal(
    calls: list[tuple[str, dict[str, Any]]], data: st.DataObject
) -> None:
    style: dict[str, Any] = {
        "ensure_ascii": data.draw(st.booleans()),
        "indent": data.draw(st.sampled_from([None, 2])),
    }
    shuffled = data.draw(st.permutations(calls))
    response = "\n".join(f"Action: {n}\nAction Input: {json.dumps(v, **style)}" for n, v in calls)
    read, readable = read_calls(response, frozenset())
    assert readable
    assert [(call.name, call.arguments) for call in read] == [(n, canonical(v)) for n, v in calls]
    assert reward(response, gold(*shuffled)) == 1.0


@given(st.text())
def test_any_text_gets_a_verdict(text: str) -> None:
    for prefix in ("", "Action: f\nAction Input: ", 'Action: f\nAction Input: {"a": '):
        assert verify(prefix + text, gold(("g", {}))).reward == 0.0


@pytest.mark.parametrize(
    ("said", "meant", "equal"),
    [
        ('{"a": 1.0, "b": 2}', {"b": 2, "a": 1}, True),
        ('{"a": 1e2}', {"a": 100}, True),
        ('{"a": "1"}', {"a": 1}, False),
        ('{"a": true}', {"a": 1}, False),
        ('{"a": null}', {}, False),
        ('{"a": [1, 2]}', {"a": [2, 1]}, False),
        ('{"a": "x "}', {"a": "x"}, False),
        ('{"a": "\\u00fc"}', {"a": "ü"}, True),
        ('{"a": {"b": {"c": 1}}}', {"a": {"b": {"c": 1}}}, True),  # cut by the published pattern
        ('{"a": {"b": {"c": 1}}}', {"a": {"b": {"c": 2}}}, False),
        ('{"a": "}{ \\"q\\" \\\\"}', {"a": '}{ "q" \\'}, True),
        ('{"a": "Action: g\\nAction Input: {}"}', {"a": "Action: g\nAction Input: {}"}, True),
        ('{"a": 1} and so on }', {"a": 1}, True),
        ('\n\n  {"a":\n1}', {"a": 1}, True),
    ],
)
def test_equality_of_arguments(said: str, meant: dict[str, Any], equal: bool) -> None:
    verdict = verify(f"Action: f\nAction Input: {said}", gold(("f", meant)))
    assert verdict.reward == float(equal) and verdict.format_ok


@pytest.mark.parametrize(
    "response",
    [
        "",
        "I would call f.",
        "Action: f",  # right in the published verifier, as are the next ones
        "Action: f\nAction Input: {broken",
        "Action: f\nAction Input:",
        "Action: f\nAction Input: []",
        "Action: f\nAction Input: ```json\n{}\n```",
        "Action: f\nAction Input: {}\nAction Input: {}",
        "Action: f\nAction Input: {}\nAction:",
        "Action:\nAction Input: {}",
        "Action Input: {}\nAction: f",
        'Action: f\nAction Input: {"a": NaN}',
        'Action: f\nAction Input: {"a": 1e999}',
        'Action: f\nAction Input: {"a": ' + "[" * 100_000,
        'Action: f\nAction Input: {"a": ' + "[" * 900 + "]" * 900 + "}",
        'Action: f\nAction Input: {"a": ' + "9" * 10_000 + "}",
    ],
)
def test_what_cannot_be_read_as_pairs_is_wrong(response: str) -> None:
    verdict = verify(response, gold(("f", {})))
    assert verdict.reward == 0.0
    assert not verdict.format_ok or "[[[" in response  # 900 deep is readable on some Pythons
    assert verdict.feedback is not None and '"Action": "f"' in verdict.feedback


def test_calls_are_a_multiset_and_keep_their_own_arguments() -> None:
    one, two, nine = ("f", {"x": 1}), ("f", {"x": 2}), ("f", {"x": 9})
    assert reward(stated(two, one), gold(one, two)) == 1.0
    assert reward(stated(nine, two), gold(one, two)) == 0.0  # equal once merged, as published
    assert reward(stated(one), gold(one, one)) == 0.0
    assert reward(stated(one, one), gold(one)) == 0.0
    assert reward(stated(("f", {"x": 1}), ("g", {})), gold(("f", {}), ("g", {"x": 1}))) == 0.0


@pytest.mark.parametrize(
    ("line", "name", "right"),
    [
        ("f ", "f", True),
        ("f()", "f", True),
        ("f (the first)", "f", True),
        ("ff", "f", False),
        ("F", "f", False),
        ("`f`", "f", False),
        ("[Optional]f", "[Optional]f", True),
        ("f", "[Optional]f", False),
        ("get weather", "get weather", True),
        ("get-weather", "get", True),
        ("get-weather", "get-weather", True),
    ],
)
def test_names(line: str, name: str, right: bool) -> None:
    assert reward(f"Action: {line}\nAction Input: {{}}", gold((name, {}))) == float(right)


def test_a_pair_may_stand_on_one_line() -> None:
    response = 'Thought: x Action: f Action Input: {"a": 1} Action: g\r\nAction Input: {}'
    assert reward(response, gold(("f", {"a": 1}), ("g", {}))) == 1.0


def test_feedback_and_prediction_name_the_calls() -> None:
    verdict = verify(stated(("g", {"a": "ü"})), gold(("f", {"b": 1})))
    assert verdict.prediction == '[{"Action": "g", "Action_Input": {"a": "ü"}}]'
    expected = 'Expected: [{"Action": "f", "Action_Input": {"b": 1}}]'
    assert verdict.feedback == f"These are not the right calls. {expected}"
    assert verify(stated(("f", {"b": 1})), gold(("f", {"b": 1}))).feedback is None


def write(folder: Path, answer: object) -> None:
    """Write a dataset whose second row has this gold answer."""
    first = '[{"Action": "f", "Action_Input": "{\\"b\\": 2.0, \\"a\\": {}}"}]'
    rows = [{"prompt": "p", "answer": text} for text in (first, answer)]
    (folder / "test.json").write_text("\n".join(json.dumps(row) for row in rows))


def test_references_are_canonical(tmp_path: Path) -> None:
    write(tmp_path, [{"Action": " g ", "Action_Input": {"a": "ü"}}])
    references = [question.reference for question in load(str(tmp_path), "test")]
    assert references == [
        '[{"Action":"f","Action_Input":{"a":{},"b":2}}]',
        '[{"Action":"g","Action_Input":{"a":"\\u00fc"}}]',
    ]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (None, "a JSON list"),
        ("[{", "a JSON list"),
        ("[]", "a JSON list of at least one call"),
        ("{}", "a JSON list"),
        ("[1]", "an Action"),
        ('[{"Action_Input": "{}"}]', "an Action"),
        ('[{"Action": " ", "Action_Input": "{}"}]', "an Action"),
        ('[{"Action": "f\\ng", "Action_Input": "{}"}]', "an Action"),
        ('[{"Action": "f"}]', "an Action_Input, a JSON object"),
        ('[{"Action": "f", "Action_Input": ""}]', "an Action_Input, a JSON object"),
        ('[{"Action": "f", "Action_Input": "[1]"}]', "an Action_Input, a JSON object"),
        ('[{"Action": "f", "Action_Input": "{\\"a\\": NaN}"}]', "an Action_Input, a JSON object"),
        ('[{"Action": "f", "Action_Input": {"a": NaN}}]', "an Action_Input, a JSON object"),
    ],
)
def test_gold_calls_that_cannot_be_read_are_refused(
    tmp_path: Path, answer: object, expected: str
) -> None:
    write(tmp_path, answer)
    with pytest.raises(DataError, match=f"row 2: the gold answer is .*, expected {expected}"):
        load(str(tmp_path), "test")


@pytest.mark.skipif(not TOOLALPACA.is_dir(), reason=f"the benchmark is not at {TOOLALPACA}")
def test_every_gold_answer_of_the_benchmark_is_right() -> None:
    questions = load(str(TOOLALPACA), "test")
    assert len(questions) == 68
    assert [len(load(str(TOOLALPACA / "test.json"), s)) for s in ("train", "test")] == [61, 7]
    for question in questions:
        assert [m.role for m in question.messages] == ["user"]
        calls = [(c["Action"], c["Action_Input"]) for c in json.loads(question.reference)]
        verdict = verify(stated(*calls), question.reference)
        assert verdict.reward == 1.0 and verdict.format_ok
