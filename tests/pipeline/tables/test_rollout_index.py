"""First row and number of rows of each rollout, by tables written out by hand."""

import pyarrow as pa
import pytest

from pipeline.errors import StoreError
from pipeline.tables.rollout_index import RolloutSpans, token_index


def _table(*chunks: list[str]) -> pa.Table:
    return pa.table({"rollout_id": pa.chunked_array(chunks, type=pa.string())})


def test_a_span_may_cross_chunks() -> None:
    table = _table(["a", "b"], ["b", "c"])
    assert token_index(table) == {"a": (0, 1), "b": (1, 2), "c": (3, 1)}
    spans = RolloutSpans(table)
    assert [spans[row] for row in range(4)] == ["a", "b", "b", "c"]
    assert spans.positions().tolist() == [0, 0, 1, 0]


@pytest.mark.parametrize("chunks", [(), ([],)])
def test_no_rows_have_no_spans(chunks: tuple[list[str], ...]) -> None:
    table = _table(*chunks)
    assert token_index(table) == {}
    assert RolloutSpans(table).positions().tolist() == []


def test_a_rollout_in_two_spans_has_no_index() -> None:
    table = _table(["a", "b", "a"])
    assert RolloutSpans(table).index() == {"a": (2, 1), "b": (1, 1)}
    with pytest.raises(StoreError, match="do not stand together"):
        token_index(table)
