"""How far a forecast is from what came: images, masks, volumes, and means over patients.

Re-derived from the papers, because the published evaluation scores noise at 28 dB: it subtracts
8-bit images, counts the background, counts the masks of the sources with that of the target, and
takes the sigmoid of a mask twice. Here images are floats in [0, 1] and masks are booleans, and
anything else is refused.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

Mask = NDArray[np.bool_]

SSIM_SIGMA = 1.5
SSIM_RADIUS = 5
"""Half width of the window, which is 11 x 11."""
SSIM_K1, SSIM_K2 = 0.01, 0.03


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
