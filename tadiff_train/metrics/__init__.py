"""How far a forecast is from what came, whether its spread is right, and means over patients."""

from tadiff_train.metrics.bootstrap import Interval, bootstrap_interval
from tadiff_train.metrics.calibration import (
    BrierScore,
    Reliability,
    brier,
    brier_from_reliability,
    merge,
    reliability,
)
from tadiff_train.metrics.ensembles import (
    SpreadSkill,
    coverage,
    crps,
    crps_gaussian,
    quantile_interval,
    rank_flatness,
    rank_histogram,
    spread_skill,
)
from tadiff_train.metrics.images import Mask, mae, psnr, ssim
from tadiff_train.metrics.masks import absolute_volume_error, dice, hd95, signed_volume_error
from tadiff_train.metrics.sparsification import ause

__all__ = [
    "BrierScore",
    "Interval",
    "Mask",
    "Reliability",
    "SpreadSkill",
    "absolute_volume_error",
    "ause",
    "bootstrap_interval",
    "brier",
    "brier_from_reliability",
    "coverage",
    "crps",
    "crps_gaussian",
    "dice",
    "hd95",
    "mae",
    "merge",
    "psnr",
    "quantile_interval",
    "rank_flatness",
    "rank_histogram",
    "reliability",
    "signed_volume_error",
    "spread_skill",
    "ssim",
]
