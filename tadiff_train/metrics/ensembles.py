"""Whether what came looks like one more sample of the ensemble: scores, spread, ranks, intervals.

Samples are taken to be independent draws. Those of a Latin hypercube repel each other, which the
fair score, the spread and the ranks do not allow for.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr
from scipy.stats import chisquare

from tadiff_rt.volume import volume_quantiles

Array = NDArray[np.float64]
Floats = NDArray[np.floating]


def crps(samples: Floats, truth: Floats, fair: bool = True) -> Array:
    """Continuous ranked probability score of each place: Gneiting and Raftery 2007, Eq. 21.

    mean |x_j - y| - sum over pairs |x_j - x_k| / (k (k - 1)): Ferro 2014. Its expectation is the
    score of the distribution that samples are drawn from, whatever their number. With fair=False
    the second term is divided by k^2: the score of the samples themselves as distribution, which
    is never negative, and rewards more samples. For many places; `tadiff_rt.volume.fair_crps` is
    the same of one. O(k log k) a place.

    Args:
        samples: (k, ...), k >= 2 if fair, else k >= 1.
        truth: (...), same unit, which is also the unit of the score. Lower is better.
        fair: for comparing with another number of samples, or with the truth's distribution.
    """
    x, y = _checked(samples, truth, least=2 if fair else 1)
    k = len(x)
    error = np.abs(x - y).mean(axis=0)
    x.sort(axis=0)
    rank = np.arange(1, k).reshape(-1, *([1] * y.ndim))
    # The gap after the j-th sample lies inside j (k - j) pairs. A sum of gaps cancels nothing.
    pair_sum = (rank * (k - rank) * np.diff(x, axis=0)).sum(axis=0)
    return np.asarray(error - pair_sum / (k * (k - 1) if fair else k * k))


def crps_gaussian(mean: Floats, std: Floats, truth: Floats) -> Array:
    """CRPS of normal distributions: Gneiting et al. 2005, Eq. 5; |mean - truth| where std is 0.

    Arrays of one shape and unit, std >= 0.
    """
    mean, std, truth = (np.asarray(x, dtype=np.float64) for x in (mean, std, truth))
    if not mean.shape == std.shape == truth.shape:
        raise ValueError(f"shapes differ: {mean.shape}, {std.shape} and {truth.shape}")
    for name, x in (("mean", mean), ("std", std), ("truth", truth)):
        _require_finite(name, x)
    if (std < 0).any():
        raise ValueError(f"std must not be negative, got {std.min()}")
    error = truth - mean
    # At 40 standard deviations the tail is 0, and beyond, z could overflow.
    floor = np.maximum(std, np.abs(error) / 40)
    z = np.divide(error, floor, out=np.zeros(error.shape), where=floor > 0)
    density = np.exp(-0.5 * z * z) / np.sqrt(2 * np.pi)
    return np.asarray(error * (2 * ndtr(z) - 1) + std * (2 * density - 1 / np.sqrt(np.pi)))


@dataclass(frozen=True, eq=False)
class SpreadSkill:
    """Root mean square of spread and of error, over all places and by predicted spread."""

    spread: float
    """What the error of the ensemble mean should be, if truth and samples are exchangeable."""
    error: float
    """What it is."""
    bin_spread: Array
    """Of bins of equal counts, from the smallest predicted spread to the largest."""
    bin_error: Array
    bin_count: NDArray[np.int64]

    @property
    def ratio(self) -> float | None:
        """Spread over error: 1 as it should be, below 1 overconfident; None without any error."""
        return self.spread / self.error if self.error else None


def spread_skill(
    variance: Floats, squared_error: Floats, *, num_samples: int, bins: int = 10
) -> SpreadSkill:
    """Spread against error of the ensemble mean: Fortin et al. 2014.

    The mean of k samples is off by their own scatter too, so that the expected squared error of
    an exact ensemble is (k + 1) / k times its variance; the spread here includes that factor, or
    small ensembles would seem overconfident.

    Only the overall ratio is 1 for every exact ensemble. Bins are chosen by the variance of few
    samples, which is partly chance: even of an exact ensemble the first bins lie below their
    error and the last above. Read bins with many samples only.

    Args:
        variance: unbiased (k - 1) variance of the samples of each place; any shape.
        squared_error: of the ensemble mean, same shape.
        num_samples: k, at least 2.
        bins: 1 to the number of places; their counts differ by at most 1.
    """
    variance, squared = (np.asarray(x, dtype=np.float64) for x in (variance, squared_error))
    if variance.shape != squared.shape:
        raise ValueError(f"shapes differ: {variance.shape} and {squared.shape}")
    for name, x in (("variance", variance), ("squared_error", squared)):
        _require_finite(name, x)
        if (x < 0).any():
            raise ValueError(f"{name} must not be negative, got {x.min()}")
    if num_samples < 2:
        raise ValueError(f"a spread needs at least 2 samples, got {num_samples}")
    if not 1 <= bins <= variance.size:
        raise ValueError(f"bins must be 1 to the {variance.size} places, got {bins}")
    expected = variance.ravel() * (num_samples + 1) / num_samples
    parts = np.array_split(np.argsort(expected, kind="stable"), bins)
    return SpreadSkill(
        spread=float(np.sqrt(expected.mean())),
        error=float(np.sqrt(squared.mean())),
        bin_spread=np.sqrt([expected[part].mean() for part in parts]),
        bin_error=np.sqrt([squared.ravel()[part].mean() for part in parts]),
        bin_count=np.array([len(part) for part in parts]),
    )


def rank_histogram(samples: Floats, truth: Floats, rng: np.random.Generator) -> NDArray[np.int64]:
    """How often the truth has each rank among its samples: Hamill 2001.

    Flat if truth and samples are exchangeable, U-shaped if the spread is too small, a dome if it
    is too large, sloped if biased. A flat one does not prove calibration: opposite biases add up
    to flat. Among equal values the rank is drawn at random, so that ties stay flat.

    Args:
        samples: (k, n).
        truth: (n,); one independent case each, such as the volume of one patient.
        rng: for ties.

    Returns:
        (k + 1,) counts; the first of truths below all samples.
    """
    x, y = _checked(samples, truth, least=1)
    if y.ndim != 1:
        raise ValueError(f"truth must be (n,), got shape {y.shape}")
    ties = (x == y).sum(axis=0)
    rank = (x < y).sum(axis=0) + rng.integers(0, ties, endpoint=True)
    return np.bincount(rank, minlength=len(x) + 1)


def rank_flatness(counts: NDArray[np.int64]) -> float | None:
    """p value of Pearson's chi-square test that a rank histogram is flat; Jolliffe and Primo 2008.

    Small if the histogram is not flat. Cases must be independent: one number a patient, not
    voxels. A large p of few patients shows nothing.

    Returns:
        None where the statistic does not follow the chi-square distribution: fewer than 3 ranks
        or 10 cases, or a square of the cases below 10 times the ranks; Koehler and Larntz 1980.
    """
    counts = np.asarray(counts)
    if counts.ndim != 1 or len(counts) < 2 or not np.issubdtype(counts.dtype, np.integer):
        raise ValueError(
            f"counts must be integers, one a rank, got {counts.dtype} of shape {counts.shape}"
        )
    if (counts < 0).any():
        raise ValueError(f"counts must not be negative, got {counts.min()}")
    total = int(counts.sum())
    if len(counts) < 3 or total < 10 or total**2 < 10 * len(counts):
        return None
    return float(chisquare(counts).pvalue)


def coverage(low: Floats, high: Floats, truth: Floats) -> float:
    """Share of truths inside their interval, ends included; (n,) each, n >= 1.

    It says nothing of the width: an interval without end covers everything.
    """
    low, high, truth = (np.asarray(x, dtype=np.float64) for x in (low, high, truth))
    if not low.shape == high.shape == truth.shape:
        raise ValueError(f"shapes differ: {low.shape}, {high.shape} and {truth.shape}")
    for name, x in (("low", low), ("high", high), ("truth", truth)):
        _require_finite(name, x)
    if (low > high).any():
        raise ValueError("low must not be above high")
    return float(((low <= truth) & (truth <= high)).mean())


def quantile_interval(samples: Sequence[float], level: float) -> tuple[float, float] | None:
    """Central range of the samples of one number, from `tadiff_rt.volume.volume_quantiles`.

    Its quantiles are right in the median, its coverage is not: of k exchangeable samples, the
    range from the r-th smallest to the r-th largest holds a further draw with probability
    (k + 1 - 2 r) / (k + 1), whatever the distribution, and is the quantile range of level
    (k + 1 - 2 r) / (k + 1/3). The full range of 5 is that of level 0.75 and covers 0.67. For a
    nominal coverage take `tadiff_rt.volume.volume_interval`, which assumes a normal distribution.

    Args:
        samples: at least 2, in any order.
        level: inside (0, 1).

    Returns:
        None if so few samples have no such quantile: level above (k - 1) / (k + 1/3).
    """
    if not 0 < level < 1:
        raise ValueError(f"level must be inside 0 to 1, got {level}")
    x = np.asarray(samples, dtype=np.float64)
    _require_finite("samples", x)
    found = volume_quantiles(x.tolist(), ((1 - level) / 2, (1 + level) / 2))
    if found is None or level * (3 * x.size + 1) > 3 * (x.size - 1) * (1 + 1e-12):
        return None
    return found[0], found[1]


def _checked(samples: Floats, truth: Floats, least: int) -> tuple[Array, Array]:
    """Copies in float64."""
    x, y = np.array(samples, dtype=np.float64), np.array(truth, dtype=np.float64)
    if x.ndim != y.ndim + 1 or x.shape[1:] != y.shape:
        raise ValueError(f"samples must be (k, ...) of truth (...), got {x.shape} and {y.shape}")
    if len(x) < least:
        raise ValueError(f"there must be at least {least} samples, got {len(x)}")
    _require_finite("samples", x)
    _require_finite("truth", y)
    return x, y


def _require_finite(name: str, x: Array) -> None:
    if x.size == 0 or not np.isfinite(x).all():
        raise ValueError(f"{name} must be finite and not empty, got shape {x.shape}")
