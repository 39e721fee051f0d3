"""Results of patients that nobody forecast, to compare and to draw."""

import numpy as np

from tadiff_train.evaluation import PatientResult
from tadiff_train.evaluation.calibration import Calibration, ImageCalibration, volume_intervals
from tadiff_train.evaluation.results import GrowthResult, Plan
from tadiff_train.evaluation.scores import ImageScore, Score
from tadiff_train.metrics import reliability, spread_skill

MODALITIES = ("t1", "t1c", "flair")


def score(dice: float | None, psnr: float = 20.0, mae: float = 0.1, **more) -> Score:
    images = ImageScore(
        ssim=dict.fromkeys(MODALITIES, 0.5),
        psnr=dict.fromkeys(MODALITIES, psnr),
        mae=dict.fromkeys(MODALITIES, mae),
    )
    known = {
        "dice": dice,
        "hd95_mm": 3.0,
        "volume_ml": 5.0,
        "signed_error_ml": -1.0,
        "absolute_error_ml": 1.0,
        "crps_ml": 0.75,
        "brier": 0.02,
        "ece": 0.01,
        "change_dice": 0.25,
        "change_recall": 0.5,
        "images": images,
    }
    return Score(**(known | more))


def calibration(
    samples_ml: tuple[float, ...] = (4.0, 5.0, 6.5), true_ml: float = 6.0
) -> Calibration:
    rng = np.random.default_rng(0)
    p, variance = rng.random(200), rng.random(200) / 100
    images = {}
    if len(samples_ml) > 1:
        skill = spread_skill(variance, 2 * variance, num_samples=len(samples_ml))
        images = {m: ImageCalibration(skill, 0.25) for m in MODALITIES}
    intervals = volume_intervals(samples_ml, true_ml)
    return Calibration(reliability(p, rng.random(200) < p), 0.125, samples_ml, intervals, images)


def patient(i: int, model: Score, copy: Score, growth: Score | None = None, **more):
    """Number `i`; with a growth baseline if its score is given."""
    known = {
        "name": f"sub-{i:03d}",
        "treatment": "TMZ" if i % 2 else "none",
        "target_day": 200,
        "horizon_days": 30 if i < 4 else 90,
        "num_sources": 3,
        "extrapolated": False,
        "slices": (4, 5, 6),
        "slice_step": 1,
        "true_ml": 6.0,
        "unforecast_ml": 0.0,
        "growth": GrowthResult(growth, {}, (), "") if growth else None,
        "calibration": calibration(),
    }
    return PatientResult(model=model, copy=copy, **(known | more))


def plan(treatment: str, true_ml: float, model_ml: float, growth_ml: float | None = None) -> Plan:
    return Plan(treatment, true_ml, model_ml, 0.5, growth_ml, None if growth_ml is None else 0.75)
