"""The hierarchical bootstrap: intervals over seeds and questions at once.

A replicate draws S of S seeds and Q of Q questions, both with replacement; what it drew of the
questions holds for all seeds and evaluations, and for all runs of a difference. All draws are
derived from their numbers alone, so that equal rows have equal intervals, now and later.

Axes: R replicates, S seeds, E evaluations, Q questions.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.run.metrics import Interval
from pipeline.seeds import derive_seed

Floats = npt.NDArray[np.float64]

REPLICATES = 10_000
LEVEL = 0.95


class Draws(NamedTuple):
    """How often each replicate drew each seed, [R, S], and each question, [R, Q]."""

    seeds: Floats
    questions: Floats


@lru_cache(maxsize=8)
def draws_of(seeds: int, questions: int, replicates: int = REPLICATES) -> Draws:
    """Return the draws for so many seeds and questions, the same whenever asked; read-only."""
    return Draws(
        _times_drawn("study/seeds", seeds, replicates),
        _times_drawn("study/questions", questions, replicates),
    )


def _times_drawn(purpose: str, size: int, replicates: int) -> Floats:
    generator = np.random.Generator(np.random.Philox(derive_seed(0, purpose, size)))
    picks = generator.integers(0, size, size=(replicates, size))
    places = picks + size * np.arange(replicates)[:, None]
    times = np.bincount(places.ravel(), minlength=replicates * size)
    found = times.reshape(replicates, size).astype(np.float64)
    found.flags.writeable = False
    return found


def resampled_curves(values_SEQ: Floats, draws: Draws) -> Floats:
    """Return the means over the questions that each replicate drew, [R, S, E]."""
    seeds, evaluations, questions = values_SEQ.shape
    sums = draws.questions @ values_SEQ.reshape(seeds * evaluations, questions).T
    sums /= questions
    return sums.reshape(-1, seeds, evaluations)


def mean_over_drawn_seeds(values_RS: Floats, draws: Draws) -> Floats:
    """Return the mean over the seeds that each replicate drew, [R]."""
    found: Floats = (values_RS * draws.seeds).sum(axis=1) / values_RS.shape[1]
    return found


def percentile_interval(mean: float, replicates_R: Floats) -> Interval:
    """Return a number with the interval that holds the middle 95% of its replicates."""
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(replicates_R, [tail, 1 - tail])
    return Interval(mean, float(low), float(high))
