"""Scanner units -> [0, 1], one volume at a time, and what makes a volume unfit for it.

The published preprocessing clips voxels > 0 to their percentiles 0.2 and 99.8, subtracts their
mean, divides by their standard deviation and stretches the volume to [0, 1]. With background at 0
and nothing below it, mean and deviation cancel: what remains is clip(v, p0.2, p99.8) / p99.8 on
v > 0. Statistics are float64: float32 overflows on 1e36 and is coarse on 1e-42.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tadiff_rt.errors import NiftiError

RINGING = 0.01
"""Depth below 0, relative to the upper percentile, that is ringing or rounding anywhere."""
HEAD_LEVEL = 0.05
"""A voxel above this share of the upper percentile belongs to the head for certain."""
MAX_NEGATIVE_SHARE = 0.05
"""Of the voxels within the head, how many may lie deeper below 0 than RINGING.

Interpolation undershoots deeply, but outside the edges of the head, and in the dark of ventricles
by little. Subtracting the mean or an offset turns tissue negative, which lies within: half of a
z-scored brain. Within is between head voxels along all three axes. Neither the number of negative
voxels nor their depth would do: a thin shell around a small head is as many voxels as a tissue,
and one undershoot as deep. An offset that leaves few voxels below 0 passes.
"""
FAINT = 1e-4
"""A voxel > 0 but below this share of the upper percentile is hardly tissue."""
MAX_FAINT_SHARE = 0.05
"""Of the voxels > 0; a background that was interpolated and not masked again is full of them."""
BRAIN_FRACTION = (0.01, 0.90)
"""Share of the voxels of a volume that a skull-stripped head may occupy."""
MIN_CONTRAST = 1e-6
"""Least difference of the two percentiles, relative to the upper one."""


@dataclass(frozen=True)
class Range:
    """Two percentiles of the voxels > 0 of one volume, in scanner units."""

    low: float
    high: float

    def normalise(self, data: NDArray[np.float32]) -> NDArray[np.float32]:
        """`data` in [0, 1]: clipped to the range and divided by its end; 0 where it is <= 0."""
        clipped = np.clip(data.astype(np.float64), self.low, self.high) / self.high
        return np.where(data > 0, clipped, 0.0).astype(np.float32)


def measure_range(
    data: NDArray[np.float32], percentiles: tuple[float, float], label: str
) -> Range:
    """The percentiles of the brain, once the volume is known to hold one on a background of 0.

    The result does not depend on the order of the voxels.

    Raises:
        NiftiError: TD3124 no contrast, TD3125 no brain, TD3126 the background is not 0, TD3127
            already normalised or shifted.
    """
    brain = data[data > 0].astype(np.float64)
    if brain.size < BRAIN_FRACTION[0] * data.size:
        raise NiftiError(
            "TD3125",
            f"the image holds no brain: {brain.size} of {data.size} voxels are > 0, at least "
            f"{BRAIN_FRACTION[0]:.0%} must be",
            where=label,
            fix="give an image in scanner units with background 0, skull-stripped by HD-BET or "
            "SynthStrip",
        )
    low, high = (float(value) for value in np.percentile(brain, percentiles))
    _require_zero_background(data, brain, high, label)
    _require_raw_intensities(data, high, label)
    if high - low <= MIN_CONTRAST * high:
        raise NiftiError(
            "TD3124",
            f"the image has no contrast: percentiles {percentiles[0]:g} and {percentiles[1]:g} of "
            f"the brain are {low:.6g} and {high:.6g}",
            where=label,
            fix="give the image itself, not a mask",
        )
    return Range(low, high)


def _require_zero_background(
    data: NDArray[np.float32], brain: NDArray[np.float64], high: float, label: str
) -> None:
    # The 12 edges of the box: a head may touch its faces and a slab cuts through it, but even a
    # box cropped tightly around a brain has empty edges.
    background = float(np.median(_box_edges(data)))
    fraction = brain.size / data.size
    faint = int((brain < FAINT * high).sum())
    if abs(background) > RINGING * high:
        finding = f"the edges of the image lie around {background:.6g}"
    elif fraction > BRAIN_FRACTION[1]:
        finding = (
            f"{fraction:.0%} of the voxels are > 0, at most {BRAIN_FRACTION[1]:.0%} are brain"
        )
    elif faint > MAX_FAINT_SHARE * brain.size:
        finding = f"{faint} of {brain.size} voxels > 0 lie below {FAINT * high:.3g}"
    else:
        return
    raise NiftiError(
        "TD3126",
        f"the background is not 0: {finding}",
        where=label,
        fix="skull-strip the image (HD-BET and SynthStrip do this); everything outside the brain "
        "must be exactly 0",
    )


def _box_edges(data: NDArray[np.float32]) -> NDArray[np.float32]:
    ends = [0, -1]
    return np.concatenate(
        [np.moveaxis(data, axis, 0)[:, ends][:, :, ends].ravel() for axis in range(3)]
    )


def _require_raw_intensities(data: NDArray[np.float32], high: float, label: str) -> None:
    deep = data < -RINGING * high
    if not deep.any():
        return
    within = _between(data > HEAD_LEVEL * high)
    share = int((deep & within).sum()) / int(within.sum())
    if share > MAX_NEGATIVE_SHARE:
        raise NiftiError(
            "TD3127",
            f"the image looks already normalised or shifted: {share:.0%} of the voxels within the "
            f"head are < 0, undershoot of interpolation makes at most {MAX_NEGATIVE_SHARE:.0%}",
            where=label,
            fix="give the image in scanner units, before any z-score or subtraction",
        )


def _between(head: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Voxels with head voxels (or themselves one) on both sides along every axis."""
    within = np.ones(head.shape, dtype=np.bool_)
    for axis in range(3):
        within &= np.logical_or.accumulate(head, axis=axis)
        within &= np.flip(np.logical_or.accumulate(np.flip(head, axis), axis=axis), axis)
    return within
