"""Runs that store the K log-probabilities in float16, or the student's not at all."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from flows.reruns.deep_check import check_step
from flows.reruns.replay import Plan, replay
from flows.session.session import Session
from pipeline.audit.rollout import rollout_record, topk
from pipeline.audit.stored_logprobs import NOT_KEPT
from pipeline.check.check_run import check_run
from pipeline.compare.run_diff import diff_runs
from pipeline.run.run import Run
from pipeline.run.step_layout import STEP_STAGES
from pipeline.tables.schemas import STUDENT_LOGPROBS, schema_of, teacher_schema
from pipeline.viewer import rollout_tokens
from pipeline.viewer.page import runs_by_name
from pipeline.viewer.rollout_page import ROLLOUT, context, kept_at
from tests.golden.golden_run import golden_config
from tests.pipeline.check.damage import set_value

HALF = {"kept_dtype": "float16"}
LEAN = {"keep_student_logprobs": False}
ROUNDING = "log-probabilities rounded to float16 (route.kept_dtype)"


def trained(folder: Path, route: dict[str, Any], update: dict[str, Any] | None = None) -> Run:
    """Make a run of two steps."""
    folder.mkdir(exist_ok=True)
    sizes = {"questions": 4, "rollouts": 4, "temperature": 0.8, "max_response_length": 24}
    sections = {"generate": sizes, "route": route, "update": update or {}, "run": {"steps": 2}}
    session = Session.create(folder / "run", golden_config(folder, sections))
    session.run_stage("evaluate", 0)
    for step in range(2):
        for name in STEP_STAGES:
            session.run_stage(name, step)
        session.finish_step(step)
    session.close()
    return session.run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kept")


@pytest.fixture(scope="module")
def whole(folder: Path) -> Run:
    return trained(folder / "whole", {})


@pytest.fixture(scope="module")
def half(folder: Path) -> Run:
    return trained(folder / "half", HALF)


@pytest.fixture(scope="module")
def lean(folder: Path) -> Run:
    return trained(folder / "lean", LEAN)


@pytest.fixture(scope="module", params=["half", "lean", "both"])
def variant(
    request: pytest.FixtureRequest, folder: Path, half: Run, lean: Run
) -> Iterator[tuple[Run, bool, bool]]:
    """Return a run, whether its rows are rounded, and whether it has the student's."""
    if request.param == "both":
        yield trained(folder / "both", HALF | LEAN), True, False
    else:
        is_half = request.param == "half"
        yield (half if is_half else lean), is_half, is_half


def taught(run: Run, step: int = 1) -> str:
    return str(run.read("teacher", step)["rollout_id"][0])


def values(table: pa.Table, name: str) -> np.ndarray:
    return np.asarray(table[name].combine_chunks().flatten().to_numpy())


def test_the_table_is_as_set(variant: tuple[Run, bool, bool], whole: Run) -> None:
    """The first step starts from the same policy: but for rounding its rows are the same."""
    run, rounded, student = variant
    table, plain = run.read("teacher", 0), whole.read("teacher", 0)
    wanted = teacher_schema(16, "float16" if rounded else "float32", student)
    assert table.schema.equals(wanted) and schema_of("teacher", table.schema).equals(wanted)
    for name in set(table.column_names) - {"teacher_logprobs", STUDENT_LOGPROBS}:
        assert table[name].equals(plain[name]), name
    for name in {"teacher_logprobs", STUDENT_LOGPROBS} & set(table.column_names):
        exact = values(plain, name)
        assert (values(table, name) == (exact.astype(np.float16) if rounded else exact)).all()


def test_check_finds_nothing_wrong(variant: tuple[Run, bool, bool]) -> None:
    run, _, student = variant
    report = check_run(Run.open(run.root))
    assert report.findings == []
    assert sum(NOT_KEPT in note for note in report.notes) == (0 if student else 1)


def test_the_twin_agrees(variant: tuple[Run, bool, bool]) -> None:
    report = check_step(variant[0].root, 1)
    assert report.lines == [] and 0 < report.worst < 1 and report.numbers > 500


@pytest.mark.slow
@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl"])
@pytest.mark.parametrize("kept", [16, 500])
def test_the_twin_agrees_on_other_divergences(tmp_path: Path, divergence: str, kept: int) -> None:
    run = trained(tmp_path, {**HALF, "top_k": kept, "mini_batch": 2}, {"divergence": divergence})
    report = check_step(run.root, 1)
    assert report.lines == [] and 0 < report.worst < 1
    assert check_run(run).findings == []


