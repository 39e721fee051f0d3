"""Cell density from what is seen of it: the outline of a tumour in a scan."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.integrate import solve_ivp
from scipy.ndimage import distance_transform_edt, gaussian_filter
from scipy.special import expit, logit

from tadiff_train.phantom.growth import TAIL
from tadiff_train.phantom.render import OEDEMA_MIN

Float32Array = NDArray[np.float32]
Mask = NDArray[np.bool_]

VISIBLE = OEDEMA_MIN
"""Density on the outline of a tumour mask (Swanson et al. 2008 take 0.16 for FLAIR and T2)."""
VISIBLE_LOGIT = float(logit(VISIBLE))
APART = 0.05
"""Logits by which density on either side of an outline keeps away from VISIBLE."""
SMOOTH_VOXELS = 2.0
"""Standard deviation of the average of a correction along the outline."""
REACH = 1e-3
"""Weight of the mean correction; it takes over where no outline is near."""


@lru_cache(maxsize=1)
def _wave() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(z, logit U) of the slowest travelling wave, U'' + 2 U' + U (1 - U) = 0, U(0) = VISIBLE.

    z is in units of sqrt(D / rho). The wave leaves U = 1 as 1 - U ~ exp((sqrt(2) - 1) z).
    """
    first, rate = 1e-7, np.sqrt(2) - 1
    solution = solve_ivp(
        lambda _, y: (y[1], -2 * y[1] - (1 - y[0]) * y[0]),
        (0, 80),
        (1 - first, -rate * first),
        method="DOP853",
        dense_output=True,
        rtol=1e-10,
        atol=1e-16,
    )
    z = np.linspace(0, 80, 8001)
    u = solution.sol(z)[0]
    inside = u > TAIL
    z, profile = z[inside], logit(u[inside])
    return z - np.interp(-VISIBLE_LOGIT, -profile, z), profile


def wave_density(away_mm: NDArray[np.floating], width_mm: float) -> Float32Array:
    """Density at a signed distance from the outline, positive outside.

    The wave with speed 2 sqrt(D rho) is the one that compact tumours approach (Kolmogorov,
    Petrovsky and Piskunov 1937); its tail decides how fast the front goes on. Densities below
    the integrator's TAIL are 0.

    Args:
        width_mm: sqrt(D / rho).
    """
    z, profile = _wave()
    x = away_mm / width_mm
    return np.where(x > z[-1], 0, expit(np.interp(x, z, profile))).astype(np.float32)


def density_of_mask(mask: Mask, held: Mask, width_mm: float, spacing_mm: float) -> Float32Array:
    """A travelling wave behind the outline of a tumour (Konukoglu et al. 2010).

    Where tumour borders on CSF or the edge of the brain there is no front: distance is measured
    to tissue without tumour only.

    Args:
        mask, held: (d, h, w) tumour, and voxels where cells can live.
        width_mm: sqrt(D / rho) in white matter.
    """
    if not mask.any():
        return np.zeros(mask.shape, np.float32)
    free = held & ~mask
    inside = distance_transform_edt(~free) if free.any() else np.full(mask.shape, np.inf)
    away = np.where(mask, 0.5 - inside, distance_transform_edt(~mask) - 0.5)
    return match_outline(np.where(held, wave_density(away * spacing_mm, width_mm), 0), mask, held)


def match_outline(u: Float32Array, mask: Mask, held: Mask) -> Float32Array:
    """Density that is visible exactly inside `mask`, with the profile of a predicted one.

    The logit of `u` is shifted by what it lacks at the outline, averaged along the outline and
    carried on from there. A front moves, and its slope and the plateau behind it, which hold the
    treatments before, stay. The same scaling of a whole tumour is a shift of all its logits.

    Args:
        u: (d, h, w) predicted density.
        mask: (d, h, w) the tumour that was seen.
        held: (d, h, w) voxels where cells can live.
    """
    lu = bounded_logit(u)
    lacking, count = _lacking(lu, mask, held)
    if count.any():
        mean = float(lacking.sum() / count.sum())
        total = gaussian_filter(lacking, SMOOTH_VOXELS)
        weight = gaussian_filter(count, SMOOTH_VOXELS)
        lu = lu + (total + REACH * mean) / (weight + REACH)
    limited = np.where(
        mask, np.maximum(lu, VISIBLE_LOGIT + APART), np.minimum(lu, VISIBLE_LOGIT - APART)
    )
    return np.where(held & ((u > TAIL) | mask), expit(limited), 0).astype(np.float32)


def bounded_logit(u: Float32Array) -> Float32Array:
    """Logit of a density, finite everywhere."""
    bounded = np.clip(u, np.float32(TAIL), np.float32(1 - TAIL))
    result: Float32Array = logit(bounded)
    return result


def _lacking(lu: Float32Array, mask: Mask, held: Mask) -> tuple[Float32Array, Float32Array]:
    """Logits that the faces of the outline lack to VISIBLE, and the number of faces.

    Both are added up at the two voxels of each face between tumour and tissue without it.
    """
    lacking, count = np.zeros_like(lu), np.zeros_like(lu)
    for axis in range(lu.ndim):
        low, high = (np.moveaxis(x, axis, 0) for x in (lacking, count))
        m, h, v = (np.moveaxis(x, axis, 0) for x in (mask, held, lu))
        face = (m[:-1] != m[1:]) & h[:-1] & h[1:]
        missing = np.where(face, np.float32(VISIBLE_LOGIT) - (v[:-1] + v[1:]) / 2, 0)
        for end in (slice(None, -1), slice(1, None)):
            low[end] += missing
            high[end] += face
    return lacking, count
