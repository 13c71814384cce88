"""Runs with one change planted: it is found, named and counted; equal data are equal."""

import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.compare.column_diff import differing_rows
from pipeline.compare.run_diff import RunDiff, diff_runs
from pipeline.run.run import Run
from tests.builders.tables import COST, IDS, STEP, config, origin, tables, with_column, with_value

Tables = dict[str, pa.Table]
STAGE_OF = {"rollouts": "generate", "routes": "route", "weights": "weigh"}


def make_run(folder: Path, found: Tables, steps: tuple[int, ...] = (STEP,), **sections: Any) -> Run:
    run = Run.create(folder, config(**sections), {})
    for step in steps:
        for name, data in found.items():
            made = origin(name, step=step, stage=STAGE_OF.get(name, "other"), settings=sections)
            run.commit(made, data, {}, COST)
    return run


@pytest.fixture
def a(tmp_path: Path) -> Run:
    return make_run(tmp_path / "a", tables())


def against(a: Run, found: Tables) -> RunDiff:
    return diff_runs(a, make_run(a.root.parent / "b", found))


def test_a_run_equals_itself(a: Run) -> None:
    found = diff_runs(a, a)
    assert found.equal and found.first is None
    assert found.sentence == "no difference: all 8 tables that both runs have hold equal data"


def test_equal_data_in_unequal_files_are_equal(a: Run) -> None:
    """Settings stand in the metadata of the files: their SHA-256s differ."""
    b = make_run(a.root.parent / "b", tables(), weigh={"beta": 2.0})
    assert a.manifest("weights", STEP).sha256 != b.manifest("weights", STEP).sha256
    found = diff_runs(a, b)
    assert found.equal
    assert found.settings["weigh.beta"] == (1.0, 2.0)


def test_the_first_difference_in_the_order_of_flow(a: Run) -> None:
    spoiled = tables()
    spoiled["updates"] = with_value(spoiled["updates"], "loss_sum", 0, 2.0)
    spoiled["evaluations"] = with_value(spoiled["evaluations"], "prediction", 0, "7")
    spoiled["weights"] = with_column(spoiled["weights"], "weight", [1.1, 0.9])
    found = against(a, spoiled)
    assert [d.table for d in found.tables] == ["weights", "updates", "evaluations"]
    assert found.sentence == (
        f"first difference: step {STEP}, table weights (stage weigh): weight in 2 of 2 rows"
    )
    (change,) = found.weights
    assert (change.tokens, change.rollout_id, change.position) == (2, IDS[1], 0)
    assert change.largest == pytest.approx(0.1)
    counts = {s.table: (s.differing_steps, s.differing_rows) for s in found.summaries}
    assert counts["updates"] == (1, 1) and counts["rollouts"] == (0, 0)


def test_an_earlier_step_comes_before_an_earlier_stage(a: Run) -> None:
    spoiled = tables()
    spoiled["rollouts"] = with_value(spoiled["rollouts"], "seed", 0, 9)
    one = {"weights": tables()["weights"]}
    other = {"weights": with_column(one["weights"], "weight", [1.1, 0.9])}
    left, right = make_run(a.root / "l", one, (1,)), make_run(a.root / "r", other, (1,))
    left.commit(origin("rollouts", step=2), tables()["rollouts"], {}, COST)
    right.commit(origin("rollouts", step=2), spoiled["rollouts"], {}, COST)
    found = diff_runs(left, right)
    assert [(d.step, d.table) for d in found.tables] == [(1, "weights"), (2, "rollouts")]


def test_changed_verdicts_and_routes_are_listed(a: Run) -> None:
    spoiled = tables()
    for column, value in (("prediction", "4"), ("reward", 1.0), ("correct", True)):
        spoiled["verdicts"] = with_value(spoiled["verdicts"], column, 2, value)
    spoiled["routes"] = with_value(spoiled["routes"], "route", 3, "sdpo")
    spoiled["routes"] = with_value(spoiled["routes"], "teacher_rollout_id", 3, IDS[2])
    spoiled["routes"] = with_value(spoiled["routes"], "reason", 0, "another text, no decision")
    found = against(a, spoiled)
    (verdict,) = found.verdicts
    assert verdict.rollout_id == IDS[2]
    assert verdict.changes == {
        "reward": (0.0, 1.0),
        "correct": (False, True),
        "prediction": ("5", "4"),
    }
    (route,) = found.routes
    assert route.changes == {"route": ("grpo", "sdpo"), "teacher_rollout_id": (None, IDS[2])}
    assert found.tables[1].columns == ("teacher_rollout_id", "route", "reason")
    assert found.tables[1].differing == 2


