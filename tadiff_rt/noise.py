"""Noise as a function of its identity: z = normal(seed; sample, slice, step), no hidden state.

The same (seed, sample, slice, step) gives the same numbers in any batch, order, process or resumed
run, and `samples=8` extends `samples=4`. This numpy form is the definition; a device form must
give the same 32-bit words exactly and the same floats within 2 ulp.

Words: Philox4x32-10 (Salmon et al. 2011). Key word 0 is the low half of the 64-bit seed, word 1
the high half. Counter words 0 … 3 are (block, slice, sample, step). Step 0 is the initial noise
x_T; the noise that solver row i adds is step i + 1. Counters of different draws differ, and Philox
is a bijection of the counter under a fixed key: no two blocks of one seed are equal.

Floats: one block of four words w0 … w3 gives four normals by Box-Muller, (w0, w1) the first two
and (w2, w3) the last two, in float64, rounded once to float32:

    r = sqrt(−2 · log((w0 + 1) · 2^−32))      # (0, 1]: the logarithm is finite, r <= 6.66
    a = (2 · pi) · (w1 · 2^−32)               # [0, 2 pi)
    z0 = r · cos(a),  z1 = r · sin(a)

The product 2 · pi is the double nearest to it, times the exact fraction. Block b fills elements
4b … 4b + 3 of the array in C order; what is left of the last block is dropped.
"""

import math
import operator
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from tadiff_rt.errors import UsageError

INITIAL = 0
"""The `step` of x_T."""

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)


def philox4x32(
    counter: Sequence[NDArray[np.uint32]], key: tuple[int, int]
) -> tuple[NDArray[np.uint32], ...]:
    """Philox4x32-10: Salmon et al. 2011; ten rounds, vectorised over the counters.

    Args:
        counter: words 0 … 3, arrays of shapes that broadcast.
        key: words 0 and 1.

    Returns:
        Four words a counter, in the order of the Random123 library.
    """
    # 64-bit lanes hold the 32-bit words, so that a product keeps its high half.
    c0, c1, c2, c3 = (np.asarray(word).astype(np.uint64) for word in counter)
    k0, k1 = key
    for _ in range(10):
        p0, p1 = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1 = (p1 >> _SHIFT) ^ c1 ^ np.uint64(k0), p1 & _LOW
        c2, c3 = (p0 >> _SHIFT) ^ c3 ^ np.uint64(k1), p0 & _LOW
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return tuple(word.astype(np.uint32) for word in np.broadcast_arrays(c0, c1, c2, c3))


def normal(
    seed: int, sample: int, slice_index: int, step: int, shape: tuple[int, ...]
) -> NDArray[np.float32]:
    """Standard normal noise of one slice of one sample at one step; see the module docstring.

    Args:
        seed: 0 … 2^64 − 1.
        sample: number of the draw in the ensemble.
        slice_index: in the full grid of the volume, so that a run on few slices agrees.
        step: `INITIAL` for x_T, i + 1 for the noise of solver row i.
        shape: of the result. A larger shape starts with the numbers of a smaller one.

    Raises:
        UsageError: the seed or an index is not an integer in its range (TD3017).
    """
    seed = _word("seed", seed, 64)
    blocks = np.arange((math.prod(shape) + 3) // 4, dtype=np.uint32)
    identity = (("slice", slice_index), ("sample", sample), ("step", step))
    rest = [np.array(_word(name, value, 32), dtype=np.uint32) for name, value in identity]
    words = philox4x32((blocks, *rest), (seed & 0xFFFFFFFF, seed >> 32))
    values = np.empty((len(blocks), 4))
    for pair in (0, 2):
        u = (words[pair] + 1.0) * 2.0**-32
        radius = np.sqrt(-2.0 * np.log(u))
        angle = (2.0 * np.pi) * (words[pair + 1] * 2.0**-32)
        values[:, pair] = radius * np.cos(angle)
        values[:, pair + 1] = radius * np.sin(angle)
    return values.ravel()[: math.prod(shape)].reshape(shape).astype(np.float32)


def initial_noise(
    seed: int, rows: Sequence[tuple[int, int]], shape: tuple[int, ...]
) -> NDArray[np.float32]:
    """x_T of a batch: (len(rows), *shape), row k that of the k-th (slice, sample) pair."""
    return _rows(seed, rows, INITIAL, shape)


def step_noise(
    seed: int, rows: Sequence[tuple[int, int]], shape: tuple[int, ...]
) -> Callable[[int], NDArray[np.float32]]:
    """The `noise` argument of `solvers.solve` for a batch: solver row i draws step i + 1."""
    return lambda i: _rows(seed, rows, i + 1, shape)


def _rows(
    seed: int, rows: Sequence[tuple[int, int]], step: int, shape: tuple[int, ...]
) -> NDArray[np.float32]:
    batch = np.empty((len(rows), *shape), dtype=np.float32)
    for k, (slice_index, sample) in enumerate(rows):
        batch[k] = normal(seed, sample, slice_index, step, shape)
    return batch


def _word(name: str, value: int, bits: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = -1
    if not 0 <= number < 2**bits:
        raise UsageError(
            "TD3017", f"{name} must be an integer in 0 to 2^{bits} - 1, got {value!r}"
        )
    return number
