"""How far a forecast is from what came: images, masks, volumes, and means over patients.

Re-derived from the papers, because the published evaluation scores noise at 28 dB: it subtracts
8-bit images, counts the background, counts the masks of the sources with that of the target, and
takes the sigmoid of a mask twice. Here images are floats in [0, 1] and masks are booleans, and
anything else is refused.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

Mask = NDArray[np.bool_]

SSIM_SIGMA = 1.5
SSIM_RADIUS = 5
"""Half width of the window, which is 11 x 11."""
SSIM_K1, SSIM_K2 = 0.01, 0.03
RESAMPLES = 10_000


def mae(a: NDArray[np.floating], b: NDArray[np.floating], mask: Mask | None = None) -> float:
    """Mean absolute difference of two images in [0, 1], over the voxels of `mask`."""
    a, b, mask = _checked(a, b, mask)
    return float(np.abs(a - b)[mask].mean())


def psnr(a: NDArray[np.floating], b: NDArray[np.floating], mask: Mask | None = None) -> float:
    """Peak signal-to-noise ratio in dB of two images in [0, 1], the peak being 1; inf if equal.

    The mean squared error is taken over all voxels of `mask` together, whatever the number of
    axes: a background of zeros, always right, would raise it.
    """
    a, b, mask = _checked(a, b, mask)
    mse = float(np.square(a - b)[mask].mean())
    return float("inf") if mse == 0 else -10 * float(np.log10(mse))


def ssim(
    a: NDArray[np.floating],
    b: NDArray[np.floating],
    mask: Mask | None = None,
    data_range: float = 1.0,
) -> float:
    """Structural similarity of two slices (h, w) in [0, 1], over `mask`: Wang et al. 2004, Eq. 13.

    The map is computed on the whole slice, with weighted moments in a Gaussian window, and
    averaged inside the mask only. Beyond the edges of the slice it is mirrored.
    """
    a, b, mask = _checked(a, b, mask)
    if a.ndim != 2:
        raise ValueError(f"structural similarity is of one slice (h, w), got shape {a.shape}")
    c1, c2 = (SSIM_K1 * data_range) ** 2, (SSIM_K2 * data_range) ** 2
    mean_a, mean_b = _window_mean(a), _window_mean(b)
    var_a = _window_mean(a * a) - mean_a**2
    var_b = _window_mean(b * b) - mean_b**2
    covariance = _window_mean(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * covariance + c2) / (var_a + var_b + c2)
    return float((luminance * structure)[mask].mean())


def _window_mean(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return gaussian_filter(x, SSIM_SIGMA, radius=SSIM_RADIUS)


def _checked(
    a: NDArray[np.floating], b: NDArray[np.floating], mask: Mask | None
) -> tuple[NDArray[np.float64], NDArray[np.float64], Mask]:
    """Both images in float64, and where they are compared."""
    for image in (a, b):
        if not np.issubdtype(image.dtype, np.floating):
            raise ValueError(f"images must be floats in [0, 1], got {image.dtype}")
        # Written so that NaN fails it.
        if not (image.min() >= 0 and image.max() <= 1):
            raise ValueError(f"images must lie in [0, 1], got {image.min()} to {image.max()}")
    if mask is None:
        mask = np.ones(a.shape, np.bool_)
    if not a.shape == b.shape == mask.shape:
        raise ValueError(f"shapes differ: {a.shape}, {b.shape} and the mask's {mask.shape}")
    if mask.dtype != np.bool_ or not mask.any():
        raise ValueError(f"the mask must be boolean and not empty, got {mask.dtype}")
    return a.astype(np.float64), b.astype(np.float64), mask


def dice(a: Mask, b: Mask) -> float | None:
    """Dice coefficient 2 |a and b| / (|a| + |b|) of two masks; None if both are empty.

    Two empty masks agree, but 1 would reward every slice without tumour, and 0 would punish it.
    """
    if a.dtype != np.bool_ or b.dtype != np.bool_:
        raise ValueError(f"masks must be boolean, got {a.dtype} and {b.dtype}: threshold first")
    if a.shape != b.shape:
        raise ValueError(f"masks must have one shape, got {a.shape} and {b.shape}")
    total = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / total if total else None


def signed_volume_error(pred_ml: float, true_ml: float) -> float:
    """Predicted minus true volume: positive where the forecast is too large."""
    return pred_ml - true_ml


def absolute_volume_error(pred_ml: float, true_ml: float) -> float:
    """Size of the volume error. Unlike the signed one, it does not cancel over patients."""
    return abs(pred_ml - true_ml)


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
