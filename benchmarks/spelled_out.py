"""Formulas of the sampling loop as a reader of the papers would write them.

Every intermediate result is a fresh array. The same lines run on numpy arrays and torch tensors
where it says so.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tadiff_rt.plan import SolverPlan

X0_RANGE = (0.0, 1.0)

Array = Any
"""A numpy array or a torch tensor."""


def spelled_out_steps(plan: SolverPlan, x: Array, eps: Array, noise: Array) -> Array:
    """All rows of a plan with one noise estimate, and one draw of fresh noise."""
    earlier: list[Array] = []
    for row in plan.table.tolist():
        _, alpha, sigma, coef_x, coef_x0, *coef_earlier, coef_noise, _ = row
        x0 = ((x - sigma * eps) / alpha).clip(*X0_RANGE)
        x = coef_x * x + coef_x0 * x0
        for coef, estimate in zip(coef_earlier, earlier, strict=False):
            x = x + coef * estimate if coef else x
        x = x + coef_noise * noise if coef_noise else x
        earlier = [x0, *earlier[:2]]
    return x


def spelled_out_noise(
    seed: int, keys: Sequence[tuple[int, int]], step: int, shape: tuple[int, ...]
) -> NDArray[np.float32]:
    """The definition in `tadiff_rt.noise`, for all rows at once."""
    size = math.prod(shape)
    low = np.uint64(0xFFFFFFFF)
    blocks = np.arange((size + 3) // 4, dtype=np.uint64)
    slices, samples = (np.array(column, np.uint64)[:, None] for column in zip(*keys, strict=True))
    c0, c1, c2, c3 = np.broadcast_arrays(blocks, slices, samples, np.uint64(step))
    k0, k1 = seed % 2**32, seed // 2**32
    for _ in range(10):
        p0, p1 = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c1 = (p1 >> np.uint64(32)) ^ c1 ^ np.uint64(k0), p1 & low
        c2, c3 = (p0 >> np.uint64(32)) ^ c3 ^ np.uint64(k1), p0 & low
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    normals: list[NDArray[np.float64]] = []
    for w, v in ((c0, c1), (c2, c3)):
        radius = np.sqrt(-2 * np.log((w + 1.0) * 2.0**-32))
        angle = 2 * np.pi * (v * 2.0**-32)
        normals += [radius * np.cos(angle), radius * np.sin(angle)]
    values = np.stack(normals, axis=-1).reshape(len(keys), -1)
    return values[:, :size].reshape(len(keys), *shape).astype(np.float32)


def spelled_out_statistics(images: NDArray[Any], logits: NDArray[Any]) -> tuple[Array, ...]:
    """Of all samples at once, which are in memory together; two passes over them."""
    mean = images.mean(axis=0)
    squares = ((images - mean) ** 2).sum(axis=0)
    pairs = np.abs(np.diff(images, axis=0)).sum(axis=0)
    probability = 1 / (1 + np.exp(-logits))
    mask = probability > 0.5
    areas, overlaps = mask.sum(axis=(1, 2)), (mask[1:] & mask[:-1]).sum(axis=(1, 2))
    return mean, squares, pairs, probability.sum(axis=0), areas, overlaps
