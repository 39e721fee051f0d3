"""MR images of an anatomy with a tumour: T1, T1 with contrast and FLAIR, and the tumour labels."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tadiff_train.phantom.anatomy import Anatomy, smooth_field

Float32Array = NDArray[np.float32]

OEDEMA_MIN, ENHANCING_MIN, NECROSIS_MIN = 0.16, 0.6, 0.9
"""Cell densities at which each class begins; below the first, cells are invisible."""
LABELS = {"oedema": 1, "necrosis": 2, "enhancing": 3}
"""Voxel values of the tumour mask, in the published convention."""
SOFTNESS = 0.04
"""Half width, in density, of the transition between two classes."""

TEMPLATE_WHITE = 222.0
"""Median T1 of pure white matter in the template."""
WHITE_LEVEL = 800.0
"""Intensity of white matter in T1 before gain and bias."""


@dataclass(frozen=True)
class Rendered:
    """What the scanner and the reader give for one session."""

    images: dict[str, NDArray[np.int16]]
    """One (x, y, z) image for each of t1, t1c, flair; exactly 0 outside the brain."""
    mask: NDArray[np.uint8]
    """0, or one of LABELS."""


def tumour_mask(u: Float32Array, brain: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Labels of a density by the thresholds above."""
    mask = np.zeros(u.shape, np.uint8)
    mask[u > OEDEMA_MIN] = LABELS["oedema"]
    mask[u > ENHANCING_MIN] = LABELS["enhancing"]
    mask[u > NECROSIS_MIN] = LABELS["necrosis"]
    mask[~brain] = 0
    return mask


def _above(u: Float32Array, threshold: float) -> Float32Array:
    """0 below the threshold, 1 above, smooth in between (cubic step)."""
    x = np.clip((u - (threshold - SOFTNESS)) / np.float32(2 * SOFTNESS), 0, 1)
    return x * x * (3 - 2 * x)


class Renderer:
    """Renders sessions of one anatomy; keeps its tissue intensities, brain voxels only."""

    def __init__(self, anatomy: Anatomy) -> None:
        self.anatomy = anatomy
        self.brain = anatomy.brain
        share = np.maximum(anatomy.coverage[self.brain], 0.5)
        gm, wm, csf = (x[self.brain] / share for x in (anatomy.gm, anatomy.wm, anatomy.csf))
        scale = WHITE_LEVEL / TEMPLATE_WHITE
        self._t1: Float32Array = anatomy.t1[self.brain] / share * np.float32(scale)
        # Grey matter and the vessels in sulci take up a little contrast agent.
        self._t1c: Float32Array = self._t1 * (1 + 0.06 * gm + 0.12 * csf)
        self._flair: Float32Array = 130 * csf + 760 * gm + 640 * wm

    def render(self, u: Float32Array, rng: np.random.Generator) -> Rendered:
        """The three images and the mask of density `u`; `rng` draws gain, bias and noise."""
        inside = u[self.brain]
        oedema, rim, core = (_above(inside, t) for t in (OEDEMA_MIN, ENHANCING_MIN, NECROSIS_MIN))
        oedema, rim = oedema - rim, rim - core
        normal = 1 - oedema - rim - core
        t1 = self._t1 * (normal + 0.78 * oedema) + 560 * rim + 330 * core
        t1c = self._t1c * (normal + 0.78 * oedema) + 1250 * rim + 340 * core
        flair = self._flair * normal + (0.25 * self._flair + 900) * oedema + 950 * rim + 420 * core
        images = {
            "t1": self._acquire(t1, rng),
            "t1c": self._acquire(t1c, rng),
            "flair": self._acquire(flair, rng),
        }
        return Rendered(images, tumour_mask(u, self.brain))

    def _acquire(self, signal: Float32Array, rng: np.random.Generator) -> NDArray[np.int16]:
        """Gain, bias field and Rician noise of one acquisition, rounded; 0 outside the brain."""
        gain = rng.uniform(0.9, 1.1)
        field = smooth_field(rng, self.brain.shape, self.anatomy.spacing_mm, 96.0)[self.brain]
        field *= rng.uniform(0.05, 0.10) / max(float(np.abs(field).max()), 1e-6)
        sigma = np.float32(WHITE_LEVEL * rng.uniform(0.01, 0.03))
        noise = rng.standard_normal((2, signal.size), dtype=np.float32) * sigma
        measured = np.hypot(signal * np.float32(gain) * (1 + field) + noise[0], noise[1])
        image = np.zeros(self.brain.shape, np.int16)
        image[self.brain] = np.clip(np.rint(measured), 1, 32767)
        return image
