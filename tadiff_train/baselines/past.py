"""What the growth model keeps of a patient's images, and its forecasts in their voxels."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import zoom
from scipy.special import expit

from tadiff_train.baselines.anatomy import Tissue, estimate_tissue, surroundings
from tadiff_train.baselines.course import Course
from tadiff_train.baselines.density import VISIBLE, bounded_logit, match_outline
from tadiff_train.phantom.growth import TumourParameters

Float32Array = NDArray[np.float32]
Mask = NDArray[np.bool_]

COARSE_MM = 2.0
"""The equation is solved on voxels of about this edge; finer images are averaged in blocks."""
MARGIN_MM = 40.0
"""Tissue kept around the tumours of all sessions; a front of 0.1 mm a day crosses it in a year."""


@dataclass(frozen=True, eq=False)
class Past:
    """A course in the voxels of the images, and its copy on the coarser grid of the model."""

    fine: Course
    """Cut to the surroundings of the tumours."""
    coarse: Course
    """`fine` itself where its voxels are large enough."""
    box: tuple[slice, slice, slice]
    """Where `fine` lies in the images."""
    shape: tuple[int, int, int]
    """Of the images."""

    def forecast(self, parameters: TumourParameters, day: int, treatment: str) -> Mask:
        """(d, h, w) tumour on `day`, in the voxels of the images."""
        u, _ = self.coarse.follow(parameters)
        later = self.coarse.forecast(u, parameters, day, treatment)
        if self.fine is not self.coarse:
            later = self._refine(u, later)
        tumour = np.zeros(self.shape, np.bool_)
        tumour[self.box] = later > VISIBLE
        return tumour

    def _refine(self, u: Float32Array, later: Float32Array) -> Float32Array:
        """`later` in fine voxels: the last outline as it was seen, changed as the logits were."""
        before, after = bounded_logit(u), bounded_logit(later)
        old = expit(self._enlarge(before)).astype(np.float32)
        tissue = self.fine.tissue.held
        outlined = bounded_logit(match_outline(old, self.fine.masks[-1], tissue))
        moved = expit(outlined + self._enlarge(after - before))
        return np.where(tissue, moved, 0).astype(np.float32)

    def _enlarge(self, x: Float32Array) -> Float32Array:
        """Linear interpolation of block values, those of tissue alone, to fine voxels."""
        held = self.coarse.tissue.held
        filled = np.where(held, x, surroundings(x, held, 1.0, 0.0))
        factor = round(self.coarse.spacing_mm / self.fine.spacing_mm)
        fine: Float32Array = zoom(filled, factor, order=1, mode="nearest", grid_mode=True)
        d, h, w = self.fine.masks.shape[1:]
        return fine[:d, :h, :w]


def see_past(
    t1: NDArray[np.floating],
    masks: Mask,
    brain: Mask,
    sessions: tuple[Sequence[int], Sequence[str]],
    spacing_mm: float,
) -> Past:
    """What the model needs of images (s, d, h, w); `sessions` are their days and treatments."""
    _check_images(t1, masks, brain, spacing_mm)
    tissue = estimate_tissue(t1, masks, brain)
    tumour: Mask = masks.any(axis=0)
    box = _box_around(tumour, round(MARGIN_MM / spacing_mm))
    cut = replace(tissue, held=tissue.held[box], white=tissue.white[box])
    days, treatments = sessions
    fine = Course(masks[:, *box], cut, tuple(days), tuple(treatments), spacing_mm)
    factor = max(round(COARSE_MM / spacing_mm), 1)
    coarse = fine if factor == 1 else _coarsen(fine, factor)
    d, h, w = brain.shape
    return Past(fine, coarse, box, (d, h, w))


def _check_images(t1: NDArray[np.floating], masks: Mask, brain: Mask, spacing_mm: float) -> None:
    if masks.dtype != np.bool_ or brain.dtype != np.bool_:
        raise ValueError(f"masks and brain must be boolean, got {masks.dtype} and {brain.dtype}")
    if masks.ndim != 4 or t1.shape != masks.shape or brain.shape != masks.shape[1:]:
        raise ValueError(
            "t1 and masks must be (s, d, h, w) and brain (d, h, w), got "
            f"{t1.shape}, {masks.shape} and {brain.shape}"
        )
    if len(masks) == 0 or not brain.any():
        raise ValueError(f"{len(masks)} sessions and {brain.sum()} voxels of brain were given")
    if not (t1.min() >= 0 and t1.max() <= 1):
        raise ValueError(f"t1 must lie in [0, 1], got {t1.min()} to {t1.max()}")
    if not 0 < spacing_mm < np.inf:
        raise ValueError(f"spacing_mm must be positive, got {spacing_mm}")


def _box_around(tumour: Mask, margin: int) -> tuple[slice, slice, slice]:
    """The voxels within `margin` of the tumours along each axis; one voxel if there is none."""
    slices = []
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        index = np.flatnonzero(tumour.any(axis=others))
        low, high = (int(index[0]), int(index[-1])) if index.size else (0, 0)
        slices.append(slice(max(low - margin, 0), min(high + margin + 1, tumour.shape[axis])))
    return slices[0], slices[1], slices[2]


def _coarsen(course: Course, factor: int) -> Course:
    """Means of blocks of factor^3 voxels; a block is what at least half of it is.

    A tumour that fills half of no block is kept where it fills most.
    """

    def blocks(x: NDArray[np.generic]) -> Float32Array:
        pad = [(0, 0)] * (x.ndim - 3) + [(0, -n % factor) for n in x.shape[-3:]]
        padded = np.pad(x.astype(np.float32), pad)
        d, h, w = (n // factor for n in padded.shape[-3:])
        cut = padded.reshape(*x.shape[:-3], d, factor, h, factor, w, factor)
        mean: Float32Array = cut.mean(axis=(-5, -3, -1), dtype=np.float32)
        return mean

    tumour = blocks(course.masks)
    least = np.minimum(tumour.max(axis=(1, 2, 3), keepdims=True), 0.5)
    masks = (tumour > 0) & (tumour >= least)
    share = blocks(course.tissue.held)
    held = (share >= 0.5) | masks.any(axis=0)
    white = np.where(held, blocks(course.tissue.white) / np.maximum(share, 1e-6), 0)
    tissue = Tissue(held, white.astype(np.float32), course.tissue.note)
    spacing_mm = course.spacing_mm * factor
    return Course(masks, tissue, course.days, course.treatments, spacing_mm)
