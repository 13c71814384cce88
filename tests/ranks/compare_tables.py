"""Tables of two runs whose ranks differ: ids exactly, numbers within 1e-5."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.run.run import Run

_NAMES_OF_VERSIONS = "policy_version"
"""It digests every table before it, so it is another one from the first different bit on."""


def compare(ours: pa.Table, theirs: pa.Table) -> None:
    """Expect equal ids and routes, and numbers within 1e-5; of tails, their mass."""
    assert ours.column_names == theirs.column_names
    for name in ours.column_names:
        if name == _NAMES_OF_VERSIONS:
            continue
        a, b = _flat(ours[name]), _flat(theirs[name])
        if not pa.types.is_floating(a.type):
            assert a.equals(b), name
            continue
        x, y = (v.drop_null().to_numpy().astype(np.float64) for v in (a, b))
        if name.endswith("_tail"):
            x, y = np.exp(x), np.exp(y)
        assert x == pytest.approx(y, rel=1e-5, abs=1e-5, nan_ok=True), name


def compare_runs(ours: Path, theirs: Path, steps: int) -> None:
    """Compare all tables of some steps, and what an evaluation found."""
    a, b = Run.open(ours), Run.open(theirs)
    assert a.steps_done() == b.steps_done() == steps
    for step in range(steps):
        for name in a.tables_of(step):
            compare(a.read(name, step), b.read(name, step))


def _flat(column: pa.ChunkedArray) -> pa.Array:
    values = column.combine_chunks()
    while pa.types.is_list(values.type) or pa.types.is_fixed_size_list(values.type):
        values = values.flatten()
    return values
