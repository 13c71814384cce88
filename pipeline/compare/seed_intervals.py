"""The interval of a mean over seeds, by Student's t."""

import math
from collections.abc import Sequence

from pipeline.run.metrics import Interval

T_QUANTILES = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
    2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
    2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
"""97.5% quantiles of Student's t for 1, 2, … degrees of freedom; beyond, the last one is used."""


def seeds_interval(values: Sequence[float], lowest: float = 0.0, highest: float = 1.0) -> Interval:
    """Return the mean of n >= 2 seeds' numbers and its interval, mean ± t s / sqrt(n).

    Args:
        lowest: no number can be below; the interval ends there.
        highest: no number can be above.
    """
    mean = math.fsum(values) / len(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    quantile = T_QUANTILES[min(len(values) - 1, len(T_QUANTILES)) - 1]
    half = quantile * math.sqrt(variance / len(values))
    return Interval(mean, max(lowest, mean - half), min(highest, mean + half))
