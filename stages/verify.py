"""Verify: each response gets a reward; correct: reward >= threshold (docs/method.md, section 1).

One that can't be judged has an error instead: it is neither right nor wrong, and `route` leaves it
out.
"""

from collections.abc import Mapping

import pyarrow as pa

from pipeline.config.sections import Config
from pipeline.errors import DataError
from pipeline.stage.answer_columns import unfinished, verdict_columns
from pipeline.stage.contract import Handles, Output, Stage
from pipeline.tables.schemas import UNCLOSED_THINKING, VERDICTS
from pipeline.text import printable

_SHOWN = 300
"""Characters of an error that are shown."""


def run(tables: Mapping[str, pa.Table], config: Config, handles: Handles) -> Output:
    """Judge every rollout; `error` says why one can't be judged.

    Raises:
        DataError: none could be judged, so that there is nothing to learn from.
    """
    rollouts = tables["rollouts"]
    thinks = UNCLOSED_THINKING in rollouts.column_names
    unclosed = unfinished(rollouts) if thinks else None
    columns = {
        "rollout_id": rollouts.column("rollout_id").to_pylist(),
        **verdict_columns(
            rollouts.column("task").to_pylist(),
            rollouts.column("response_text").to_pylist(),
            rollouts.column("reference").to_pylist(),
            unclosed,
            config.verify,
            handles,
        ),
    }
    errors = [error for error in columns["error"] if error is not None]
    # Nobody asks a verifier about an answer that was never given.
    unasked = sum(unclosed or ()) if config.verify.unfinished_thinking == "wrong" else 0
    if errors and len(errors) == rollouts.num_rows - unasked:
        raise DataError(
            f"step {handles.step}: the verifier could judge none of {len(errors)} rollouts; the "
            f"first error: {printable(errors[0], _SHOWN)}. The rollouts are saved: mend the task's "
            "verifier, or raise verify.timeout_seconds or verify.memory_mb, and go on in a fork: "
            f"srpo stage verify --run RUN --step {handles.step} --fork NEW, then srpo train "
            "--resume --run NEW"
        )
    return Output({"verdicts": pa.table(columns, schema=VERDICTS)}, {"errors": len(errors)})


STAGE = Stage(
    name="verify",
    version=2,
    sections=("verify",),
    reads=("rollouts",),
    writes=("verdicts",),
    uses=frozenset({"verifier"}),
    run=run,
)
