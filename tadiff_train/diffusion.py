"""The training loss of TaDiff: weighted noise error and soft Dice (Liu et al. 2025)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tadiff_rt.schedule import NoiseSchedule
from tadiff_train.network import NUM_MODALITIES, NUM_SESSIONS, TaDiffNet

OMEGA_WINDOW = 11
OMEGA_GAIN = 0.1
"""The published smoothing kernel is 11 x 11 of 0.1: it sums to 12.1, not to 1."""
DICE_EPS = 1e-5


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the loss terms beside the noise error, whose weight is 1."""

    dice_weight: float = 0.01
    """Lambda of the paper; its published config leaves it out."""
    bce_weight: float = 0.0
    """Weight of voxel-wise cross-entropy. The Dice of an empty mask has no gradient, so without
    this term a tumour drawn on a tumour-free slice is never penalised."""


LOSSES = {
    "published": LossConfig(),
    "calibrated": LossConfig(dice_weight=0.02, bce_weight=0.1),
}


@dataclass(frozen=True)
class Batch:
    """Training windows: four sessions of one slice, in the order of the network's slots."""

    images: Tensor
    """(b, 4, 3, h, w) clean images in [0, 1]."""
    masks: Tensor
    """(b, 4, h, w) tumour, 0 or 1, float."""
    days: Tensor
    """(b, 4) days since the patient's first session."""
    treatments: Tensor
    """(b, 4) treatment codes."""
    target: Tensor
    """(b,) int64: the slot to predict."""


def omega(masks: Tensor) -> Tensor:
    """(b, 4, h, w) -> (b, 1, h, w): 1 + (n exp(-n)) smoothed, n sessions with tumour at a voxel.

    Liu et al. 2025: between 1.887 where all four sessions have tumour and 5.451 where one has, so
    tissue that changes weighs about three times as much as stable tumour.
    """
    n = masks.sum(1, keepdim=True)
    kernel = torch.full(
        (1, 1, OMEGA_WINDOW, OMEGA_WINDOW), OMEGA_GAIN, device=n.device, dtype=n.dtype
    )
    return 1 + F.conv2d(n * torch.exp(-n), kernel, padding=OMEGA_WINDOW // 2)


def soft_dice_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """(b, 4, h, w) -> (b, 4): 1 - 2 sum(p g) / (sum p^2 + sum g^2 + eps), p = sigmoid(logits).

    Milletari et al. 2016. An empty mask gives 1 with zero gradient whatever the prediction.
    """
    p = torch.sigmoid(logits)
    overlap = 2 * (p * masks).sum((2, 3))
    return 1 - overlap / ((p**2).sum((2, 3)) + (masks**2).sum((2, 3)) + DICE_EPS)


def hide_sources(batch: Batch) -> Batch:
    """Zeroes images and masks of all slots but the target where slots 2 and 3 share a day.

    The published unconditional training: such an item must segment and denoise the target alone.
    """
    same_day = batch.days[:, 2] == batch.days[:, 3]
    slots = torch.arange(NUM_SESSIONS, device=same_day.device)
    is_target = slots == (batch.target % NUM_SESSIONS)[:, None]
    keep = (is_target | ~same_day[:, None]).to(batch.images.dtype)
    return Batch(
        images=batch.images * keep[:, :, None, None, None],
        masks=batch.masks * keep[:, :, None, None],
        days=batch.days,
        treatments=batch.treatments,
        target=batch.target,
    )


def add_noise(images: Tensor, target: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """(b, 4, 3, h, w) with the target slot replaced by x_t: Ho et al. 2020, Eq. 4."""
    rows = torch.arange(len(images), device=images.device)
    a = alpha_bar.to(images.dtype)[:, None, None, None]
    x_t = a.sqrt() * images[rows, target] + (1 - a).sqrt() * noise
    return images.index_put((rows, target), x_t)


def loss_terms(
    net: TaDiffNet,
    batch: Batch,
    t: Tensor,
    noise: Tensor,
    schedule: NoiseSchedule,
    config: LossConfig,
) -> dict[str, Tensor]:
    """Loss of one batch and its parts: "loss", "noise", "dice", "bce", "noise_mse".

    Args:
        t: (b,) int64 trained timesteps, 1 ... T.
        noise: (b, 3, h, w) standard normal.

    Returns:
        Scalars. "noise" is the omega-weighted squared error, "noise_mse" the plain one.
    """
    batch = hide_sources(batch)
    alpha_bar = torch.as_tensor(schedule.alpha_bar(t.numpy()), dtype=torch.float32)
    x = add_noise(batch.images, batch.target, noise, alpha_bar)
    y = net(x.flatten(1, 2), t.float(), batch.days, batch.treatments, batch.target)
    logits, eps = y[:, :NUM_SESSIONS], y[:, -NUM_MODALITIES:]
    squared = (eps - noise) ** 2
    weighted = (omega(batch.masks) * squared).mean()

    slots = torch.arange(NUM_SESSIONS)
    is_target = slots == (batch.target % NUM_SESSIONS)[:, None]
    hidden = (batch.days[:, 2] == batch.days[:, 3])[:, None] & ~is_target
    # The target is drawn from noise: how well it can be segmented grows as sqrt(alpha_bar).
    weight = torch.where(is_target, alpha_bar.sqrt()[:, None], 1.0) * (~hidden)
    dice = (weight * soft_dice_loss(logits, batch.masks)).mean()
    loss = weighted + config.dice_weight * dice
    terms = {"noise": weighted, "noise_mse": squared.mean(), "dice": dice}
    if config.bce_weight:
        bce = F.binary_cross_entropy_with_logits(logits, batch.masks, reduction="none")
        terms["bce"] = (weight * bce.mean((2, 3))).mean()
        loss = loss + config.bce_weight * terms["bce"]
    return {"loss": loss, **terms}
