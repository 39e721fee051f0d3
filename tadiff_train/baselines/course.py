"""A tumour followed through a patient's sessions, on the grid of the growth model."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tadiff_rt.case import TREATMENTS
from tadiff_train.baselines.anatomy import Tissue
from tadiff_train.baselines.density import (
    VISIBLE,
    VISIBLE_LOGIT,
    bounded_logit,
    density_of_mask,
    match_outline,
)
from tadiff_train.baselines.parameters import front_width_mm
from tadiff_train.phantom.growth import Growth, TumourParameters, grow_interval
from tadiff_train.phantom.plan import course_start

Float32Array = NDArray[np.float32]
Mask = NDArray[np.bool_]

SMALLEST_ML = 0.5
"""Added to volumes before their logarithms are compared, so that none may be 0."""


@dataclass(frozen=True, eq=False)
class Course:
    """Sessions with a tumour mask, on the grid of the model; s sessions in time order."""

    masks: Mask
    """(s, d, h, w) tumour."""
    tissue: Tissue
    days: tuple[int, ...]
    treatments: tuple[str, ...]
    """Of each session: the one given in the interval that ends at it."""
    spacing_mm: float

    def __post_init__(self) -> None:
        unknown = set(self.treatments) - set(TREATMENTS)
        if unknown:
            raise ValueError(f"treatments must be of {', '.join(TREATMENTS)}, got {unknown}")
        if not len(self.masks) == len(self.days) == len(self.treatments):
            raise ValueError(
                f"{len(self.masks)} masks, {len(self.days)} days and {len(self.treatments)} "
                "treatments were given; each session needs one of each"
            )
        if list(self.days) != sorted(self.days):
            raise ValueError(f"days must be in time order, got {list(self.days)}")

    def until(self, day: int, treatment: str) -> tuple[tuple[int, ...], tuple[str, ...]]:
        """Days and treatments with a session on `day` added."""
        return (*self.days, day), (*self.treatments, treatment)

    def growth(self, parameters: TumourParameters) -> Growth:
        """The integrator in this patient's tissue."""
        return Growth(self.tissue.diffusivity(parameters.d_white_mm2_per_day), self.spacing_mm)

    def follow(self, parameters: TumourParameters) -> tuple[Float32Array, list[Float32Array]]:
        """Density at the last session, and what was predicted of each but the first.

        The first density is a travelling wave behind the first outline. At each later session the
        prediction is matched to the outline seen then, so that what treatment did to the density
        is carried on and errors of shape are not.
        """
        growth = self.growth(parameters)
        width_mm = front_width_mm(parameters)
        held, u = self.tissue.held, np.zeros(self.masks.shape[1:], np.float32)
        predicted: list[Float32Array] = []
        for session, mask in enumerate(self.masks):
            if session > 0:
                u = _grow(growth, u, parameters, (self.days, self.treatments), session)
                predicted.append(u)
            if mask.any() and not (mask & (u > VISIBLE)).any():  # first seen, or not expected
                u = density_of_mask(mask, held, width_mm, self.spacing_mm)
            else:
                u = match_outline(u, mask, held)
        return u, predicted

    def forecast(
        self, u: Float32Array, parameters: TumourParameters, day: int, treatment: str
    ) -> Float32Array:
        """Density on `day` given that at the last session."""
        course = self.until(day, treatment)
        return _grow(self.growth(parameters), u, parameters, course, len(self.days))

    def agreement(self, u: Float32Array, session: int, width_mm: float) -> tuple[float, float]:
        """Log ratio of predicted to seen volume, and Dice, of a predicted density.

        A voxel counts by the share of it that a front of slope 1 / width_mm leaves visible: both
        then change smoothly with the parameters, which steps of whole voxels would hide.
        """
        slope = width_mm / self.spacing_mm
        seen = self.masks[session]
        share = np.clip(0.5 + (bounded_logit(u) - VISIBLE_LOGIT) * slope, 0, 1)
        share = np.where(self.tissue.held, share, 0)
        voxel_ml = self.spacing_mm**3 / 1000
        pred_ml, seen_ml = float(share.sum()) * voxel_ml, float(seen.sum()) * voxel_ml
        both_ml = float(share[seen].sum()) * voxel_ml
        dice = (2 * both_ml + SMALLEST_ML) / (pred_ml + seen_ml + SMALLEST_ML)
        return float(np.log((pred_ml + SMALLEST_ML) / (seen_ml + SMALLEST_ML))), dice


def _grow(
    growth: Growth,
    u: Float32Array,
    parameters: TumourParameters,
    course: tuple[tuple[int, ...], tuple[str, ...]],
    session: int,
) -> Float32Array:
    """Density at `session` of a course, given that at the session before."""
    days, treatments = course
    return grow_interval(
        growth,
        u,
        parameters,
        start=days[session - 1],
        end=days[session],
        treatment=treatments[session],
        course_start=course_start(days, treatments, session),
    )
