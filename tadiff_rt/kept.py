"""Tumour probabilities of single samples, kept small so that two forecasts can be compared.

A probability is kept as a whole number of 1/255. Of a difference of two, rounding moves the mean
over samples by less than 0.004 and is far below any spread that matters; where both forecasts
have as many samples, the mean is taken from the exact ones. Most voxels hold no tumour and
compress to little.
"""

import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEVELS = 255

Packed = bytes
"""One sample of one slice."""


def pack(probability: ArrayLike) -> Packed:
    """A sample's probabilities (h, w), each in [0, 1], rounded to 1/255."""
    levels = np.rint(np.asarray(probability) * LEVELS).astype(np.uint8)
    return zlib.compress(levels.tobytes(), 1)


def unpack(sample: Packed, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """The probabilities of a kept sample."""
    levels = np.frombuffer(zlib.decompress(sample), np.uint8).reshape(shape)
    return levels.astype(np.float32) / np.float32(LEVELS)


def as_array(samples: Sequence[Packed], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """(n, h, w) of all kept samples of a slice, in units of 1/255, for a file."""
    levels = [np.frombuffer(zlib.decompress(sample), np.uint8) for sample in samples]
    return np.array(levels, np.uint8).reshape(len(samples), *shape)


def from_array(levels: NDArray[np.uint8]) -> list[Packed]:
    """The samples that `as_array` gave."""
    return [zlib.compress(sample.tobytes(), 1) for sample in levels]


def paired_std(
    samples: Sequence[Packed], others: Sequence[Packed], shape: tuple[int, ...]
) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    """Mean and unbiased standard deviation over k of sample k minus other k.

    Samples without a partner are left out. Welford's recurrence, as in `SliceStatistics`.

    Returns:
        Two arrays of `shape`; None for the deviation of a single pair.
    """
    mean, squares, count = np.zeros(shape), np.zeros(shape), 0
    for a, b in zip(samples, others, strict=False):
        count += 1
        apart = unpack(a, shape) - unpack(b, shape).astype(np.float64)
        before = apart - mean
        mean += before / count
        squares += before * (apart - mean)
    return mean, np.sqrt(squares / (count - 1)) if count > 1 else None
