"""A stage's version guards its output: another output needs another version.

`versions.json` holds what each stage at its version made of fixed input, numbers to 6 digits. If a
change is meant to change an output, raise the stage's version and write the file anew:

    .venv/bin/python -m tests.golden.test_versions
"""

import json
import math
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from flows.session.session import Session
from flows.session.stage_runner import STAGES
from pipeline.stage.contract import Handles
from pipeline.stage.earlier_steps import CommittedStep
from tests.golden.golden_run import golden_config, run_step

RECORDED = Path(__file__).with_name("versions.json")
OF_A_MACHINE = {"policy_version", "teacher_version", "task"}
TOLERANCE = {"rel": 2e-4, "abs": 2e-6}
ROUNDING = {"max_logprob_gap": 1e-4, "mean_logprob_gap": 1e-4, "engine_kl": 1e-9}
"""Columns that hold nothing but rounding here, each machine's own, and how small they must be."""


def outputs(folder: Path) -> dict[str, Any]:
    """Return a digest of what each stage makes in step 0 of the golden run, by stage and version.

    Of step 0, since Adam's first updates make other machines' rounding into other policies. The
    bank is that of a next step that asks the same questions.
    """
    session = Session.create(folder / "run", golden_config(folder, {}))
    try:
        for name in ("generate", "verify", "evaluate"):
            session.run_stage(name, 0)
        tables = dict(run_step(session, 0).tables)
        tables["evaluations"] = session.run.read("evaluations", 0)
        after = Handles(seed=0, step=1, earlier=[CommittedStep(session.run, 0)])
        tables |= STAGES["bank"].run(tables, session.config, after).tables
    finally:
        session.close()
    return {
        f"{stage.name}@{stage.version}": {name: summary(tables[name]) for name in stage.writes}
        for stage in STAGES.values()
    }


def summary(table: pa.Table) -> dict[str, Any]:
    """Return each column as a sum of numbers, or a count of texts, that notices any change."""
    return {
        name: reduced(table[name].to_pylist())
        for name in table.column_names
        if name not in OF_A_MACHINE
    }


def reduced(values: list[Any]) -> Any:
    """Weigh each number by its place, so that a change of order counts too."""
    flat = list(flattened(values))
    numbers = [float(v) for v in flat if isinstance(v, int | float) and math.isfinite(v)]
    texts = [v for v in flat if isinstance(v, str)]
    place = sum(v * (1 + math.sin(i)) for i, v in enumerate(numbers))
    letters = sum(sum(map(ord, t)) * (1 + i % 97) for i, t in enumerate(texts))
    return [len(flat), float(f"{place:.6g}"), letters]


def flattened(value: Any) -> Any:
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, list):
        yield value
        return
    for item in value:
        yield from flattened(item)


def test_equal_versions_have_equal_outputs(tmp_path: Path) -> None:
    recorded, found = json.loads(RECORDED.read_text()), outputs(tmp_path)
    assert set(found) == set(recorded), "a stage's version changed: write versions.json anew"
    for stage, tables in found.items():
        for table, columns in tables.items():
            for column, (count, place, letters) in columns.items():
                expected = recorded[stage][table][column]
                where = f"{table}.{column} of {stage} changed: raise the stage's version"
                assert [count, letters] == [expected[0], expected[2]], where
                if column in ROUNDING:
                    assert abs(place) < ROUNDING[column], where
                else:
                    assert place == pytest.approx(expected[1], **TOLERANCE), where


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        RECORDED.write_text(json.dumps(outputs(Path(folder)), indent=1, sort_keys=True) + "\n")
