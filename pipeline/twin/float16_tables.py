"""Tables whose rows are in float16: the update learns from the teacher as they round it."""

from collections.abc import Sequence

import pyarrow as pa
import torch
from torch import Tensor

from pipeline.twin import formulas
from pipeline.twin.inputs import RolloutTwin, TeacherTwin


def is_half(table: pa.Table) -> bool:
    """Tell whether the log-probabilities of a teacher table are in float16."""
    return bool(pa.types.is_float16(table.schema.field("teacher_logprobs").type.value_type))


def read_rounded(rollouts: Sequence[RolloutTwin], table: pa.Table) -> None:
    """Take log q at the kept ids from a table in float16; of another, take nothing.

    Rows that can't be right are left alone: comparing the table names them.
    """
    if not is_half(table):
        return
    found: dict[str, list[tuple[list[int], list[float]]]] = {}
    columns = (table[name].to_pylist() for name in ("rollout_id", "topk_ids", "teacher_logprobs"))
    for name, ids, logps in zip(*columns, strict=True):
        found.setdefault(name, []).append((ids, logps))
    for row in rollouts:
        rows = found.get(row.rollout_id, [])
        if row.teacher is None or len(rows) != len(row.response_ids):
            continue
        kept = torch.tensor([ids for ids, _ in rows], dtype=torch.int64)
        inside = (kept >= 0) & (kept < row.teacher.teacher_logps.shape[-1])
        if kept.shape == row.teacher.topk_ids.shape and bool(inside.all()):
            row.teacher.rounded_ids = kept
            logps = [logps for _, logps in rows]
            row.teacher.rounded_logps = torch.tensor(logps, dtype=torch.float64)


def teacher_buckets(teacher: TeacherTwin) -> tuple[Tensor, Tensor]:
    """Return the kept ids [T, K] and the teacher's buckets [T, J] as the update reads them.

    The tail is never rounded.
    """
    if teacher.rounded_ids is None or teacher.rounded_logps is None:
        return teacher.topk_ids, formulas.buckets(teacher.teacher_logps, teacher.topk_ids)
    ids = teacher.rounded_ids
    rest = formulas.buckets(teacher.teacher_logps, ids)[:, ids.shape[-1] :]
    return ids, torch.cat([teacher.rounded_logps, rest], -1)
