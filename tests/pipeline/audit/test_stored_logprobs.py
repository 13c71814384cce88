"""What float16 may do to the stored log-probabilities, and to what follows from them."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.audit.stored_logprobs import jsd_rounding_T, kept_TK, rounding
from pipeline.forward.distributions import buckets_NC, jsd_N, log_tail_N
from pipeline.tables.schemas import teacher_schema


def halved(values: torch.Tensor) -> torch.Tensor:
    return values.half().to(values.dtype)


def distributions(seed: int, spread: float, apart: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log-probabilities [8, 20] of student and teacher, of 40 tokens each, in float64."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(8, 40, generator=generator, dtype=torch.float64) * spread
    other = logits + torch.randn(8, 40, generator=generator, dtype=torch.float64) * apart
    student, teacher = logits.log_softmax(-1), other.log_softmax(-1)
    ids = student.topk(20).indices
    return student.gather(-1, ids), teacher.gather(-1, ids)


@given(st.integers(0, 10**6), st.floats(0.0, 12.0), st.floats(0.0, 12.0))
def test_rounding_moves_a_jsd_by_less_than_is_allowed(
    seed: int, spread: float, apart: float
) -> None:
    student, teacher = distributions(seed, spread, apart)
    tails = log_tail_N(student), log_tail_N(teacher)

    def jsd(s: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        return jsd_N(buckets_NC(s, tails[0]), buckets_NC(q, tails[1]), 0.5)

    rounded = halved(student), halved(teacher)
    moved = (jsd(*rounded) - jsd(student, teacher)).abs().numpy()
    allowed = jsd_rounding_T(*(part.numpy().astype(np.float32) for part in rounded))
    assert (moved <= allowed).all()
    assert (allowed <= 5e-3).all()


@given(st.floats(-65504.0, 0.0, width=32))
def test_a_log_probability_moves_by_11_bits_of_itself(value: float) -> None:
    rounded = np.float32(np.float16(value))
    assert abs(rounded - value) <= rounding(np.asarray([rounded]))[0]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_slices_of_either_dtype_are_read_as_float32(dtype: str) -> None:
    kind = teacher_schema(2, dtype).field("teacher_logprobs").type  # type: ignore[arg-type]
    values = np.array([-1, -2, -3, -4, -0.5, -np.inf], dtype=dtype)
    table = pa.table({"x": pa.FixedSizeListArray.from_arrays(pa.array(values), type=kind)})
    found = kept_TK(table.slice(1), "x")
    assert found.dtype == np.float32
    assert found.tolist() == [[-3, -4], [-0.5, -np.inf]]
