"""Means over patients, and how sure they are."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

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
    observations and never enter on their own. With few patients the interval is too narrow: of
    n patients, it never reaches beyond the extremes of their values.

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
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(x.mean()), float(low), float(high), int(x.size))
