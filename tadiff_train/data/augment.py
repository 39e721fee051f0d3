"""Augmentation of training windows: left-right flip, small affine map, intensities.

All sessions, modalities and masks of a window move by one transform, so that they stay registered
and a tumour's growth between them stays what it was.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How far a window may be changed. Every limit of 0 leaves its property alone.

    A flip and small rotations and shifts keep volumes. Scaling by s changes every volume by s^2
    while days and treatments stay, so a speed of growth in voxels a day changes by s as well: keep
    `max_scale` within the spread of head sizes.
    """

    flip_probability: float = 0.0
    """Of left and right exchanged: brains are nearly symmetric."""
    affine_probability: float = 0.0
    """Of the affine map. Below 1: every interpolation blurs a little, and the network should also
    see tissue as it was scanned."""
    max_rotation_deg: float = 0.0
    max_scale: float = 0.0
    """Lengths change by a factor in 1 / (1 + max_scale) to 1 + max_scale, even in logarithm."""
    max_shift: float = 0.0
    """As a fraction of the window's edge, along each axis."""
    max_gain: float = 0.0
    """Intensities change by a factor in 1 - max_gain to 1 + max_gain, and by no more than leaves
    the brightest voxel at 1: enhancing tumour is the brightest tissue and must not saturate."""
    max_log_gamma: float = 0.0
    """Intensities are raised to a power in exp(-max_log_gamma) to exp(max_log_gamma)."""


AUGMENTS: Mapping[str, AugmentConfig] = MappingProxyType(
    {
        "none": AugmentConfig(),
        "flip": AugmentConfig(flip_probability=0.5),
        "full": AugmentConfig(
            flip_probability=0.5,
            affine_probability=0.5,
            max_rotation_deg=10.0,
            max_scale=0.05,
            max_shift=0.05,
            max_gain=0.1,
            max_log_gamma=0.1,
        ),
    }
)
"""Presets. "full" scales areas by at most 1.05^2, about 10 %."""


@dataclass(frozen=True)
class Affine:
    """A map of the plane: p -> scale R(angle) (p - centre) + centre + shift, in voxels.

    Points are (row, column), the centre is that of the window, and R turns rows towards columns:
    R = [[cos, -sin], [sin, cos]].
    """

    angle: float = 0.0
    """Radians."""
    scale: float = 1.0
    shift: tuple[float, float] = (0.0, 0.0)

    def linear(self) -> NDArray[np.float64]:
        """(2, 2): scale R(angle)."""
        c, s = math.cos(self.angle), math.sin(self.angle)
        return self.scale * np.array([[c, -s], [s, c]])


