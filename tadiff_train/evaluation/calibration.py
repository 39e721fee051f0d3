"""Whether the spread of one patient's ensemble says how far it is off."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tadiff_rt.case import MODALITIES
from tadiff_rt.volume import volume_interval
from tadiff_train.evaluation.forecasts import Prediction
from tadiff_train.evaluation.patients import Float32Array, Patient
from tadiff_train.metrics import (
    Reliability,
    SpreadSkill,
    ause,
    reliability,
    spread_skill,
)

LEVELS = (0.5, 0.8, 0.9)
"""Of the intervals of the volume that are checked."""
SPREAD_BINS = 10


@dataclass(frozen=True)
class VolumeInterval:
    """Where the volume of one further draw lies with probability `level`, in ml."""

    level: float
    low_ml: float
    high_ml: float
    covered: bool
    """The true volume lies inside it."""


@dataclass(frozen=True, eq=False)
class ImageCalibration:
    """One modality, over the brain of the evaluated slices."""

    spread_skill: SpreadSkill
    ause: float | None
    """Of the standard deviation, for the absolute error of the mean; None if errors are equal."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """What the ensemble of one patient says of its own error."""

    tumour: Reliability
    """Of the tumour probability, over the brain of the evaluated slices."""
    tumour_ause: float | None
    """Of the entropy of that probability, for its squared error."""
    samples_ml: tuple[float, ...]
    """Tumour volume of every sample."""
    intervals: tuple[VolumeInterval, ...]
    """Of LEVELS; none for a single sample."""
    images: dict[str, ImageCalibration]
    """By modality; none for a single sample."""


def calibrate(patient: Patient, said: Prediction) -> Calibration:
    """What the ensemble of the treatment that was given says of its own error."""
    brain, true = patient.brain, patient.true_tumour
    p = said.probability.astype(np.float64)
    images = {}
    if said.std is not None and said.images is not None:
        errors = said.images.astype(np.float64) - patient.true_images
        for m, modality in enumerate(MODALITIES):
            inside = said.std[m][brain], errors[m][brain]
            images[modality] = _calibrate_image(*inside, len(said.volumes_ml))
    return Calibration(
        tumour=reliability(said.probability, true, brain),
        tumour_ause=ause(_entropy(p), (p - true) ** 2, brain),
        samples_ml=said.volumes_ml,
        intervals=volume_intervals(said.volumes_ml, patient.ml(true)),
        images=images,
    )


def volume_intervals(volumes_ml: Sequence[float], true_ml: float) -> tuple[VolumeInterval, ...]:
    """The intervals of LEVELS that the samples give, and whether the truth lies inside them."""
    intervals = []
    for level in LEVELS:
        if found := volume_interval(volumes_ml, level):
            _, low, high = found
            intervals.append(VolumeInterval(level, low, high, low <= true_ml <= high))
    return tuple(intervals)


def _calibrate_image(std: Float32Array, error: np.ndarray, num_samples: int) -> ImageCalibration:
    std = std.astype(np.float64)
    skill = spread_skill(std**2, error**2, num_samples=num_samples, bins=SPREAD_BINS)
    return ImageCalibration(skill, ause(std, np.abs(error)))


def _entropy(p: np.ndarray) -> np.ndarray:
    """Of a yes or no with probability p, in bits; 0 where it is certain."""
    inside = np.clip(p, 1e-12, 1 - 1e-12)  # where the entropy is 0 to ten digits
    bits = -inside * np.log2(inside) - (1 - inside) * np.log2(1 - inside)
    return np.where((p > 0) & (p < 1), bits, 0)
