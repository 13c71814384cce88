"""Verify: each response gets a reward; correct: reward >= threshold (docs/method.md, section 1)."""

from collections.abc import Mapping

import pyarrow as pa

from pipeline.config.sections import Config
from pipeline.stage.answer_columns import unfinished, verdict_columns
from pipeline.stage.contract import Handles, Output, Stage
from pipeline.tables.schemas import UNCLOSED_THINKING, VERDICTS


def run(tables: Mapping[str, pa.Table], config: Config, handles: Handles) -> Output:
    """Judge every rollout; one that can't be judged counts as wrong; `error` says why."""
    rollouts = tables["rollouts"]
    thinks = UNCLOSED_THINKING in rollouts.column_names
    columns = {
        "rollout_id": rollouts.column("rollout_id").to_pylist(),
        **verdict_columns(
            rollouts.column("task").to_pylist(),
            rollouts.column("response_text").to_pylist(),
            rollouts.column("reference").to_pylist(),
            unfinished(rollouts) if thinks else None,
            config.verify,
            handles,
        ),
    }
    errors = sum(error is not None for error in columns["error"])
    return Output({"verdicts": pa.table(columns, schema=VERDICTS)}, {"errors": errors})


STAGE = Stage(
    name="verify",
    version=1,
    sections=("verify",),
    reads=("rollouts",),
    writes=("verdicts",),
    uses=frozenset({"verifier"}),
    run=run,
)
