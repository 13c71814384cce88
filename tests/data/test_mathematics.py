"""Mathematics: where the answer is found, when it is equal, which gold is refused."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.math_answers.finding import last_answer
from data.mathematics import load, verify
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
        (r"\fbox{42}", "42"),
        (r"\fbox{1} \boxed{2}", "2"),
        (r"\boxed{1} \fbox{2}", "2"),
        (r"\boxed 42", "42"),
        (r"So \boxed 42.", "42."),
        (r"\fbox 42 is the answer", "42"),
        (r"$\boxed 42$", "42"),
        (r"$x = \boxed \frac{1}{2}$ as $y$ says", r"\frac{1}{2}"),
        (r"\boxed -5", "-5"),
        (r"\boxed42", "42"),
        (r"\boxed\frac{1}{2}", r"\frac{1}{2}"),
        (r"\fbox{$42$}", "$42$"),
        (r"\boxed 1 000 000", "1 000 000"),
        (r"\boxed x = 5 because of it", "x = 5"),
        (r"\boxed 10 \text{ cm} of it", r"10 \text{ cm}"),
        (r"\(\boxed 10 apples\)", "10 apples"),
        (r"\boxed{1} then \boxed 2", "2"),
        (r"\boxed 1 then \boxed{2}", "2"),
        (r"<answer>\boxed 3</answer>", r"\boxed 3"),
        (r"\boxed{\boxed 3}", r"\boxed 3"),
        (r"\boxedeq{4}", None),
        ("\\boxed", None),
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


def write(folder: Path, *answers: str) -> None:
    """Write a dataset with gold answers, each as it stands in JSON."""
    rows = [f'{{"prompt": "p", "answer": {answer}}}' for answer in answers]
    (folder / "test.json").write_text("\n".join(rows))


@pytest.mark.parametrize(
    ("written", "gold", "right", "wrong"),
    [
        (r'"\\frac{1}{2}"', r"\frac{1}{2}", "0.5", "0.6"),
        ('"72"', "72", "72", "73"),
        ("72", "72", "72.0", "7.2"),
        ("0.5", "0.5", "1/2", "5"),
        ("0.00001", "0.00001", "10^{-5}", "e-5"),
        ("1e-5", "1e-5", "0.00001", "1"),
        ("1.0", "1.0", "1", "10"),
        ("1.50", "1.50", r"\frac{3}{2}", "150"),
        ("-0", "0", "0", "1"),
        ("6.02E23", "6.02E23", r"6.02 \times 10^{23}", r"6.02 \times 10^{22}"),
        ("1e400", "1e400", "10^{400}", "10^{401}"),
        ("12345678901234567890123", "12345678901234567890123", "1" + "2345678901234567890123", "1"),
        ("0.1234567890123", "0.1234567890123", "0.1234567890123", "0.1234567890124"),
    ],
)
def test_gold_answers_keep_their_text(
    tmp_path: Path, written: str, gold: str, right: str, wrong: str
) -> None:
    write(tmp_path, written)
    (question,) = load(str(tmp_path), "test")
    assert json.loads(question.reference) == gold
    for answer, reward in ((gold, 1.0), (right, 1.0), (wrong, 0.0)):
        assert verify(rf"\boxed{{{answer}}}", question.reference).reward == reward


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ('""', "it is empty"),
        ('"???"', r"the character '\?'"),
        (r'"\\frac{"', "a brace is not closed"),
        ("null", "expected a number, or LaTeX or plain text"),
        ("true", "expected a number, or LaTeX or plain text"),
        ('["1"]', "expected a number, or LaTeX or plain text"),
        ('"1.000.000"', "can be groups or decimals: write 1000000"),
        ('"3,14"', r"is two numbers or a decimal: write 3, 14 or 3\.14"),
        ('"1/2x"', "after the slash may be a product: use brackets"),
        (r'"\\textbf{(C)} 12"', "is not expected there"),
        ('"1^5"', r"1\^6 would be right as well"),
        ('"10^{10^{10}}"', "too large or too small"),
        ('"1/0"', "it has no value"),
        (f'"{"1+" * 300}1"', "longer than 500 characters"),
    ],
)
def test_a_gold_answer_that_cannot_be_used_is_refused(
    tmp_path: Path, answer: str, reason: str
) -> None:
    write(tmp_path, "1", answer)
    with pytest.raises(DataError, match=rf"row 2: the gold answer is .*{reason}") as caught:
        load(str(tmp_path), "test")
    assert "\n" not in str(caught.value)


def test_the_pool_judges_right_endless_and_long_answers() -> None:
    answers = [r"\boxed{\frac{84}{2}}", r"\boxed{9^{9^{9^9}}}", "\\boxed{" + "(" * 100_000]
    with VerifierPool(judge, "mathematics", 1, 5.0, 1024, open_task) as pool:
        verdicts = pool.verify([(answer, '"42"') for answer in answers])
    assert [verdict.reward for verdict in verdicts] == [1.0, 0.0, 0.0]
    assert [verdict.error for verdict in verdicts] == [None, None, None]
