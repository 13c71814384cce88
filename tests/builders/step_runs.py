"""The made-up step in a run folder, and a run whose teacher table has some size."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.config.sections import UpdateSection
from pipeline.run.run import Run
from pipeline.tables.schemas import teacher_schema
from tests.builders.tables import COST, IDS, STEP, config, origin, tables

LARGE_ROLLOUTS, TOKENS, KEPT = 100, 200, 100
LARGE_IDS = [f"{STEP:06d}-0000-{row:02d}" for row in range(LARGE_ROLLOUTS)]


def make_run(folder: Path, found: dict[str, pa.Table], update: dict[str, Any] | None = None) -> Run:
    """Write the tables of one step; the update has the default settings but for some."""
    run = Run.create(folder, config(), {})
    settings = {"update": UpdateSection(**(update or {})).model_dump()}
    for name, data in found.items():
        made = origin(name, settings=settings if name == "updates" else {})
        run.commit(made, data, {}, COST)
    return run


def large_run(folder: Path) -> Run:
    """Write a run in which every rollout is taught, 200 tokens with K = 100: 25 MB of teacher."""
    found = tables()
    responses = [list(range(TOKENS))] * LARGE_ROLLOUTS
    changes: dict[str, Any] = {
        "rollout_id": LARGE_IDS, "group": [0] * LARGE_ROLLOUTS,
        "sample": list(range(LARGE_ROLLOUTS)), "response_ids": responses,
        "sampled_logprobs": [[-0.5] * TOKENS] * LARGE_ROLLOUTS,
        "route": ["sdpo"] * LARGE_ROLLOUTS, "teacher_available": [True] * LARGE_ROLLOUTS,
        "teacher_rollout_id": [None] * LARGE_ROLLOUTS, "tokens": [TOKENS] * LARGE_ROLLOUTS,
        "old_logprobs": [[]] * LARGE_ROLLOUTS, "student_entropy": [[]] * LARGE_ROLLOUTS,
        "computed": [True] * LARGE_ROLLOUTS,
    }  # fmt: skip
    large = {
        name: _repeated(found[name], changes)
        for name in ("rollouts", "verdicts", "routes", "scores", "updates")
    }
    return make_run(folder, {**large, "teacher": _teacher(), "weights": _weights(found)})


def _repeated(table: pa.Table, changes: dict[str, Any]) -> pa.Table:
    """Return the row of the taught rollout, once for each rollout, with its own values."""
    row = table.slice(IDS.index(IDS[1]), 1).to_pylist()[0]
    columns = {name: changes.get(name, [value] * LARGE_ROLLOUTS) for name, value in row.items()}
    return pa.table(columns, schema=table.schema)


def _weights(found: dict[str, pa.Table]) -> pa.Table:
    rows = LARGE_ROLLOUTS * TOKENS
    reals = {name: np.ones(rows, np.float32) for name in ("entropy", "raw_weight", "weight")}
    return pa.table({**_keys(), **reals}, schema=found["weights"].schema)


def _keys() -> dict[str, Any]:
    positions = np.tile(np.arange(TOKENS, dtype=np.int32), LARGE_ROLLOUTS)
    return {"rollout_id": np.repeat(LARGE_IDS, TOKENS), "position": positions}


def _teacher() -> pa.Table:
    schema, rows = teacher_schema(KEPT), LARGE_ROLLOUTS * TOKENS
    values = np.random.default_rng(0).normal(size=(rows, KEPT)).astype(np.float32)
    logprobs = values - np.log(np.exp(values).sum(axis=1, keepdims=True) + 1)
    ids = np.tile(np.arange(KEPT, dtype=np.int32), (rows, 1))
    lists = {"topk_ids": ids, "teacher_logprobs": logprobs, "student_logprobs": logprobs[::-1]}
    columns: dict[str, Any] = _keys()
    for field in schema:
        if field.name in lists:
            flat = pa.array(np.ascontiguousarray(lists[field.name]).ravel())
            columns[field.name] = pa.FixedSizeListArray.from_arrays(flat, type=field.type)
        elif field.name not in columns:
            sign = 1 if field.name in ("entropy", "jsd") else -1
            columns[field.name] = np.full(rows, 0.5 * sign, dtype=np.float32)
    return pa.table([columns[field.name] for field in schema], schema=schema)
