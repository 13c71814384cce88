"""Which rows of two equally typed columns differ: by data, bit for bit, NaN equal to NaN."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.tables.rollout_index import RolloutIndex

Mask = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.int64]
_BITS = {pa.float16(): np.uint16, pa.float32(): np.uint32, pa.float64(): np.uint64}


def differing_rows(left: pa.Array, right: pa.Array) -> Mask:
    """Return which rows of two arrays of the same length differ; of other types, all do.

    Floats are compared by their bits, so 0.0 and -0.0 differ; NaN equals NaN, null equals null.
    """
    if left.type != right.type:
        return np.ones(len(left), dtype=bool)
    if len(left) == 0:
        return np.zeros(0, dtype=bool)
    if not left.null_count and not right.null_count:
        return _values_differ(left, right)
    valid_left: Mask = np.asarray(pc.is_valid(left))
    valid_right: Mask = np.asarray(pc.is_valid(right))
    mask = valid_left ^ valid_right
    both = np.flatnonzero(valid_left & valid_right)
    mask[both] = _values_differ(left.take(pa.array(both)), right.take(pa.array(both)))
    return mask


def _values_differ(left: pa.Array, right: pa.Array) -> Mask:
    kind = left.type
    if pa.types.is_list(kind):
        return _lists_differ(left, right)
    if pa.types.is_fixed_size_list(kind):
        inner = differing_rows(left.flatten(), right.flatten())
        return np.asarray(inner.reshape(len(left), kind.list_size).any(axis=1))
    if pa.types.is_struct(kind):
        fields = [differing_rows(left.field(i), right.field(i)) for i in range(kind.num_fields)]
        return np.asarray(np.stack(fields).any(axis=0))
    if pa.types.is_floating(kind):
        return _floats_differ(left.to_numpy(), right.to_numpy())
    return np.asarray(pc.not_equal(left, right))


def _lists_differ(left: pa.Array, right: pa.Array) -> Mask:
    """Compare lengths, then the items of all lists of equal length at once."""
    lengths, others = (pc.list_value_length(side).to_numpy() for side in (left, right))
    mask: Mask = np.asarray(lengths != others)
    same = np.flatnonzero(~mask)
    if len(same) < len(mask):
        left, right = left.take(pa.array(same)), right.take(pa.array(same))
    owners = np.repeat(same, lengths[same])
    mask[owners[differing_rows(left.flatten(), right.flatten())]] = True
    return mask


def _floats_differ(left: Any, right: Any) -> Mask:
    bits = _BITS[pa.from_numpy_dtype(left.dtype)]
    mask: Mask = left.view(bits) != right.view(bits)
    if mask.any():
        mask &= ~(np.isnan(left) & np.isnan(right))
    return mask


def matched_rows(index_a: RolloutIndex, index_b: RolloutIndex) -> tuple[Rows, Rows]:
    """Return the rows of both tables that belong to the same rollout and position."""
    common = [name for name in index_a if name in index_b]
    counts = [min(index_a[name][1], index_b[name][1]) for name in common]
    steps = [np.arange(n, dtype=np.int64) for n in counts]

    def rows(index: RolloutIndex) -> Rows:
        parts = [index[name][0] + step for name, step in zip(common, steps, strict=True)]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)

    return rows(index_a), rows(index_b)
