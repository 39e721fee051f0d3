"""Weights of the training loss: what was published, and what each change of it mends."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

from tadiff_rt.errors import UsageError

OmegaMasks = Literal["all", "sources", "none"]
MaskMean = Literal["entries", "shown"]
Levels = Literal["noise", "velocity"]


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """loss = mean(omega (eps_hat - eps)^2) + dice_weight dice + bce_weight cross-entropy.

    Every default mends a defect of the published loss, or says why the published value stays.
    """

    dice_weight: float = 0.02
    """Lambda. The paper has 0.01 of a loss summed over the slots, the published code takes the
    mean of four slots and its config leaves the weight out, which ends the run."""
    bce_weight: float = 0.1
    """Weight of voxel-wise cross-entropy; published: 0. The Dice of an empty mask has no gradient,
    so Dice alone never penalises a tumour drawn on a tumour-free slice. Cross-entropy does, is
    least at the true probability (Dice is not: it rewards masks pushed to 0 or 1), and is a mean
    over windows, so that processes and accumulated passes add up to the whole batch. Dice over
    the batch instead would need no weight, but does nothing in a batch without tumour."""
    omega_masks: OmegaMasks = "sources"
    """The masks whose tumour makes the noise error of a voxel count more; published: "all".

    The weighted error is least at E[omega eps | x_t] / E[omega | x_t]. The target's mask is not
    known from x_t, so with "all" this is not the mean that sampling needs: tissue turns tumour as
    if its odds were up to 5.45 times as high (tumour in no source), and stays tumour as if they
    were down to 0.67 times as high (in three). Weights that the sources determine cancel."""
    omega_gain: float = 0.1
    """Entry of the 11 x 11 kernel that smooths omega, which so sums to 12.1 and not to 1. Kept:
    the weights between 1.887 and 5.451 which the paper states need it; with 1 / 121 they stay
    below 1.37 and hardly weigh."""
    mask_mean: MaskMean = "shown"
    """Dice and cross-entropy over the slots of a window: the mean of those "shown", or, as
    published, a fourth of their sum, in which a window with hidden sources counts a fourth. Both
    then take the mean over windows, never over slots of a batch, for the reason above."""

    levels: Levels = "noise"
    """Noise levels weigh alike in the error of "noise", as published, or of "velocity": 1 /
    alpha_bar times as much, at most 100 (Salimans and Ho 2022, section 4). An error of eps is
    sqrt(1 - alpha_bar) / sqrt(alpha_bar) times as large in the image: at half log-SNR -2 the noise
    error may be 0.001 of its scale and the image wrong by 0.2, and that is where a forecast
    decides on brightness and growth."""

    def __post_init__(self) -> None:
        for name, allowed in (
            ("omega_masks", OmegaMasks),
            ("mask_mean", MaskMean),
            ("levels", Levels),
        ):
            if (value := getattr(self, name)) not in get_args(allowed):
                names = ", ".join(get_args(allowed))
                raise UsageError("TD3034", f"{name} must be one of {names}, got {value!r}")


LOSSES: Mapping[str, LossConfig] = MappingProxyType(
    {
        "published": LossConfig(
            dice_weight=0.01, bce_weight=0.0, omega_masks="all", mask_mean="entries"
        ),
        "calibrated": LossConfig(omega_masks="all", mask_mean="entries"),
        "unbiased": LossConfig(),
        "velocity": LossConfig(levels="velocity"),
    }
)
"""The paper's loss; the same with masks that are probabilities; the default, which also predicts
the mean noise that a sampler takes a prediction for; and that with every noise level as important
as it is to the image."""
