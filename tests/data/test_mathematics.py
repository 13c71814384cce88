"""Mathematics: where the answer is found, when it is equal, which gold is refused."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.mathematics import last_answer, load, verify
from data.registry import judge, open_task
from pipeline.errors import DataError
from pipeline.verification.pool import VerifierPool


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"So \boxed{42}.", "42"),
        (r"\boxed{1} or \boxed{2}", "2"),
        (r"\boxed{\frac{1}{\sqrt{2}}}", r"\frac{1}{\sqrt{2}}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{1\right.}", r"\left\{1\right."),
        (r"\boxed {7}", "7"),
        (r"\boxed{\boxed{7}}", r"\boxed{7}"),
        ("<answer> 7 </answer>", "7"),
        (r"\boxed{1} <answer>2</answer>", "2"),
        (r"<answer>2</answer> \boxed{1}", "1"),
        (r"<answer>\boxed{3}</answer>", r"\boxed{3}"),
        ("<answer>1 <answer>2</answer>", "2"),
        (r"\boxed{1} and \boxed{2", "1"),
        (r"}} \boxed{5}", "5"),
        (r"{ \boxed{5}", "5"),
        ("42", None),
        (r"\boxed{42", None),
        ("<answer>42", None),
        ("", None),
    ],
)
def test_the_last_answer_is_found(response: str, answer: str | None) -> None:
    assert last_answer(response) == answer


@given(st.text(alphabet=r"\{}boxed <answer>/1", max_size=60))
def test_any_text_can_be_searched(text: str) -> None:
    assert last_answer(f"{text} <answer>9</answer>") == "9" or "<answer>" in text


@pytest.mark.parametrize(
    ("said", "meant", "equal"),
    [
        (r"\frac{1}{2}", "0.5", True),
        ("1/2", r"\frac12", True),
        ("1,000", "1000", True),
        ("2^{10}", "1024", True),
        ("2^{10}", "2", False),  # what math-verify reads without a box
        (r"2\sqrt{3}", r"\sqrt{12}", True),
        ("x^2 + 2x + 1", "(x+1)^2", True),
        (r"\{2, 1\}", r"\{1, 2\}", True),
        ("(1, 2)", "(2, 1)", False),
        ("$7$", "7", True),
        ("41", "42", False),
    ],
)
@pytest.mark.parametrize("form", [r"Thus \boxed{%s}.", "<answer>%s</answer>"])
def test_equality(form: str, said: str, meant: str, equal: bool) -> None:
    verdict = verify(form % said, json.dumps(meant))
    assert (verdict.reward, verdict.format_ok, verdict.prediction) == (float(equal), True, said)
    assert (verdict.feedback is None) == equal


@pytest.mark.parametrize("response", ["42", r"\boxed{}", r"\boxed{???}", r"\boxed{\frac{}"])
def test_no_readable_answer_is_wrong(response: str) -> None:
    verdict = verify(response, '"42"')
    assert verdict.reward == 0.0 and not verdict.format_ok and verdict.feedback


def write(folder: Path, *answers: object) -> None:
    """Write a dataset with these gold answers."""
    rows = [{"prompt": "p", "answer": answer} for answer in answers]
    (folder / "test.json").write_text("\n".join(json.dumps(row) for row in rows))


def test_gold_answers_may_be_latex_text_or_numbers(tmp_path: Path) -> None:
    write(tmp_path, r"\frac{1}{2}", "72", 72, 0.5)
    questions = load(str(tmp_path), "test")
    assert [json.loads(q.reference) for q in questions] == [r"\frac{1}{2}", "72", "72", "0.5"]
    for question in questions:
        response = rf"\boxed{{{json.loads(question.reference)}}}"
        assert verify(response, question.reference).reward == 1.0


@pytest.mark.parametrize("answer", ["", "???", r"\frac{", None, True, ["1"]])
def test_a_gold_answer_that_cannot_be_parsed_is_refused(tmp_path: Path, answer: object) -> None:
    write(tmp_path, "1", answer)
    with pytest.raises(DataError, match=r"row 2: the gold answer is .* math-verify can parse"):
        load(str(tmp_path), "test")


def test_an_endless_answer_is_bounded_by_the_pool() -> None:
    answers = [r"\boxed{9^{9^{9^9}}}", r"\boxed{\frac{84}{2}}"]
    with VerifierPool(judge, "mathematics", 1, 2.0, 1024, open_task) as pool:
        endless, right = pool.verify([(answer, '"42"') for answer in answers])
    assert endless.error == "time limit of 2 s exceeded" and endless.reward == 0.0
    assert right.reward == 1.0 and right.error is None
