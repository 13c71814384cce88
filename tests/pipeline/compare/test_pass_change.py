"""pass@k after training beside pass@k before it, by hand; what counts, and what is said of it."""

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.compare.comparison import compare_runs
from pipeline.compare.pass_change import PassChange, pass_change
from pipeline.compare.report import pass_sentence, record_of
from pipeline.run.metrics import bootstrap
from pipeline.run.run import Run
from tests.builders.evaluations import answers
from tests.builders.tables import COST, config, origin, with_column

START = ("4555", "4555", "5555")


def make_run(folder: Path, evaluations: Mapping[int, pa.Table], seed: int = 0) -> Run:
    run = Run.create(folder, config(run={"seed": seed}), {})
    for done, table in evaluations.items():
        run.commit(origin("evaluations", step=done), table, {}, COST)
    return run


def changed(folder: Path, *evaluations: pa.Table) -> PassChange | None:
    """Return what became of pass@k from the first evaluation to the last."""
    return pass_change({"a": make_run(folder, dict(enumerate(evaluations)))})


def test_by_hand(tmp_path: Path) -> None:
    """Right of 4: 1, 1, 0 and then 4, 0, 0; pass@2 is 1/2, 1/2, 0 and then 1, 0, 0."""
    found = changed(tmp_path / "a", answers(*START), answers("4444", "5555", "5555"))
    assert found is not None
    means = {k: tuple(interval.mean for interval in shift) for k, shift in found.at.items()}
    assert means == {
        1: pytest.approx((1 / 6, 1 / 3, 1 / 6)),
        2: pytest.approx((1 / 3, 1 / 3, 0)),
        4: pytest.approx((2 / 3, 1 / 3, -1 / 3)),
    }
    assert [i.mean for i in found.distinct] == pytest.approx([5 / 3, 1, -2 / 3])
    assert found.at[4].change == bootstrap([0.0, -1.0, 0.0])  # paired by question
    assert found.distinct.change == bootstrap([-1.0, -1.0, 0.0])
    assert (found.steps, found.questions) == ({"a": 1}, 3)
    for shift in (*found.at.values(), found.distinct):
        assert all(low <= mean <= high for mean, low, high in shift)
    assert not found.flattens  # three questions tell nothing for sure
    assert pass_sentence("srpo", found) == (
        "srpo, after 1 steps: shows no clear change at k = 1 (-25.0 to +75.0) "
        "and shows no clear change at k = 4 (-100.0 to +0.0)"
    )


def test_flattened(tmp_path: Path) -> None:
    """Half of 40 questions are mastered, half are lost: +25 points at k = 1, -50 at k = 4."""
    start, last = answers(*["4555"] * 40), answers(*["4444", "5555"] * 20)
    found = changed(tmp_path / "a", start, last)
    assert found is not None and found.flattens
    text = pass_sentence("srpo", found)
    assert text.startswith("srpo, after 1 steps: gains 25.0 points at k = 1 (+")
    assert ") but loses 50.0 points at k = 4 (-" in text and text.endswith(": it flattens pass@k")
    back = changed(tmp_path / "b", last, start)
    assert back is not None and not back.flattens
    assert "loses 25.0 points at k = 1" in pass_sentence("srpo", back)


@pytest.mark.parametrize(("mastered", "at_1", "at_4"), [(38, 0.7, -0.05), (11, 0.025, -0.725)])
def test_both_changes_must_be_clear(
    mastered: int, at_1: float, at_4: float, tmp_path: Path
) -> None:
    """40 questions, 1 right answer of 4 at the start: some are mastered, all others lost."""
    last = answers(*["4444"] * mastered, *["5555"] * (40 - mastered))
    found = changed(tmp_path / "a", answers(*["4555"] * 40), last)
    assert found is not None and not found.flattens
    assert found.at[1].change.mean == pytest.approx(at_1)
    assert found.at[4].change.mean == pytest.approx(at_4)


def test_of_unequal_numbers_of_answers_k_goes_up_to_the_fewest(tmp_path: Path) -> None:
    """1 right of 4: pass@3 is 3/4, and 3 answers hold 1 + 3/4 different ones."""
    found = changed(tmp_path / "a", answers("4555", "4555"), answers("455", "555"))
    assert found is not None and list(found.at) == [1, 2, 3]
    assert found.at[3].start.mean == pytest.approx(3 / 4)
    assert found.at[3].last.mean == pytest.approx(1 / 2)
    assert [i.mean for i in found.distinct] == pytest.approx([1.75, 1.5, -0.25])


def test_questions_are_paired_by_name_and_others_left_out(tmp_path: Path) -> None:
    last = answers("4444", "5555")
    names = ["q1"] * 4 + ["other"] * 4
    found = changed(tmp_path / "a", answers(*START), with_column(last, "prompt_id", names))
    assert found is not None and found.questions == 1
    assert found.at[1].change.mean == pytest.approx(3 / 4)


def test_the_last_evaluation_counts_not_the_best(tmp_path: Path) -> None:
    found = changed(tmp_path / "a", answers("45"), answers("44"), answers("55"))
    assert found is not None and found.steps == {"a": 2}
    assert found.at[2].change.mean == -1


@pytest.mark.parametrize(
    "evaluations",
    [
        {},
        {0: answers("45")},
        {1: answers("45"), 2: answers("44")},
        {0: answers("45"), 1: with_column(answers("44"), "prompt_id", ["x", "x"])},
    ],
)
def test_without_both_evaluations_nothing_is_said(
    evaluations: dict[int, pa.Table], tmp_path: Path
) -> None:
    assert pass_change({"a": make_run(tmp_path / "a", evaluations)}) is None


def test_over_seeds_it_is_students_t(tmp_path: Path) -> None:
    """Changes of pass@1 by -1/2, 0 and 1/2: mean 0, deviation 1/2, 0 ± 4.303 / (2 sqrt(3))."""
    lasts = ("55", "45", "44")
    runs = [
        make_run(tmp_path / f"s{seed}", {0: answers("45"), 1: answers(last)}, seed)
        for seed, last in enumerate(lasts)
    ]
    found = compare_runs([*runs, make_run(tmp_path / "s3", {0: answers("45")}, 3)], {})
    [change] = found.passes
    assert change is not None and change.steps == {"s0": 1, "s1": 1, "s2": 1}
    assert change.at[1].change == pytest.approx((0, -1, 1))  # 1.24 is beyond what can be
    assert change.at[1].start == pytest.approx((0.5, 0.5, 0.5))
    [row] = record_of(found)["rows"]
    record = row["pass_at_k"]
    assert record["interval"] == "student_t_over_seeds" and record["flattens"] is False
    assert record["at"][1]["change"] == {"mean": 0, "low": -1, "high": 1}
    assert record["distinct_answers"]["start"]["mean"] == 2
