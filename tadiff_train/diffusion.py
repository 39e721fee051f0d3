"""The training loss of TaDiff: weighted noise error, soft Dice and cross-entropy.

The first two are Liu et al. 2025; `loss_config.LossConfig` says what was mended.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from tadiff_rt.schedule import NoiseSchedule
from tadiff_train.loss_config import LOSSES, LossConfig
from tadiff_train.network import NUM_MODALITIES, NUM_SESSIONS, TaDiffNet, without_autocast

__all__ = [
    "LOSSES",
    "Batch",
    "LossConfig",
    "add_noise",
    "hide_sources",
    "is_target",
    "loss_terms",
    "omega",
    "shown",
    "soft_dice_loss",
    "validation_terms",
]

OMEGA_WINDOW = 11
DICE_EPS = 1e-5
MAX_LEVEL_WEIGHT = 100.0
"""Of one noise level, reached at half log-SNR -2.3: beyond, 1 / alpha_bar grows to 24,778."""


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


def omega(masks: Tensor, gain: float = 0.1) -> Tensor:
    """(b, s, h, w) -> (b, 1, h, w): 1 + (n exp(-n)) smoothed, n sessions with tumour at a voxel.

    Liu et al. 2025: between 1.887 where all four sessions have tumour and 5.451 where one has, so
    tissue that changes weighs about three times as much as stable tumour.
    """
    n = masks.sum(1, keepdim=True)
    kernel = torch.full((1, 1, OMEGA_WINDOW, OMEGA_WINDOW), gain, device=n.device, dtype=n.dtype)
    return 1 + F.conv2d(n * torch.exp(-n), kernel, padding=OMEGA_WINDOW // 2)


def soft_dice_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """(b, 4, h, w) -> (b, 4): 1 - 2 sum(p g) / (sum p^2 + sum g^2 + eps), p = sigmoid(logits).

    Milletari et al. 2016. An empty mask gives 1 with zero gradient whatever the prediction.
    """
    p = torch.sigmoid(logits)
    overlap = 2 * (p * masks).sum((2, 3))
    return 1 - overlap / ((p**2).sum((2, 3)) + (masks**2).sum((2, 3)) + DICE_EPS)


def is_target(batch: Batch) -> Tensor:
    """(b, 4) bool: the slot to predict; -1 is the last."""
    slots = torch.arange(NUM_SESSIONS, device=batch.target.device)
    return slots == (batch.target % NUM_SESSIONS)[:, None]


def shown(batch: Batch) -> Tensor:
    """(b, 4) bool: the target, and the sources unless slots 2 and 3 share a day."""
    same_day = batch.days[:, 2] == batch.days[:, 3]
    return is_target(batch) | ~same_day[:, None]


def hide_sources(batch: Batch) -> Batch:
    """Zeroes images and masks of all slots but the target where slots 2 and 3 share a day.

    The published unconditional training: such an item must segment and denoise the target alone.
    """
    keep = shown(batch).to(batch.images.dtype)
    return Batch(
        images=batch.images * keep[:, :, None, None, None],
        masks=batch.masks * keep[:, :, None, None],
        days=batch.days,
        treatments=batch.treatments,
        target=batch.target,
    )


@lru_cache(maxsize=8)
def _alphas_cumprod(schedule: NoiseSchedule, device: torch.device) -> Tensor:
    """(T,) float64, copied to the device once: a copy in every step would wait for it."""
    return torch.tensor(schedule.alphas_cumprod, device=device)


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
    """Loss of one batch and its parts: "loss", "noise", "noise_mse", "dice", and "bce" if weighed.

    Under autocast the network runs in low precision and the loss in fp32. On a GPU nothing waits
    for the device, but for the first call with a schedule, which copies its table there.

    Args:
        t: (b,) int64 trained timesteps, 1 ... T, on the device of the batch.
        noise: (b, 3, h, w) standard normal.

    Returns:
        Scalars. "noise" is the omega-weighted squared error, "noise_mse" the plain one.

    Raises:
        IndexError: t is not in 1 ... T; on a GPU a device-side assertion.
    """
    batch = hide_sources(batch)
    # index_select: t = 0 would be the last entry to plain indexing.
    alpha_bar = _alphas_cumprod(schedule, t.device).index_select(0, t - 1)
    x = add_noise(batch.images, batch.target, noise, alpha_bar)
    y = net(x.flatten(1, 2), t.float(), batch.days, batch.treatments, batch.target)
    with without_autocast(y.device):
        y = y.to(torch.promote_types(y.dtype, torch.float32))
        logits, eps = y[:, :NUM_SESSIONS], y[:, -NUM_MODALITIES:]
        squared = (eps - noise) ** 2
        weighted = (_noise_weight(batch, alpha_bar.to(y.dtype), config) * squared).mean()
        weight = _mask_weight(batch, alpha_bar.to(y.dtype), config)
        dice = (weight * soft_dice_loss(logits, batch.masks)).mean()
        loss = weighted + config.dice_weight * dice
        terms = {"noise": weighted, "noise_mse": squared.mean(), "dice": dice}
        if config.bce_weight:
            bce = F.binary_cross_entropy_with_logits(logits, batch.masks, reduction="none")
            terms["bce"] = (weight * bce.mean((2, 3))).mean()
            loss = loss + config.bce_weight * terms["bce"]
    return {"loss": loss, **terms}


def _noise_weight(batch: Batch, alpha_bar: Tensor, config: LossConfig) -> Tensor:
    """(b, 1, h, w) or (b, 1, 1, 1): omega of the masks that count, times that of the level."""
    level = torch.ones_like(alpha_bar)
    if config.levels == "velocity":
        level = (1 / alpha_bar).clamp(max=MAX_LEVEL_WEIGHT)
    level = level[:, None, None, None]
    if config.omega_masks == "none":
        return level
    masks = batch.masks
    if config.omega_masks == "sources":
        masks = masks * ~is_target(batch)[:, :, None, None]
    return level * omega(masks, config.omega_gain)


def _mask_weight(batch: Batch, alpha_bar: Tensor, config: LossConfig) -> Tensor:
    """(b, 4) weight of each slot in the mean over all b x 4 of them; 0 where it is hidden."""
    # The target is drawn from noise: how well it can be segmented grows as sqrt(alpha_bar).
    weight = torch.where(is_target(batch), alpha_bar.sqrt()[:, None], 1.0) * shown(batch)
    if config.mask_mean == "shown":
        weight = weight * NUM_SESSIONS / shown(batch).sum(1, keepdim=True)
    return weight


@torch.no_grad()
def validation_terms(
    net: TaDiffNet,
    batch: Batch,
    schedule: NoiseSchedule,
    config: LossConfig,
    *,
    num_times: int = 8,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Means of `loss_terms` at fixed timesteps and with fixed noise: a loss to compare weights by.

    The published criterion draws timesteps and noise anew each time, and the loss depends on both:
    the weights it keeps may be those with lucky draws. Here 1 ... T is cut into `num_times` equal
    parts, each seen at its middle.

    Args:
        seed: of the noise, which is drawn on the CPU and so is the same on every device; another
            one for each batch. The network is left in the mode it is in; set `net.eval()`.
    """
    (b, _, m, h, w), device = batch.images.shape, batch.images.device
    rng = torch.Generator().manual_seed(seed)
    total: dict[str, Tensor] = {}
    for k in range(num_times):
        middle = int((k + 0.5) * schedule.num_train_timesteps / num_times) + 1
        t = torch.full((b,), middle, device=device)
        noise = torch.randn(b, m, h, w, generator=rng).to(device)
        for name, value in loss_terms(net, batch, t, noise, schedule, config).items():
            total[name] = total.get(name, torch.zeros_like(value)) + value / num_times
    return total
