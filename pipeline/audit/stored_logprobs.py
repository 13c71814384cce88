"""The K log-probabilities per token of `teacher`, as stored: float32, float16 or not at all.

Half precision keeps 11 bits: a log-probability l is off by at most |l| 2^-11, which is the relative
error of the probability. So log-probabilities of likely tokens are near exact, and those of
unlikely ones weigh little.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.run.removal import removal
from pipeline.run.run import Run
from pipeline.tables.arrow_reading import one_array
from pipeline.tables.rollout_index import stored_index
from pipeline.tables.schemas import STUDENT_LOGPROBS

NOT_KEPT = "not kept (route.keep_student_logprobs = false)"

_HALF = np.float32(1.05 * 2**-11)
"""Relative rounding of float16, with room for measuring it on rounded values."""
_SMALLEST = np.float32(2**-24)
_LOWEST = np.float32(-65504)
"""The range of float16 ends there."""

_OF_LOSSES = ("tis", "loss", "share")
_OF_TABLE = {
    "weights": ("weight", "raw_weight", *_OF_LOSSES),
    "teacher": (
        "teacher_entropy", "survival", "jsd", "student_logprob", "teacher_logprob",
        "student_top", "teacher_top", *_OF_LOSSES,
    ),
}  # fmt: skip
"""Which fields of tokens need a table that may be pruned."""

Floats = npt.NDArray[np.float32]


def kept_TK(rows: pa.Table, name: str) -> npt.NDArray[Any]:
    """Return a column of K values per token as an array [T, K]; float16 becomes float32."""
    values: npt.NDArray[Any] = one_array(rows[name]).flatten().to_numpy()
    wide = values.astype(np.float32) if values.dtype == np.float16 else values
    return wide.reshape(rows.num_rows, rows.schema.field(name).type.list_size)


def keeps_student(rows: pa.Table) -> bool:
    """Tell whether a teacher table has the student's K log-probabilities."""
    return STUDENT_LOGPROBS in rows.column_names


def is_rounded(rows: pa.Table) -> bool:
    """Tell whether a teacher table holds its K log-probabilities in float16."""
    return bool(pa.types.is_float16(rows.schema.field("teacher_logprobs").type.value_type))


def rounding(logs: Floats) -> Floats:
    """Return by how much float16 may have moved each log-probability, nats."""
    return np.asarray(-np.maximum(logs, _LOWEST) * _HALF + _SMALLEST, dtype=np.float32)


def jsd_rounding_T(student_TK: Floats, teacher_TK: Floats) -> Floats:
    """Return by how much float16 rows may have moved a JSD at alpha = 0.5, nats.

    To first order p |log(p / m)| / 2 times the rounding of log p, over both distributions (m is
    their mean), and to second order p times its square; a tail that was not rounded adds nothing.
    """
    logs = np.maximum(np.stack([student_TK, teacher_TK]), _LOWEST)
    masses = np.exp(logs)
    mixture = np.log(np.maximum(masses.mean(axis=0), np.float32(1e-38)))
    moved = rounding(logs)
    parts = masses * moved * (np.abs(logs - mixture) / 2 + moved)
    found: Floats = parts.sum(axis=(0, 2), dtype=np.float32)
    return found


def pruned_fields(run: Run, step: int, rollout_id: str) -> dict[str, str]:
    """Say what a taught rollout lacks because tables of its step were removed on purpose."""
    found: dict[str, str] = {}
    for table, names in _OF_TABLE.items():
        record = removal(run.table_path(table, step))
        if record is not None and rollout_id in stored_index(run.manifest(table, step)):
            owner = run.owner(table, step).root
            found |= dict.fromkeys(names, f"table {table} {record.described(owner)}")
    return found