def test_token_rows_are_matched_by_rollout(a: Run) -> None:
    """A run that taught one rollout more: its rows are new, the others are compared."""
    spoiled = tables()
    weights = spoiled["weights"]
    more = with_column(weights, "rollout_id", [IDS[0]] * 2)
    spoiled["weights"] = pa.concat_tables([more, with_value(weights, "raw_weight", 1, 0.5)])
    found = against(a, spoiled)
    (only,) = found.tables
    assert only.columns == ("rollout_id", "raw_weight")
    assert (only.differing, only.rows) == (3, 4)
    assert found.weights == ()


def test_a_step_that_only_one_run_has_is_named(a: Run) -> None:
    (a.root.parent / "b").mkdir()
    b = make_run(a.root.parent / "b", {"weights": tables()["weights"]}, (STEP, STEP + 1))
    found = diff_runs(a, b)
    only = {s.table: (s.only_a, s.only_b) for s in found.summaries}
    assert only["weights"] == ((), (STEP + 1,)) and only["routes"] == ((STEP,), ())
    assert not found.equal and found.first is None
    assert found.sentence.endswith("equal data; one run has more")


def test_nothing_in_common_is_said(tmp_path: Path) -> None:
    empty = make_run(tmp_path / "a", {})
    assert diff_runs(empty, empty).sentence.startswith("nothing to compare")


def test_another_k_differs_everywhere(a: Run) -> None:
    found = tables()
    wide = {n: found["teacher"][n] for n in found["teacher"].column_names}
    for name in ("topk_ids", "teacher_logprobs", "student_logprobs"):
        kind = pa.list_(pa.field("item", wide[name].type.value_type, nullable=False), 1)
        wide[name] = pa.array([row[:1] for row in wide[name].to_pylist()], type=kind)
    schema = pa.schema(found["teacher"].schema.field(n).with_type(c.type) for n, c in wide.items())
    found["teacher"] = pa.table(wide, schema=schema)
    (only,) = against(a, found).tables
    assert only.columns == ("topk_ids", "teacher_logprobs", "student_logprobs")
    assert only.differing == 2


@pytest.mark.parametrize(
    ("kind", "left", "right", "expected"),
    [
        (pa.float32(), [1.0, math.nan, 0.0, None], [1.0, math.nan, -0.0, 1.0], [0, 0, 1, 1]),
        (pa.float64(), [1.0, math.inf], [1.0 + 2**-52, math.inf], [1, 0]),
        (pa.string(), ["a", None, None], ["b", None, ""], [1, 0, 1]),
        (pa.bool_(), [True, False], [True, True], [0, 1]),
        (pa.list_(pa.int32()), [[1, 2], [], [3], [4]], [[1, 2], [], [3, 3], [5]], [0, 0, 1, 1]),
        (pa.list_(pa.float32(), 2), [[1, 2], [3, 4]], [[1, 2], [3, 5]], [0, 1]),
        (
            pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())])),
            [[{"role": "u", "content": "x"}], [{"role": "u", "content": "x"}], []],
            [[{"role": "u", "content": "x"}], [{"role": "u", "content": "y"}], []],
            [0, 1, 0],
        ),
        (pa.int64(), [], [], []),
    ],
)
def test_rows_that_differ(kind: pa.DataType, left: Any, right: Any, expected: list[int]) -> None:
    found = differing_rows(pa.array(left, type=kind), pa.array(right, type=kind))
    assert found.tolist() == [bool(e) for e in expected]


def test_slices_of_arrays_are_compared_from_their_own_start() -> None:
    kind = pa.list_(pa.int32())
    one, two = pa.array([[9], [1, 2], [3]], type=kind), pa.array([[1, 2], [4]], type=kind)
    assert differing_rows(one.slice(1), two).tolist() == [False, True]
