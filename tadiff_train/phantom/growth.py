"""Tumour growth: Fisher-KPP reaction and diffusion of a cell density, with treatment.

    du/dt = div(D grad u) + rho u (1 - u)          (Swanson et al. 2000; u = cells / capacity)

in millimetres and days, without flux into CSF or out of the brain. Radiation multiplies u by the
linear-quadratic survival of each fraction; chemotherapy multiplies rho.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tadiff_train.phantom.anatomy import Anatomy

Float32Array = NDArray[np.float32]
Box = tuple[slice, slice, slice]

TAIL = 1e-6
"""Densities below this do not widen the computed box. A pulled front is driven by its tail: a
cut at 1e-6 slows it by about 2.6 % (Brunet and Derrida 1997)."""
MARGIN = 6
"""Voxels kept free around that box."""
MAX_STEP_DAYS = 2.0
FRACTION_GY = 2.0
COURSE_DAYS = 42
"""Six weeks of five fractions: 60 Gy."""


@dataclass(frozen=True)
class TumourParameters:
    """What makes one patient's tumour different from another's; the truth of the phantom."""

    rho_per_day: float
    """Net proliferation rate without treatment."""
    d_white_mm2_per_day: float
    d_grey_mm2_per_day: float
    alpha_per_gy: float
    """Linear coefficient of cell kill."""
    beta_per_gy2: float
    """Quadratic coefficient of cell kill."""
    tmz_factor: float
    """Multiplies proliferation during TMZ, and during CRT, which is given with TMZ."""

    @property
    def fraction_survival(self) -> float:
        """Cells surviving one fraction: exp(-alpha d - beta d^2), d = 2 Gy."""
        dose = FRACTION_GY
        return float(np.exp(-self.alpha_per_gy * dose - self.beta_per_gy2 * dose**2))


def diffusivity(anatomy: Anatomy, parameters: TumourParameters) -> Float32Array:
    """D in mm^2/day: mixed by tissue fractions; 0 where no cell can live."""
    mixed = (
        parameters.d_white_mm2_per_day * anatomy.wm + parameters.d_grey_mm2_per_day * anatomy.gm
    )
    share = np.maximum(anatomy.wm + anatomy.gm, 1e-6)
    return np.where(anatomy.tissue, mixed / share, 0).astype(np.float32)


class Growth:
    """Integrates the equation on one grid; holds D, and nothing that changes with time.

    Strang splitting: the reaction is exact, diffusion is explicit with face-averaged D, in a box
    around the tumour that widens as the tumour does.
    """

    def __init__(self, d_mm2_per_day: Float32Array, spacing_mm: float) -> None:
        """Args: d_mm2_per_day: (x, y, z), 0 outside tissue; spacing_mm: edge of a cubic voxel."""
        self._faces = [_face_average(d_mm2_per_day, axis) / spacing_mm**2 for axis in range(3)]
        stable = spacing_mm**2 / (6 * max(float(d_mm2_per_day.max()), 1e-12))
        self.max_step_days = min(MAX_STEP_DAYS, 0.9 * stable)
        """Below the bound h^2 / 6 D of the explicit scheme."""

    def advance(self, u: Float32Array, days: float, rho_per_day: float) -> Float32Array:
        """Density after `days` at constant proliferation; `u` is not modified."""
        if days <= 0:
            return u
        num_steps = int(np.ceil(days / self.max_step_days))
        dt = days / num_steps
        u = u.copy()
        done = 0
        while done < num_steps:
            box = _active_box(u)
            inner = np.ascontiguousarray(u[box])
            done += self._advance_box(inner, box, u.shape, dt, rho_per_day, num_steps - done)
            u[box] = inner
        return u

    def _advance_box(
        self,
        u: Float32Array,
        box: Box,
        shape: tuple[int, ...],
        dt: float,
        rho_per_day: float,
        num_steps: int,
    ) -> int:
        """Steps `u` in place until done or until the tumour reaches the box; returns the steps.

        Neighbouring half steps of the reaction are merged into one whole step.
        """
        faces = [
            _inside(face, box, axis) * np.float32(dt) for axis, face in enumerate(self._faces)
        ]
        fluxes = [np.empty_like(face) for face in faces]
        room = np.empty_like(u)
        open_sides = [
            (axis, edge)
            for axis in range(3)
            for edge, at_end in ((0, box[axis].start == 0), (-1, box[axis].stop == shape[axis]))
            if not at_end
        ]
        _react(u, room, rho_per_day * dt / 2)
        step = 0
        while True:
            step += 1
            _diffuse(u, faces, fluxes)
            full = step % 4 == 0 and any(u.take(e, a).max() > TAIL for a, e in open_sides)
            if step == num_steps or full:
                _react(u, room, rho_per_day * dt / 2)
                return step
            _react(u, room, rho_per_day * dt)


def _face_average(d: Float32Array, axis: int) -> Float32Array:
    """Mean D of the two voxels at each face; 0 if either holds no tissue (no flux)."""
    low = np.moveaxis(d, axis, 0)[:-1]
    high = np.moveaxis(d, axis, 0)[1:]
    mean = np.where((low > 0) & (high > 0), (low + high) / 2, 0)
    return np.ascontiguousarray(np.moveaxis(mean, 0, axis), dtype=np.float32)


def _active_box(u: Float32Array) -> Box:
    """Smallest box around densities above TAIL, plus the margin, inside the grid."""
    active = u > TAIL
    slices = []
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        index = np.flatnonzero(active.any(axis=others))
        low, high = (int(index[0]), int(index[-1])) if index.size else (0, 0)
        slices.append(slice(max(low - MARGIN, 0), min(high + MARGIN + 1, u.shape[axis])))
    return slices[0], slices[1], slices[2]


def _inside(face: Float32Array, box: Box, axis: int) -> Float32Array:
    """The faces between voxels of the box: one fewer than voxels along `axis`."""
    cut = list(box)
    cut[axis] = slice(box[axis].start, box[axis].stop - 1)
    return np.ascontiguousarray(face[tuple(cut)])


def _diffuse(u: Float32Array, faces: list[Float32Array], fluxes: list[Float32Array]) -> None:
    """One explicit step in place; all fluxes come from the old u, so mass is conserved."""
    views = [(np.moveaxis(u, a, 0)[:-1], np.moveaxis(u, a, 0)[1:]) for a in range(3)]
    for axis, (low, high) in enumerate(views):
        flux = np.moveaxis(fluxes[axis], axis, 0)
        np.subtract(high, low, out=flux)
        np.multiply(fluxes[axis], faces[axis], out=fluxes[axis])
    for axis, (low, high) in enumerate(views):
        flux = np.moveaxis(fluxes[axis], axis, 0)
        low += flux
        high -= flux


def _react(u: Float32Array, room: Float32Array, rho_dt: float) -> None:
    """Logistic growth over rho_dt in place, exact: u e / (1 + u (e - 1)) with e = exp(rho dt)."""
    factor = np.float32(np.exp(rho_dt))
    np.multiply(u, factor - np.float32(1), out=room)
    room += np.float32(1)
    u *= factor
    u /= room


def fraction_days(course_start: int, start: int, end: int) -> list[int]:
    """Days in [start, end) with a radiation fraction: weekdays of six weeks, from a Monday."""
    last = min(end, course_start + COURSE_DAYS)
    return [d for d in range(max(start, course_start), last) if (d - course_start) % 7 < 5]


def grow_interval(
    growth: Growth,
    u: Float32Array,
    parameters: TumourParameters,
    *,
    start: int,
    end: int,
    treatment: str,
    course_start: int,
) -> Float32Array:
    """Density at day `end`, given that at day `start` and the treatment in between.

    Args:
        treatment: "CRT", "TMZ" or "none".
        course_start: day on which the radiation course began; used for CRT only.
    """
    rho = parameters.rho_per_day
    if treatment == "none":
        return growth.advance(u, end - start, rho)
    rho *= parameters.tmz_factor
    day = start
    if treatment == "CRT":
        for fraction in fraction_days(course_start, start, end):
            u = growth.advance(u, fraction - day, rho) * np.float32(parameters.fraction_survival)
            day = fraction
    return growth.advance(u, end - day, rho)