def test_a_rollout_whole(variant: tuple[Run, bool, bool]) -> None:
    run, rounded, student = variant
    record = rollout_record(run, taught(run))
    assert record.loss_note == (ROUNDING if rounded else "")
    assert record.update is not None and record.loss_difference is not None
    scale = 2e-3 if rounded else 2e-5
    assert abs(record.loss_difference) <= scale * abs(record.update["loss_sum"]) + 2e-5
    assert (record.tokens[0].student_top is None) != student
    assert record.not_recorded.get("student_top") == (None if student else NOT_KEPT)
    row = topk(run, record.rollout_id, 0)
    assert (row[STUDENT_LOGPROBS] is None) != student and len(row["teacher_logprobs"]) == 16
    assert record.tokens[0].teacher_top is not None
    assert record.tokens[0].teacher_top[0].logprob == max(row["teacher_logprobs"])


def test_its_page(variant: tuple[Run, bool, bool], monkeypatch: pytest.MonkeyPatch) -> None:
    run, _, student = variant
    runs, rollout = runs_by_name([run]), taught(run)
    for most in (20_000, 10):
        monkeypatch.setattr(rollout_tokens, "MOST_PAIRS", most)
        data = context(runs, "run", rollout)["data"]
        entries = [entry for top in data["tops"] for entry in top]
        assert all((entry[1] is not None) == student for entry in entries)
        assert all(entry[2] is not None for entry in entries) and entries
        assert data["missing"].get("student_top", NOT_KEPT if student else "") == NOT_KEPT
    assert all(
        (entry[1] is not None) == student for entry in kept_at(runs, "run", rollout, "0")["top"]
    )
    assert rollout in ROLLOUT.html(runs, "run", rollout)


def test_a_divergence_that_needs_the_students_says_so(tmp_path: Path) -> None:
    run = trained(tmp_path, LEAN, {"divergence": "reverse_kl"})
    record = rollout_record(run, taught(run))
    assert record.loss_difference is None and record.loss_note == ""
    assert record.tokens[0].loss is None and record.tokens[0].share is None
    assert NOT_KEPT in record.not_recorded["loss"] and record.batch_tokens
    assert record.tokens[0].weight is not None
    assert context(runs_by_name([run]), "run", record.rollout_id)["data"]["values"]["loss"] is None


Change = Callable[[Any], Any]


@pytest.mark.parametrize(
    ("column", "change", "invariant"),
    [
        ("teacher_logprobs", lambda old: [old[0] * 1.01, *old[1:]], "mass and tail sum to 1"),
        (STUDENT_LOGPROBS, lambda old: old[::-1], "order of the student's"),
        ("jsd", lambda old: old + 0.01, "jsd follows from"),
        ("student_logprob", lambda old: old * 1.01, "student_logprob is that of"),
        ("teacher_tail", lambda old: old * 1.01, "mass and tail sum to 1"),
    ],
)
def test_more_than_rounding_is_found(
    half: Run, tmp_path: Path, column: str, change: Change, invariant: str
) -> None:
    run = Run.open(shutil.copytree(half.root, tmp_path / "run"))
    set_value(run.table_path("teacher", 1), column, 3, change)
    texts = [f.expected for f in check_run(Run.open(run.root)).findings]
    assert any(invariant in text for text in texts), texts


def test_a_fork_with_other_rows(whole: Run, tmp_path: Path) -> None:
    """Step 1 again with rounded rows and without the student's: mixed with the parent's step 0."""
    fork = tmp_path / "fork"
    settings = ["route.kept_dtype=float16", "route.keep_student_logprobs=false"]
    replay(whole, fork, Plan.of(whole, "route", "update", "1:2"), settings).close()
    run = Run.open(fork)
    assert check_run(run).findings == []
    assert STUDENT_LOGPROBS in run.read("teacher", 0).column_names
    assert STUDENT_LOGPROBS not in run.read("teacher", 1).column_names
    first = diff_runs(whole, run).first
    assert first is not None and (first.step, first.table) == (1, "teacher")
    assert first.columns == ("teacher_logprobs", STUDENT_LOGPROBS)
    routes = [c for c in diff_runs(whole, run).settings if c.startswith("route.")]
    assert routes == ["route.kept_dtype", "route.keep_student_logprobs"]
