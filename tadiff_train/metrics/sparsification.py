"""Whether uncertainty is large where the error is large."""

import numpy as np
from numpy.typing import NDArray
from scipy.integrate import trapezoid

from tadiff_train.metrics.images import Mask

Array = NDArray[np.float64]


def ause(
    uncertainty: NDArray[np.floating],
    error: NDArray[np.floating],
    mask: Mask | None = None,
    num: int = 20,
) -> float | None:
    """Area under the sparsification error, relative to that of a random order: Ilg et al. 2018.

    The most uncertain voxels are removed, a share 0, 1/num, ... (num - 1)/num of them, and the
    mean error of those left is drawn against the share. The area between that curve and the one
    of the oracle, which removes the largest errors, is divided by what is expected of a random
    order (whose curve is level): 0 for the order of the oracle, 1 for chance, above 1 if
    confident voxels are the wrong ones. Ilg et al. divide by the mean error instead; that value
    depends on how unequal the errors are and has no fixed value for chance.

    Only the order of the uncertainty counts, not its size. Voxels of equal uncertainty go in
    random order, in expectation.

    Args:
        uncertainty: any unit; larger is less certain.
        error: >= 0, same shape.
        mask: voxels that count; None for all. With a background, which is easy and sure, the
            value is better for nothing.
        num: points of the curve, 2 to the number of voxels.

    Returns:
        None if all errors are equal: every order is then as good.
    """
    u, e = _checked(uncertainty, error, mask)
    if not 2 <= num <= e.size:
        raise ValueError(f"num must be 2 to the {e.size} voxels, got {num}")
    values, group = np.unique(u, return_inverse=True)
    tied = np.bincount(group, e, len(values)) / np.bincount(group)
    oracle = _curve(np.sort(e), num)
    curve = _curve(tied[np.sort(group)], num)
    chance = float(trapezoid(oracle[0] - oracle))
    # Not > 0: the mean of equal numbers may differ from them in the last digit.
    return float(trapezoid(curve - oracle)) / chance if chance > 1e-12 * oracle[0] else None


def _curve(error: Array, num: int) -> Array:
    """Mean error of the voxels left, from the order in which the last are removed first."""
    left = error.size - error.size * np.arange(num) // num
    return np.cumsum(error)[left - 1] / left


def _checked(
    uncertainty: NDArray[np.floating], error: NDArray[np.floating], mask: Mask | None
) -> tuple[Array, Array]:
    """Both in float64, of the voxels that count."""
    if mask is None:
        mask = np.ones(error.shape, np.bool_)
    if not uncertainty.shape == error.shape == mask.shape:
        raise ValueError(
            f"shapes differ: {uncertainty.shape}, {error.shape} and the mask's {mask.shape}"
        )
    if mask.dtype != np.bool_ or not mask.any():
        raise ValueError(f"the mask must be boolean and not empty, got {mask.dtype}")
    u, e = (x[mask].astype(np.float64) for x in (uncertainty, error))
    for name, x in (("uncertainty", u), ("error", e)):
        if not np.isfinite(x).all():
            raise ValueError(f"{name} must be finite")
    if e.min() < 0:
        raise ValueError(f"error must not be negative, got {e.min()}")
    return u, e
