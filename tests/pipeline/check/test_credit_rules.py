"""What `srpo check` recomputes of rlsd (docs/method.md, section 13), against planted mistakes."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from flows.session.session import Session
from pipeline.check.check_run import check_run
from pipeline.check.rollout_tables import StepTables, routes_rules
from pipeline.check.token_tables import weights_rules
from pipeline.check.updates import updates_rules
from pipeline.run.run import Run
from pipeline.run.step_layout import STEP_STAGES, STEP_TABLES
from tests.builders.tables import with_column, with_value
from tests.golden.golden_run import golden_config
from tests.pipeline.check.damage import edit_json

STEP = 2
Tables = dict[str, pa.Table]
ROUTE = {"method": "rlsd", "teacher": "periodic", "teacher_period": 2}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run of three steps with snapshots 0 to 3; never write to it."""
    folder = tmp_path_factory.mktemp("sound")
    overrides = {"route": ROUTE, "generate": {"questions": 4, "rollouts": 4}}
    session = Session.create(folder / "run", golden_config(folder, overrides))
    session.run_stage("evaluate", 0)
    for step in range(STEP + 1):
        for name in STEP_STAGES:
            session.run_stage(name, step)
        session.finish_step(step)
        session.snapshot(step + 1)
    session.close()
    yield session.run.root


def broken(run: Path, change: Callable[[Tables], None]) -> set[str]:
    """Return the invariants that tables break after a change."""
    opened = Run.open(run)
    tables = {name: opened.read(name, STEP) for name in STEP_TABLES}
    change(tables)
    manifests = {name: opened.manifest(name, STEP) for name in STEP_TABLES}
    step = StepTables(STEP, tables, manifests, None)
    rules = (routes_rules, weights_rules, updates_rules)
    return {found.invariant for rule in rules for found in rule(step)}


def test_a_run_of_rlsd_has_no_findings(sound: Path) -> None:
    assert check_run(Run.open(sound)).findings == []
    assert broken(sound, lambda tables: None) == set()
    weights = Run.open(sound).read("weights", STEP)
    assert weights.num_rows > 50


def replaced(tables: Tables, table: str, name: str, values: Any) -> None:
    tables[table] = with_column(tables[table], name, np.asarray(values).tolist())


def wrong_sign(tables: Tables) -> None:
    raw = 1 / tables["weights"]["raw_weight"].to_numpy()
    credit = tables["routes"]["credit_lambda"][0].as_py()
    replaced(tables, "weights", "raw_weight", raw)
    replaced(tables, "weights", "weight", 1 - credit + credit * np.clip(raw, 0.8, 1.2))


def stale(tables: Tables) -> None:
    """Weights of other values than `teacher` holds."""
    for name in ("raw_weight", "weight"):
        replaced(tables, "weights", name, np.roll(tables["weights"][name].to_numpy(), 1))


def not_decayed(tables: Tables) -> None:
    replaced(tables, "routes", "credit_lambda", [0.5] * tables["routes"].num_rows)


def without_share(tables: Tables) -> None:
    tables["routes"] = tables["routes"].drop_columns(["credit_lambda"])


def unclipped(tables: Tables) -> None:
    raw = tables["weights"]["raw_weight"].to_numpy()
    credit = tables["routes"]["credit_lambda"][0].as_py()
    replaced(tables, "weights", "weight", 1 - credit + credit * raw)


def plain_loss(tables: Tables) -> None:
    """The loss that GRPO would have."""
    first = tables["weights"]["rollout_id"][0].as_py()
    row = tables["updates"]["rollout_id"].to_pylist().index(first)
    advantage = tables["routes"]["advantage"][row].as_py()
    update = tables["updates"].slice(row, 1).to_pylist()[0]
    loss = -advantage * update["mean_tis"] * update["tokens"]
    assert loss != pytest.approx(update["loss_sum"], rel=1e-4)
    tables["updates"] = with_value(tables["updates"], "loss_sum", row, loss)


FAULTS: dict[Callable[[Tables], None], str] = {
    wrong_sign: "raw_weight is exp(sign(A) log(q / s))",
    stale: "raw_weight is exp(sign(A) log(q / s))",
    not_decayed: "credit_lambda is 0.48, of step 2",
    without_share: "credit_lambda is there exactly with method rlsd, not rlsd",
    unclipped: "weight is the factor of the advantage",
    plain_loss: "loss_sum is -A times the sum of the factors' corrections",
}


@pytest.mark.parametrize("fault", [f for f in FAULTS if f is not without_share])
def test_a_planted_fault_is_named(sound: Path, fault: Callable[[Tables], None]) -> None:
    assert FAULTS[fault] in broken(sound, fault)


def test_a_share_that_is_missing_is_named(sound: Path) -> None:
    opened = Run.open(sound)
    tables = {name: opened.read(name, STEP) for name in STEP_TABLES}
    without_share(tables)
    manifests = {name: opened.manifest(name, STEP) for name in STEP_TABLES}
    found = routes_rules(StepTables(STEP, tables, manifests, None))
    assert FAULTS[without_share] in {one.invariant for one in found}


def test_a_snapshot_whose_teacher_was_not_renewed_is_named(sound: Path, tmp_path: Path) -> None:
    """After 3 steps with n = 2 the teacher is the policy after 2."""
    run = Path(shutil.copytree(sound, tmp_path / "run"))
    initial = Run.open(run).record["initial_policy_version"]
    state = run / "policy/000003/state.json"
    edit_json(state, lambda record: record.update(copied_version=initial))
    findings = check_run(Run.open(run)).findings
    after = Run.open(run).manifest("updates", 1).facts["next_policy_version"]
    assert f"copied_version {after}" in {finding.expected for finding in findings}
