"""Latin hypercube of x_T: the samples of an ensemble share out the strata of every element.

McKay, Beckman and Conover 1979, for every element of a slice on its own. N samples take one Philox
word an element and sample from each of two steps that `noise.normal` refuses. Counter and key are
those of `noise.py`; element e takes word e mod 4 of block e div 4. With `rank` that of the
sample's word of step `RANKS` among those of samples 0 … N − 1 (equal words by sample number), and
w its word of step `PLACES`,

    z = normal_quantile((rank + (w + 1/2) · 2^−32) / N)      # inside (0, 1) for N <= 4096

in float64, rounded once to float32.
"""

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from tadiff_rt.errors import UsageError
from tadiff_rt.gaussian import normal_quantile
from tadiff_rt.philox import as_index, check_word, philox4x32

RANKS, PLACES = 2**32 - 1, 2**32 - 2
"""Counter word `step` of the words that order the samples, and that place them in their strata."""

MAX_LATIN = 4096
"""Most samples: strata are kept in 16 bits, and the last place, 1 − 2^−33 / N, is no 1.0."""


def stratified_normal(
    seed: int, sample: int, slice_index: int, latin: int, shape: tuple[int, ...]
) -> NDArray[np.float32]:
    """x_T of one slice of one sample of a Latin hypercube of `latin` samples.

    Each sample alone is N(0, I), but for equal words (chance N²/2^33 an element) and the grid of
    2^32 places. The strata of the last slice are kept for its other samples: 2 · latin bytes an
    element.

    Args:
        seed: 0 … 2^64 − 1.
        sample: 0 … latin − 1.
        slice_index: in the full grid of the volume.
        latin: 2 … `MAX_LATIN`.
        shape: of the result. A larger shape starts with the numbers of a smaller one.

    Raises:
        UsageError: the sample is not below `latin` (TD3049), or it or the slice is not an integer
            in its range (TD3017).
    """
    seed, latin = check_word("seed", seed, 64), as_index(latin)
    sample, slice_index = check_word("sample", sample), check_word("slice", slice_index)
    if sample >= latin:
        raise UsageError(
            "TD3049", f"sample must be below latin = {latin}, got {sample}", fix="raise latin"
        )
    n = math.prod(shape)
    blocks = np.arange((n + 3) // 4, dtype=np.uint32)
    place = (_words(seed, blocks, slice_index, np.array(sample), PLACES).ravel() + 0.5) * 2.0**-32
    u = (_strata(seed, slice_index, latin, len(blocks))[sample] + place) / latin
    return normal_quantile(u[:n]).reshape(shape).astype(np.float32)


@lru_cache(maxsize=1)
def _strata(seed: int, slice_index: int, latin: int, num_blocks: int) -> NDArray[np.uint16]:
    """(latin, 4 · num_blocks) the stratum of every sample in every element of a slice."""
    strata = np.empty((latin, num_blocks, 4), dtype=np.uint16)
    samples = np.arange(latin)[:, None]
    ranks = np.arange(latin, dtype=np.uint16)[:, None, None]
    # In parts of 2^20 words, so that a large hypercube needs little beside its result.
    size = 2**18 // latin
    for first in range(0, num_blocks, size):
        part = strata[:, first : first + size]
        blocks = np.arange(first, first + part.shape[1], dtype=np.uint32)
        words = _words(seed, blocks, slice_index, samples, RANKS)
        np.put_along_axis(part, np.argsort(words, axis=0, kind="stable"), ranks, axis=0)
    return strata.reshape(latin, -1)


def _words(
    seed: int,
    blocks: NDArray[np.uint32],
    slice_index: int,
    samples: NDArray[np.int64],
    step: int,
) -> NDArray[np.uint32]:
    """(..., blocks, 4) words, in the shape of the broadcast blocks and samples."""
    counter = (blocks, *(np.asarray(w, dtype=np.uint32) for w in (slice_index, samples, step)))
    return np.stack(philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32)), axis=-1)
