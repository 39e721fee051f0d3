"""Means over patients, and how sure they are."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, stdtrit

RESAMPLES = 10_000


@dataclass(frozen=True)
class Interval:
    """A mean over patients, and how far another draw of patients could move it."""

    mean: float
    low: float
    high: float
    count: int
    """Patients."""


def bootstrap_interval(
    values: Sequence[float], level: float = 0.95, seed: int = 0
) -> Interval | None:
    """Mean over patients with its percentile bootstrap interval: Efron and Tibshirani 1993, 13.3.

    Patients are drawn again with replacement; slices and voxels of one patient are no independent
    observations and never enter on their own. Percentiles of few patients lie too close: they are
    moved out to where, for normal values, the interval is Student's (Hesterberg 2015, section
    5.2). Of n patients it still never reaches beyond the extremes of their values; one patient
    has no interval, and its value is both ends.

    Args:
        values: one finite number a patient.
        level: inside (0, 1).
        seed: the same seed gives the same interval.

    Returns:
        None without values.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must be inside 0 to 1, got {level}")
    x = np.asarray(values, dtype=np.float64)
    if not np.isfinite(x).all():
        raise ValueError("values must be finite: leave out patients for whom one is undefined")
    if x.size == 0:
        return None
    drawn = np.random.default_rng(seed).integers(x.size, size=(RESAMPLES, x.size))
    means = x[drawn].mean(axis=1)
    tail = _tail(level, x.size)
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(x.mean()), float(low), float(high), int(x.size))


def _tail(level: float, n: int) -> float:
    """Share of bootstrap means below the interval.

    They scatter by sqrt((n - 1) / n) of the standard error, normal instead of Student's.
    """
    if n == 1:
        return 0.0
    reach = np.sqrt(n / (n - 1)) * stdtrit(n - 1, (1 + level) / 2)
    return float(ndtr(-reach))
