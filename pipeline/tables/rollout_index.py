"""Where the rows of each rollout are in a table: first row and number of rows by rollout_id.

A token table has one row per token, and the rows of a rollout stand together; its manifest stores
the index. Every other table has one row per rollout.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import StoreError
from pipeline.tables.manifest import Manifest

RolloutIndex = Mapping[str, tuple[int, int]]
"""First row and number of rows by rollout_id."""


class RolloutSpans:
    """The spans of equal rollout_id in a token table, in row order.

    Indexing by a row returns its rollout_id.

    Attributes:
        names: rollout_id of each span.
        ends: the row after the last one of each span.
        counts: rows in each span.
    """

    def __init__(self, table: pa.Table) -> None:
        column = table["rollout_id"]
        self.names: list[str] = []
        self.ends: npt.NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        if len(column):
            encoded = pc.run_end_encode(column.combine_chunks())
            if isinstance(encoded, pa.ChunkedArray):
                encoded = encoded.combine_chunks()
            self.names = encoded.values.to_pylist()
            self.ends = np.asarray(encoded.run_ends.to_numpy(), dtype=np.int64)
        self.counts = np.diff(self.ends, prepend=0)

    def __getitem__(self, row: int, /) -> str:
        return self.names[int(np.searchsorted(self.ends, row, side="right"))]

    def positions(self) -> npt.NDArray[np.int64]:
        """Return 0, 1, 2, … within each span, [rows]."""
        starts = self.ends - self.counts
        return np.arange(self.counts.sum()) - np.repeat(starts, self.counts)

    def column_of(self, rollouts: pa.Table, name: str) -> npt.NDArray[Any]:
        """Return a column of a table of one row per rollout for each token's row, [rows]."""
        columns = (rollouts[column].to_pylist() for column in ("rollout_id", name))
        value_of = dict(zip(*columns, strict=True))
        return np.repeat([value_of[i] for i in self.names], self.counts)

    def index(self) -> dict[str, tuple[int, int]]:
        """Return first row and number of rows by rollout_id; of a repeated one, its last span."""
        starts = (self.ends - self.counts).tolist()
        return dict(zip(self.names, zip(starts, self.counts.tolist(), strict=True), strict=True))


def token_index(table: pa.Table) -> dict[str, tuple[int, int]]:
    """Return the index of a token table, from its rows.

    Raises:
        StoreError: a rollout has more than one span.
    """
    spans = RolloutSpans(table)
    index = spans.index()
    if len(index) != len(spans.names):
        raise StoreError("the rows of a rollout do not stand together in a token table")
    return index


def stored_index(manifest: Manifest) -> RolloutIndex:
    """Return the index that a token table's manifest stores; that of another table is empty."""
    return manifest.index or {}


def table_index(table: pa.Table, manifest: Manifest) -> RolloutIndex:
    """Return the index of any table: as stored, or one row per rollout."""
    if manifest.index is not None:
        return manifest.index
    return {name: (row, 1) for row, name in enumerate(table["rollout_id"].to_pylist())}
