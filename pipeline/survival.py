"""Prefix survival: a teacher is heard only where it, too, would have come (docs/method.md, 15)."""

from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Floats = npt.NDArray[np.float64]

OFF_PATH = 0.1
"""Below this S a token is off the teacher's path."""


def log_survival_N(
    teacher_logprob_N: Floats, student_logprob_N: Floats, position_N: npt.NDArray[np.int32]
) -> Floats:
    """Return log S_t = sum over u < t of min(0, log q(y_u) - log s(y_u)) of each token, nats.

    S is in [0, 1], 1 at a rollout's first token, and never rises; exp of the result may underflow
    to 0 in a long response, the result itself is finite.

    Args:
        teacher_logprob_N, student_logprob_N: log q(y), log s(y) of the sampled tokens, over the
            full vocabulary, rollout after rollout.
        position_N: index in its response, 0 where a rollout begins.
    """
    log_r_N = np.minimum(teacher_logprob_N - student_logprob_N, 0.0)
    log_survival = np.zeros_like(log_r_N)
    starts = np.flatnonzero(position_N == 0).tolist()
    for start, end in pairwise([*starts, len(position_N)]):
        log_survival[start + 1 : end] = np.cumsum(log_r_N[start : end - 1])
    return log_survival


def log_survival_of(teacher: pa.Table) -> Floats:
    """Return log S of each row of `teacher`."""
    teacher_logprob_N, student_logprob_N = (
        teacher[name].to_numpy().astype(np.float64)
        for name in ("teacher_logprob", "student_logprob")
    )
    return log_survival_N(teacher_logprob_N, student_logprob_N, teacher["position"].to_numpy())


def off_path_share(weight_N: Floats, jsd_N: Floats, log_survival: Floats) -> float | None:
    """Return the share of the weighted divergence, sum of w jsd, that stands where S < 0.1.

    None where nothing diverges.
    """
    weighted_N = weight_N.astype(np.float64) * jsd_N
    total = float(weighted_N.sum())
    return float(weighted_N[np.exp(log_survival) < OFF_PATH].sum()) / total if total > 0 else None