def augment(
    images: NDArray[np.float32],
    masks: NDArray[np.bool_],
    rng: np.random.Generator,
    config: AugmentConfig,
    *,
    target: int | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """A window at random nearby: a function of the arguments and the state of `rng`.

    The same numbers are drawn from `rng` whatever the config is.

    Args:
        images: (s, m, h, w) in [0, 1], background exactly 0. Axis -1 runs right to left.
        masks: (s, h, w) tumour.
        target: slot that keeps its intensities. No source tells how the target's were changed, so
            a network would learn the change as spread of its forecast. None changes all.

    Returns:
        Images in [0, 1] with background exactly 0, and masks. The inputs are not modified; what
        the config leaves alone is returned as it came, and may be the input itself.
    """
    flip, moves = rng.random(2)
    place = rng.random(4)
    gain, gamma = rng.uniform(-1, 1, (2, *images.shape[:2]))
    if flip < config.flip_probability:
        images = np.ascontiguousarray(images[..., ::-1])
        masks = np.ascontiguousarray(masks[..., ::-1])
    if moves < config.affine_probability:
        images, masks = move(images, masks, draw_affine(images, place, config))
    if target is not None:
        gain[target] = gamma[target] = 0
    if config.max_gain or config.max_log_gamma:
        factor, power = 1 + config.max_gain * gain, np.exp(config.max_log_gamma * gamma)
        images = change_intensities(images, factor, power)
    return images, masks


def draw_affine(
    images: NDArray[np.float32], uniform: NDArray[np.float64], config: AugmentConfig
) -> Affine:
    """The map that four numbers in [0, 1) stand for, held back so that tissue stays in the window.

    Tissue is what is not 0 in any image. Where it would not fit, the scale falls until it does,
    but not below 1 / (1 + max_scale); then the shift is drawn from those that keep it inside, if
    need be from beyond `max_shift`. What still does not fit is centred: a brain as large as its
    window loses, on each side, half of what the rotation adds to its extent.
    """
    angle = math.radians(config.max_rotation_deg) * (2 * uniform[0] - 1)
    log_scale = math.log1p(config.max_scale)
    scale = math.exp(log_scale * (2 * uniform[1] - 1))
    half = (np.array(images.shape[-2:]) - 1) / 2
    low, high = _extent(images, Affine(angle))
    size = np.maximum(high - low, 1e-9)
    scale = max(min(scale, float((2 * half / size).min())), math.exp(-log_scale))
    inside = np.stack([-half - scale * low, half - scale * high])  # shifts that keep all tissue
    inside = np.where(inside[0] > inside[1], inside.mean(axis=0), inside)
    reach = config.max_shift * np.array(images.shape[-2:])
    first, last = np.clip(np.stack([-reach, reach]), *inside)
    dy, dx = first + (last - first) * uniform[2:]
    return Affine(angle, scale, (float(dy), float(dx)))


def _extent(
    images: NDArray[np.float32], affine: Affine
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lowest and highest (row, column) of moved tissue, from the centre; of none, the centre."""
    tissue: NDArray[np.bool_] = np.any(images > 0, axis=(0, 1))
    rows = np.flatnonzero(tissue.any(axis=1))
    if not len(rows):
        return np.zeros(2), np.zeros(2)
    # A linear map takes its extremes at the hull's corners, which are ends of rows.
    left = tissue[rows].argmax(axis=1)
    right = tissue.shape[1] - 1 - tissue[rows, ::-1].argmax(axis=1)
    ends = np.concatenate([np.stack([rows, left], 1), np.stack([rows, right], 1)])
    moved = (ends - (np.array(tissue.shape) - 1) / 2) @ affine.linear().T
    return moved.min(axis=0), moved.max(axis=0)


def move(
    images: NDArray[np.float32], masks: NDArray[np.bool_], affine: Affine
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """The window with a map applied: what was at p is at affine(p).

    Images by cubic convolution (Keys 1981), which keeps texture that linear interpolation blurs,
    over tissue alone: the weights of background are left out, so that the edge of a stripped brain
    stays sharp and does not turn grey; a voxel is tissue where at least half of the weight is.
    Masks by linear interpolation and, for each, the threshold that keeps its scaled area: at 1/2
    small tumours would shrink, and growth would look other than it was.
    """
    (s, m, h, w), area = images.shape, affine.scale**2
    grid = _sampling_grid(affine, h, w)
    value = torch.from_numpy(np.ascontiguousarray(images))
    tissue = (value > 0).any(dim=1, keepdim=True).float()
    stack = torch.cat([value, tissue], 1).reshape(1, s * (m + 1), h, w)
    moved = F.grid_sample(stack, grid, mode="bicubic", align_corners=True).reshape(s, m + 1, h, w)
    weight = moved[:, m:]
    result = torch.where(weight >= 0.5, moved[:, :m] / weight.clamp(min=0.5), 0.0).clamp(0, 1)
    share = torch.from_numpy(np.ascontiguousarray(masks, dtype=np.float32))[None]
    share = F.grid_sample(share, grid, mode="bilinear", align_corners=True)[0]
    kept = [
        _largest(a, round(area * int(b.sum()))) for a, b in zip(share.numpy(), masks, strict=True)
    ]
    return result.numpy(), np.stack(kept)


def _sampling_grid(affine: Affine, h: int, w: int) -> Tensor:
    """(1, h, w, 2): where each voxel comes from, as (x, y) in [-1, 1] between outer centres."""
    back = np.linalg.inv(affine.linear())
    half = np.array([(h - 1) / 2, (w - 1) / 2])
    theta = np.column_stack([back * half / half[:, None], -(back @ affine.shift) / half])
    theta = theta[::-1][:, [1, 0, 2]]  # (row, column) to (x, y)
    return F.affine_grid(
        torch.tensor(theta[None], dtype=torch.float32), [1, 1, h, w], align_corners=True
    )


def _largest(share: NDArray[np.float32], count: int) -> NDArray[np.bool_]:
    """The `count` largest of those above 0; ties of the last one count as well."""
    above = share[share > 0]
    if not count or not len(above):
        return np.zeros(share.shape, np.bool_)
    count = min(count, len(above))
    least = np.partition(above, len(above) - count)[len(above) - count]
    return np.asarray(share >= least)


def change_intensities(
    images: NDArray[np.float32], factor: NDArray[np.float64], power: NDArray[np.float64]
) -> NDArray[np.float32]:
    """(s, m, h, w) in [0, 1] -> factor v^power, factor lowered to keep the brightest voxel <= 1.

    `factor` and `power` are (s, m). 0 stays 0; where they are 1 nothing changes, to the bit.
    """
    v = torch.from_numpy(np.ascontiguousarray(images))
    changed = v.pow(torch.from_numpy(power).float()[:, :, None, None])
    brightest = changed.amax((2, 3)).clamp(min=1e-6)
    gain = torch.minimum(torch.from_numpy(factor).float(), 1 / brightest)
    return (changed * gain[:, :, None, None]).clamp(max=1).numpy()
