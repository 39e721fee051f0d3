"""How far a forecast is from what came: images, masks, volumes, and means over patients."""

from tadiff_train.metrics.bootstrap import Interval, bootstrap_interval
from tadiff_train.metrics.images import Mask, mae, psnr, ssim
from tadiff_train.metrics.masks import absolute_volume_error, dice, signed_volume_error

__all__ = [
    "Interval",
    "Mask",
    "absolute_volume_error",
    "bootstrap_interval",
    "dice",
    "mae",
    "psnr",
    "signed_volume_error",
    "ssim",
]
