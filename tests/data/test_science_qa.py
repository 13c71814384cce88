"""Multiple choice: which answers are right, which keep the format, which gold is refused."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.science_qa import LETTERS, load, verify
from pipeline.errors import DataError
from tests.paths import DATASETS

SCIKNOWEVAL = DATASETS / "sciknoweval"


def stated(letter: str) -> str:
    """A response in the demanded form."""
    return f"<reasoning>\nBecause.\n</reasoning>\n<answer>\n{letter}\n</answer>"


@pytest.mark.parametrize(
    ("response", "reward", "format_ok", "prediction"),
    [
        (stated("B"), 1.0, True, "B"),
        (f"\n{stated('B')}\n ", 1.0, True, "B"),
        (stated("A"), 0.0, True, "A"),
        # The published verifier is strict, so these are wrong.
        (stated("B."), 0.0, False, "B."),
        (stated("B: 2249.700"), 0.0, False, "B: 2249.700"),
        (stated("b"), 0.0, False, "b"),
        (stated(""), 0.0, False, ""),
        (stated("BB"), 0.0, False, "BB"),
        # No complete answer block is 0, also where the published verifier sees a letter.
        ("B", 0.0, False, None),
        ("", 0.0, False, None),
        ("<reasoning>x</reasoning><answer>B", 0.0, False, None),
        ("</answer>B<answer>", 0.0, False, None),
        # The last complete one decides.
        ("<answer>A</answer> no: <answer> B </answer>", 1.0, False, "B"),
        ("<answer>B</answer> no: <answer>A</answer>", 0.0, False, "A"),
        ("<answer>B</answer> or <answer>", 1.0, False, "B"),
        ("<answer>A <answer>B</answer>", 1.0, False, "B"),
        ("<answer>B</answer> A</answer>", 1.0, False, "B"),
        # Right, but not in the demanded form.
        ("<answer>B</answer>", 1.0, False, "B"),
        ("<reasoning> </reasoning><answer>B</answer>", 1.0, False, "B"),
        (f"Well. {stated('B')}", 1.0, False, "B"),
        (f"{stated('B')} I hope.", 1.0, False, "B"),
        ("<reasoning>x</reasoning>so<answer>B</answer>", 1.0, False, "B"),
        ("<answer>B</answer><reasoning>x</reasoning>", 1.0, False, "B"),
        (f"<reasoning>a</reasoning>{stated('B')}", 1.0, False, "B"),
    ],
)
def test_verdicts(response: str, reward: float, format_ok: bool, prediction: str | None) -> None:
    verdict = verify(response, '"B"')
    assert (verdict.reward, verdict.format_ok, verdict.prediction) == (
        reward,
        format_ok,
        prediction,
    )
    assert (verdict.feedback is None) == (reward == 1.0)
    assert verdict.error is None


@given(st.text(), st.sampled_from(LETTERS), st.sampled_from(LETTERS))
def test_what_comes_before_the_last_answer_never_matters(text: str, said: str, gold: str) -> None:
    verdict = verify(f"{text}<answer>{said}</answer>", json.dumps(gold))
    assert verdict.reward == float(said == gold)
    # The gold letter would leak through the teacher prompt.
    assert verdict.reward or verdict.feedback == f"Option {said} is not the right one."


@pytest.mark.parametrize("answer", ["E", "a", "A.", "", " A", None, 1, ["A"]])
def test_a_gold_answer_that_is_no_letter_is_refused(tmp_path: Path, answer: object) -> None:
    rows = [{"prompt": "p", "answer": "A"}, {"prompt": "p", "answer": answer}]
    path = tmp_path / "test.json"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    with pytest.raises(
        DataError, match=r"row 2: the gold answer is .* expected one of the letters"
    ):
        load(str(tmp_path), "test")


@pytest.mark.skipif(not SCIKNOWEVAL.is_dir(), reason=f"the benchmark is not at {SCIKNOWEVAL}")
@pytest.mark.parametrize(
    ("name", "split", "count"),
    [
        ("chemistry", "train", 1890),
        ("chemistry", "test", 210),
        ("materials", "train", 841),
        ("materials", "test", 94),
    ],
)
def test_every_gold_answer_of_the_benchmark_is_right(name: str, split: str, count: int) -> None:
    questions = load(str(SCIKNOWEVAL / name), split)  # type: ignore[arg-type]
    assert len(questions) == count
    assert all([m.role for m in q.messages] == ["system", "user"] for q in questions)
    for question in questions:
        verdict = verify(stated(json.loads(question.reference)), question.reference)
        assert verdict.reward == 1.0 and verdict.format_ok
