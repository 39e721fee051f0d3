"""How far a forecast tumour is from the one that came: overlap, boundary and volume."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, distance_transform_edt

from tadiff_train.metrics.images import Mask


def dice(a: Mask, b: Mask) -> float | None:
    """Dice coefficient 2 |a and b| / (|a| + |b|) of two masks; None if both are empty.

    Two empty masks agree, but 1 would reward every slice without tumour, and 0 would punish it.
    """
    _require_masks(a, b)
    total = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / total if total else None


def hd95(a: Mask, b: Mask, spacing_mm: Sequence[float]) -> float | None:
    """95 % Hausdorff distance of two surfaces in mm: the larger of both directed percentiles.

    Huttenlocher et al. 1993, at 95 % of the ranks; the quantile method of Taha and Hanbury 2015.
    Programs that take one percentile of the distances of both directions together report another
    number, mostly a smaller one. The surface of a mask is its voxels with a face neighbour
    outside it, or on the edge of the array; distances are between voxel centres. Percentiles are
    interpolated.

    Args:
        a, b: (h, w) or (d, h, w); of a stack of slices, neighbouring slices must be neighbours.
        spacing_mm: distance of neighbouring voxel centres along each axis.

    Returns:
        None if either mask is empty: no distance is defined, and a number would have to be made
        up. A mean over patients then leaves out those whose tumour was missed; count them.
    """
    _require_masks(a, b)
    if a.ndim not in (2, 3):
        raise ValueError(f"masks must be (h, w) or (d, h, w), got shape {a.shape}")
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    if spacing.shape != (a.ndim,) or not (np.isfinite(spacing) & (spacing > 0)).all():
        raise ValueError(f"spacing_mm must be {a.ndim} positive numbers, got {spacing_mm}")
    if not (a.any() and b.any()):
        return None
    box = _box(a | b)  # both surfaces lie inside it, and nothing else counts
    a, b = _surface(a[box]), _surface(b[box])
    return max(_directed(a, b, spacing), _directed(b, a, spacing))


def signed_volume_error(pred_ml: float, true_ml: float) -> float:
    """Predicted minus true volume: positive where the forecast is too large."""
    return pred_ml - true_ml


def absolute_volume_error(pred_ml: float, true_ml: float) -> float:
    """Size of the volume error. Unlike the signed one, it does not cancel over patients."""
    return abs(pred_ml - true_ml)


def _require_masks(a: Mask, b: Mask) -> None:
    if a.dtype != np.bool_ or b.dtype != np.bool_:
        raise ValueError(f"masks must be boolean, got {a.dtype} and {b.dtype}: threshold first")
    if a.shape != b.shape:
        raise ValueError(f"masks must have one shape, got {a.shape} and {b.shape}")


def _box(mask: Mask) -> tuple[slice, ...]:
    return tuple(slice(int(at.min()), int(at.max()) + 1) for at in mask.nonzero())


def _surface(mask: Mask) -> Mask:
    surface: Mask = mask & ~binary_erosion(mask)
    return surface


def _directed(a: Mask, b: Mask, spacing_mm: NDArray[np.float64]) -> float:
    """95 % of the voxels of `a` are at most this far from the nearest voxel of `b`."""
    return float(np.percentile(distance_transform_edt(~b, sampling=spacing_mm)[a], 95))
