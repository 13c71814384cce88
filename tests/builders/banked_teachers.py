"""The made-up step, with a rollout that an answer of an earlier step teaches."""

from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.run.run import Run
from pipeline.tables.schemas import TEACHER_STEP, schema_with
from tests.builders.step_runs import make_run
from tests.builders.tables import COST, IDS, STEP, answer_columns, origin, tables

EARLIER = 1
TEACHER = f"{EARLIER:06d}-0000-00"
TAUGHT = IDS[3]
"""A wrong answer in a group without a right one."""


def banked_run(folder: Path) -> Run:
    """Write the step and its teacher's; the earlier answer is to the same question."""
    found = tables()
    row = IDS.index(TAUGHT)
    rows = found["routes"].to_pylist()
    for known in rows:
        known[TEACHER_STEP] = None if known["teacher_rollout_id"] is None else STEP
    rows[row] |= {
        "teacher_available": True,
        "teacher_source": "bank",
        "teacher_rollout_id": TEACHER,
        TEACHER_STEP: EARLIER,
    }
    schema = schema_with("routes", rows[0])
    run = make_run(folder, {**found, "routes": pa.Table.from_pylist(rows, schema=schema)})
    columns: dict[str, Any] = answer_columns(
        EARLIER, [(0, 0)], [[40, 41]], prompt_id=["q1"], response_text=["once right"]
    )
    columns["sampled_logprobs"] = [[-0.5, -0.5]]
    earlier = pa.table(columns, schema=schema_with("rollouts", columns))
    run.commit(origin("rollouts", step=EARLIER), earlier, {}, COST)
    return run
