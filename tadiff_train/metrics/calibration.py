"""Whether voxels said to be tumour with probability p are tumour in a share p of cases."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tadiff_train.metrics.images import Mask

Array = NDArray[np.float64]
Counts = NDArray[np.signedinteger]


@dataclass(frozen=True, eq=False)
class Reliability:
    """Voxels counted by their forecast probability: enough to merge, and for the Brier score."""

    edges: Array
    """(bins + 1) of equal width from 0 to 1; a bin holds its lower edge, the last one also 1."""
    count: Counts
    """Voxels of each bin."""
    mean_probability: Array
    """Of the voxels of each bin; NaN in an empty bin."""
    frequency: Array
    """Share of the voxels of each bin that are tumour; NaN in an empty bin."""
    variance: Array
    """Mean squared deviation of the probability from `mean_probability`; NaN in an empty bin."""
    covariance: Array
    """Of probability and truth within each bin, divided by `count`; NaN in an empty bin."""

    @property
    def ece(self) -> float:
        """Expected calibration error, 0 to 1: Naeini et al. 2015, of the probability of tumour.

        The mean over voxels of |frequency - mean_probability| of their bin. It does not see
        errors that cancel inside a bin, is above 0 by chance where voxels are few, and near 0
        where most of them are background that no forecast gets wrong.
        """
        return _mean(self, np.abs(self.frequency - self.mean_probability))


@dataclass(frozen=True)
class BrierScore:
    """score = reliability - resolution + uncertainty + within_bin, to rounding."""

    score: float
    """Mean squared difference of probability and truth; 0 is perfect, lower is better."""
    reliability: float
    """Mean squared distance of the curve from the diagonal; 0 is calibrated."""
    resolution: float
    """Variance of the frequency over bins; as large as `uncertainty` if bins separate."""
    uncertainty: float
    """Variance of the truth, which no forecast can change."""
    within_bin: float
    """Variance less twice the covariance with the truth inside bins: Stephenson et al. 2008."""


def reliability(
    probability: NDArray[np.floating], truth: Mask, mask: Mask | None = None, bins: int = 10
) -> Reliability:
    """Reliability curve of the probability of tumour, over the voxels of `mask`.

    Args:
        probability: in [0, 1], any shape. Edges are compared in its own precision.
        truth: whether each voxel is tumour, same shape.
        mask: voxels that count; None for all.
        bins: at least 1.
    """
    p, y = _checked(probability, truth, mask)
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    # i / bins, not linspace: a share of samples such as 3/5 must not fall below the edge 0.6.
    edges = np.arange(bins + 1) / bins
    at = np.searchsorted(edges[1:-1].astype(p.dtype), p, side="right")
    p = p.astype(np.float64)
    count = np.bincount(at, minlength=bins)
    mean = _divide(np.bincount(at, p, bins), count)
    frequency = _divide(np.bincount(at, y, bins), count)
    away = p - mean[at]
    variance = _divide(np.bincount(at, away * away, bins), count)
    covariance = _divide(np.bincount(at, away * (y - frequency[at]), bins), count)
    return Reliability(edges, count, mean, frequency, variance, covariance)


def merge(parts: Sequence[Reliability]) -> Reliability:
    """What `reliability` gives for the voxels of all parts together, to rounding.

    Moments of groups are combined as in Chan, Golub and LeVeque 1983. Every voxel counts the
    same, so patients with many voxels count more.
    """
    if not parts:
        raise ValueError("there must be something to merge, got no part")
    edges = parts[0].edges
    for part in parts:
        if not np.array_equal(part.edges, edges):
            raise ValueError(
                f"parts must have the same bins, got {len(edges) - 1} and {len(part.edges) - 1}"
            )
    count = np.sum([part.count for part in parts], axis=0)

    def pooled(values: Sequence[Array]) -> Array:
        weighted = [_weighted(part, x) for part, x in zip(parts, values, strict=True)]
        return _divide(np.sum(weighted, axis=0), count)

    mean = pooled([part.mean_probability for part in parts])
    frequency = pooled([part.frequency for part in parts])
    apart = [(part.mean_probability - mean, part.frequency - frequency) for part in parts]
    variance = pooled([r.variance + p * p for r, (p, _) in zip(parts, apart, strict=True)])
    covariance = pooled([r.covariance + p * y for r, (p, y) in zip(parts, apart, strict=True)])
    return Reliability(edges, count, mean, frequency, variance, covariance)


def brier(
    probability: NDArray[np.floating], truth: Mask, mask: Mask | None = None, bins: int = 10
) -> BrierScore:
    """Brier score of the probability of tumour and its parts; arguments as in `reliability`."""
    return brier_from_reliability(reliability(probability, truth, mask, bins))


def brier_from_reliability(curve: Reliability) -> BrierScore:
    """Brier score (Brier 1950) and its parts: Murphy 1973; Stephenson et al. 2008.

    Murphy's three terms add up only where all probabilities of a bin are equal; `within_bin` is
    what is missing otherwise. Score and uncertainty do not depend on the bins.
    """
    mean, frequency = curve.mean_probability, curve.frequency
    bias = _mean(curve, (mean - frequency) ** 2)
    inside = _mean(curve, curve.variance - 2 * curve.covariance)
    base = _mean(curve, frequency)
    return BrierScore(
        score=bias + inside + _mean(curve, frequency * (1 - frequency)),
        reliability=bias,
        resolution=_mean(curve, (frequency - base) ** 2),
        uncertainty=base * (1 - base),
        within_bin=inside,
    )


def _weighted(curve: Reliability, values: Array) -> Array:
    """Sum over the voxels of each bin; 0 for an empty one."""
    return np.where(curve.count > 0, curve.count * values, 0.0)


def _mean(curve: Reliability, values: Array) -> float:
    return float(_weighted(curve, values).sum() / curve.count.sum())


def _divide(total: NDArray[np.number], count: Counts) -> Array:
    """Means of bins; NaN where there is nothing to average."""
    return np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0)


def _checked(
    probability: NDArray[np.floating], truth: Mask, mask: Mask | None
) -> tuple[NDArray[np.floating], Mask]:
    """Probability and truth of the voxels that count, one-dimensional."""
    if not np.issubdtype(probability.dtype, np.floating):
        raise ValueError(f"probabilities must be floats in [0, 1], got {probability.dtype}")
    if truth.dtype != np.bool_:
        raise ValueError(f"the truth must be boolean, got {truth.dtype}")
    if mask is None:
        mask = np.ones(truth.shape, np.bool_)
    if not probability.shape == truth.shape == mask.shape:
        raise ValueError(
            f"shapes differ: {probability.shape}, {truth.shape} and the mask's {mask.shape}"
        )
    if mask.dtype != np.bool_ or not mask.any():
        raise ValueError(f"the mask must be boolean and not empty, got {mask.dtype}")
    p = probability[mask]
    # Written so that NaN fails it. Outside the mask there may be anything.
    if not (p.min() >= 0 and p.max() <= 1):
        raise ValueError(f"probabilities must lie in [0, 1], got {p.min()} to {p.max()}")
    return p, truth[mask]
