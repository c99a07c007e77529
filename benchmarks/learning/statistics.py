"""Means with 95 % intervals of a few seeds, and differences paired by seed."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

LEVEL = 0.95


class Mean(NamedTuple):
    """A mean and the half width of its interval by Student's t distribution.

    Attributes:
      value: The mean.
      half: Half the width of the 95 % interval; NaN for a single value.
      count: Number of values.
    """

    value: float
    half: float
    count: int


def mean(values: Sequence[float]) -> Mean:
    """Return the mean of independent values with its interval."""
    count = len(values)
    if count < 2:
        return Mean(float(np.mean(values)), math.nan, count)
    error = np.std(values, ddof=1) / math.sqrt(count)
    quantile = stats.t.ppf((1 + LEVEL) / 2, count - 1)
    return Mean(float(np.mean(values)), float(quantile * error), count)


def differences(
    values: Mapping[int, float], others: Mapping[int, float]
) -> list[float]:
    """Return value minus other for each seed that has both.

    Args:
      values: Values by seed.
      others: Values to subtract by seed.
    """
    return [values[seed] - others[seed] for seed in sorted(values.keys() & others)]


def shares(
    values: Mapping[int, float], low: Mapping[int, float], high: Mapping[int, float]
) -> list[float]:
    """Return (value - low) / (high - low) for each seed that has all three.

    Args:
      values: Values by seed.
      low: Values that count as 0.
      high: Values that count as 1.
    """
    seeds = sorted(values.keys() & low.keys() & high.keys())
    return [
        (values[seed] - low[seed]) / (high[seed] - low[seed])
        for seed in seeds
        if high[seed] != low[seed]
    ]
