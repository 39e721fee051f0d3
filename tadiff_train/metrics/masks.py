"""How far a forecast tumour is from the one that came: overlap and volume."""

import numpy as np

from tadiff_train.metrics.images import Mask


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
