"""Where cells can live and how fast they migrate, estimated from the patient's own T1 images."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.vq import ClusterError, kmeans2
from scipy.ndimage import gaussian_filter

Float32Array = NDArray[np.float32]
Mask = NDArray[np.bool_]

GREY_SHARE = 0.1
"""Diffusivity in grey matter relative to white matter (Jbabdi et al. 2005; Swanson et al. 2000
give 0.2)."""
MAX_CSF_TO_WHITE = 0.8
"""CSF brighter than this share of white matter in T1 is no CSF: the classes are noise."""
MAX_CLASS_VOXELS = 200_000
"""Voxels that the classes are found from; of more, every k-th."""
FILL_VOXELS = 2.0
"""Standard deviation of the average that stands for what the tumour hides."""


@dataclass(frozen=True, eq=False)
class Tissue:
    """Estimated anatomy of one patient; (d, h, w)."""

    held: Mask
    """Voxels in which cells can live: brain without CSF, and wherever a tumour was seen."""
    white: Float32Array
    """Share of white matter in 0 ... 1, the rest being grey matter; 0 outside `held`."""
    note: str
    """What could not be told apart; empty if all is as expected."""

    def diffusivity(self, d_white_mm2_per_day: float) -> Float32Array:
        """D in mm^2/day, 0 where no cell can live."""
        mixed = d_white_mm2_per_day * (self.white + GREY_SHARE * (1 - self.white))
        return np.where(self.held, mixed, 0).astype(np.float32)


def estimate_tissue(t1: NDArray[np.floating], masks: Mask, brain: Mask) -> Tissue:
    """Tissue by intensity: in T1, white matter is brighter than grey matter, grey than CSF.

    Every voxel is taken from the last session in which it was free of tumour, so that an earlier
    scan shows what a later tumour hides. Three classes are found by k-means (Lloyd 1982) from
    fixed percentiles; between the means of two classes the share is linear. What every session
    hides is the average of its surroundings. Without CSF that is much darker than white matter
    there are no classes: all brain is white matter.

    Args:
        t1: (s, d, h, w) in [0, 1], sessions in time order.
        masks: (s, d, h, w) tumour.
        brain: (d, h, w).
    """
    tumour = masks.any(axis=0)
    seen = brain & ~masks.all(axis=0)
    image = _last_free(t1, masks, seen)
    means = _class_means(image[seen])
    if means is None:
        held = brain | tumour
        note = "tissue classes could not be told apart in T1: all brain is taken for white matter"
        return Tissue(held, held.astype(np.float32), note)
    csf, grey, white = means
    held = (seen & (image > (csf + grey) / 2)) | tumour
    known = held & seen
    share = np.clip((image - grey) / (white - grey), 0, 1).astype(np.float32)
    hidden = held & ~known
    share[hidden] = surroundings(share, known, FILL_VOXELS, 1.0)[hidden]
    return Tissue(held, np.where(held, share, 0).astype(np.float32), "")


def surroundings(
    values: NDArray[np.floating], known: Mask, voxels: float, otherwise: float
) -> Float32Array:
    """Average of the known values around every voxel, by a Gaussian of `voxels`.

    Where none is near, it becomes `otherwise`. Ties of "nearest" would break mirror symmetry.
    """
    weight = gaussian_filter(known.astype(np.float32), voxels)
    total = gaussian_filter(np.where(known, values, 0).astype(np.float32), voxels)
    few = np.float32(1e-4)
    return np.asarray((total + few * np.float32(otherwise)) / (weight + few), np.float32)


def _last_free(t1: NDArray[np.floating], masks: Mask, seen: Mask) -> Float32Array:
    """T1 of the last session without tumour at each voxel, on the scale of the last session."""
    always = seen & ~masks.any(axis=0)
    image = t1[0].astype(np.float32)
    for session, mask in zip(t1, masks, strict=True):
        if always.any():
            level = float(np.median(image[always]))
            image *= np.float32(np.median(session[always]) / level if level > 0 else 1)
        image = np.where(mask, image, session.astype(np.float32))
    return image


def _class_means(intensities: Float32Array) -> tuple[float, float, float] | None:
    """Mean T1 of CSF, grey and white matter; None if there are no such classes."""
    step = max(intensities.size // MAX_CLASS_VOXELS, 1)
    x = intensities[::step].astype(np.float64)
    if x.size < 3:
        return None
    start = np.percentile(x, [5, 40, 80])
    try:
        means, _ = kmeans2(x, start, iter=30, minit="matrix", missing="raise")
    except ClusterError:
        return None
    csf, grey, white = np.sort(means).tolist()
    if not csf < MAX_CSF_TO_WHITE * white or not csf < grey < white:
        return None
    return csf, grey, white
