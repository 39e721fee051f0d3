"""How far what one method says of one patient is from what came."""

from dataclasses import dataclass

import numpy as np

from tadiff_rt.case import MODALITIES
from tadiff_rt.volume import fair_crps
from tadiff_train.evaluation.forecasts import Prediction
from tadiff_train.evaluation.patients import Patient
from tadiff_train.metrics import (
    Mask,
    absolute_volume_error,
    brier_from_reliability,
    dice,
    hd95,
    mae,
    psnr,
    reliability,
    signed_volume_error,
    ssim,
)


@dataclass(frozen=True)
class ImageScore:
    """By modality, inside the brain of the evaluated slices, images in [0, 1]."""

    ssim: dict[str, float]
    """The mean over slices of the mean over the brain."""
    psnr: dict[str, float]
    """In dB, from the mean squared error over all brain voxels; inf for equal images."""
    mae: dict[str, float]


@dataclass(frozen=True)
class Score:
    """One method on one patient, over the evaluated slices; masks are of the target alone."""

    dice: float | None
    """Of the tumour, over all evaluated slices as one volume; None without any tumour."""
    hd95_mm: float | None
    """95 % Hausdorff distance in three dimensions; None where one of the two is empty."""
    volume_ml: float
    signed_error_ml: float
    absolute_error_ml: float
    crps_ml: float
    """Fair CRPS of the volumes of the samples; of one volume, its absolute error."""
    brier: float
    """Mean squared difference of tumour probability and truth over the brain."""
    ece: float
    """Expected calibration error of the tumour probability over the brain, ten bins."""
    change_dice: float | None
    """Dice of the voxels said to differ from the last mask and those that do; a copy has 0."""
    change_recall: float | None
    """Share of the voxels which differ from the last mask that the forecast has right."""
    images: ImageScore | None
    """None of a method without images."""


def score(patient: Patient, said: Prediction) -> Score:
    """Scores what a method says of the evaluated slices."""
    true, last, tumour = patient.true_tumour, patient.last_tumour, said.tumour
    changed = true ^ last
    pred_ml, true_ml = patient.ml(tumour), patient.ml(true)
    curve = reliability(said.probability, true, patient.brain)
    slices_mm, rows_mm, columns_mm = patient.spacing_mm
    return Score(
        dice=dice(tumour, true),
        hd95_mm=hd95(
            patient.stacked(tumour),
            patient.stacked(true),
            (slices_mm * patient.slice_step, rows_mm, columns_mm),
        ),
        volume_ml=pred_ml,
        signed_error_ml=signed_volume_error(pred_ml, true_ml),
        absolute_error_ml=absolute_volume_error(pred_ml, true_ml),
        crps_ml=volume_crps(said.volumes_ml, true_ml),
        brier=brier_from_reliability(curve).score,
        ece=curve.ece,
        change_dice=dice(tumour ^ last, changed),
        change_recall=float((tumour == true)[changed].mean()) if changed.any() else None,
        images=_score_images(patient, said),
    )


def volume_crps(volumes_ml: tuple[float, ...], true_ml: float) -> float:
    """Fair CRPS of samples; of a single number, the CRPS of being sure of it: the absolute error.

    Gneiting and Raftery 2007, section 4.2.
    """
    if len(volumes_ml) == 1:
        return absolute_volume_error(volumes_ml[0], true_ml)
    return fair_crps(volumes_ml, true_ml)


def _score_images(patient: Patient, said: Prediction) -> ImageScore | None:
    if said.images is None:
        return None
    brain, truth = patient.brain, patient.true_images
    pairs = dict(zip(MODALITIES, zip(said.images, truth, strict=True), strict=True))
    return ImageScore(
        ssim={m: _mean_ssim(a, b, brain) for m, (a, b) in pairs.items()},
        psnr={m: psnr(a, b, brain) for m, (a, b) in pairs.items()},
        mae={m: mae(a, b, brain) for m, (a, b) in pairs.items()},
    )


def _mean_ssim(a: np.ndarray, b: np.ndarray, brain: Mask) -> float:
    return float(np.mean([ssim(*row) for row in zip(a, b, brain, strict=True)]))
