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

`NoiseSource` adds two options. Coherent noise of slice k is the sum over j of weight w_j
(`ar1_weights`) times the float32 `normal` of slice k − j, in float64 and in the order of j,
rounded once to float32. A slice below 0 is counted modulo 2^32: no volume is that deep, so no real
slice owns those counters. The Latin hypercube is defined in `latin.py`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from numbers import Real

import numpy as np
from numpy.typing import NDArray

from tadiff_rt.errors import UsageError
from tadiff_rt.gaussian import ar1_weights
from tadiff_rt.latin import MAX_LATIN, PLACES, RANKS, stratified_normal
from tadiff_rt.philox import as_index, check_word, philox4x32

INITIAL = 0
"""The `step` of x_T."""

MAX_COHERENCE = 0.99
"""Where a draw is the sum of 828 independent ones."""


def normal(
    seed: int, sample: int, slice_index: int, step: int, shape: tuple[int, ...]
) -> NDArray[np.float32]:
    """Standard normal noise of one slice of one sample at one step; see the module docstring.

    Args:
        seed: 0 … 2^64 − 1.
        sample: number of the draw in the ensemble.
        slice_index: in the full grid of the volume, so that a run on few slices agrees.
        step: `INITIAL` for x_T, i + 1 for the noise of solver row i; at most 2^32 − 3.
        shape: of the result. A larger shape starts with the numbers of a smaller one.

    Raises:
        UsageError: the seed or an index is not an integer in its range (TD3017).
    """
    if step in (RANKS, PLACES):
        raise UsageError(
            "TD3017", f"step must be below 2^32 - 2, got {step}: the words of Latin hypercubes"
        )
    seed = check_word("seed", seed, 64)
    blocks = np.arange((math.prod(shape) + 3) // 4, dtype=np.uint32)
    identity = (("slice", slice_index), ("sample", sample), ("step", step))
    rest = [np.array(check_word(name, value), dtype=np.uint32) for name, value in identity]
    words = philox4x32((blocks, *rest), (seed & 0xFFFFFFFF, seed >> 32))
    values = np.empty((len(blocks), 4), dtype=np.float32)  # rounds what is written
    for pair in (0, 2):
        u = (words[pair] + 1.0) * 2.0**-32
        radius = np.sqrt(-2.0 * np.log(u))
        angle = (2.0 * np.pi) * (words[pair + 1] * 2.0**-32)
        values[:, pair] = radius * np.cos(angle)
        values[:, pair + 1] = radius * np.sin(angle)
    return values.ravel()[: math.prod(shape)].reshape(shape)


@dataclass(frozen=True)
class NoiseSource:
    """The noise of an ensemble, each row a function of its own (slice, sample) pair.

    Every draw alone is N(0, I) whatever the options; these say how draws depend on each other.

    Raises:
        UsageError: the seed is not an integer of 64 bits (TD3017), the coherence is out of range
            (TD3048), or `latin` is out of range or combined with coherence (TD3049).
    """

    seed: int
    """0 … 2^64 − 1."""
    coherence: float = 0.0
    """Correlation of the noise of neighbouring slices of one sample, 0 … 0.99. Slices d apart have
    coherence^d, less at most 2^−12 (`ar1_weights`). For x_T and for the noise of steps."""
    latin: int | None = None
    """N, 2 … 4096: x_T of samples 0 … N − 1 is a Latin hypercube in every element of a slice
    (McKay, Beckman and Conover 1979). The N samples of an element fall one each into the N equally
    likely strata of N(0, 1), up to the rounding to float32; elements and slices are independent.
    Means over the N forecasts get more accurate. Samples are negatively correlated, by up to
    1/(N − 1), and the usual variance, divided by N − 1, is on average up to N/(N − 1) times too
    large. Samples depend on N: 8 do not extend 4. The noise of steps stays independent."""

    def __post_init__(self) -> None:
        check_word("seed", self.seed, 64)
        rho = self.coherence
        if not (isinstance(rho, Real) and 0 <= rho <= MAX_COHERENCE):
            raise UsageError("TD3048", f"coherence must be in 0 to {MAX_COHERENCE}, got {rho!r}")
        if self.latin is None:
            return
        if as_index(self.latin) not in range(2, MAX_LATIN + 1):
            raise UsageError(
                "TD3049", f"latin must be an integer in 2 to {MAX_LATIN}, got {self.latin!r}"
            )
        if rho > 0:
            raise UsageError(
                "TD3049",
                f"coherence {rho} and latin {self.latin} cannot be combined: a sum over slices "
                "would undo the strata",
                fix="leave one of them out",
            )

    def initial(
        self, rows: Sequence[tuple[int, int]], shape: tuple[int, ...]
    ) -> NDArray[np.float32]:
        """x_T of a batch: (len(rows), *shape), row k that of the k-th (slice, sample) pair.

        Raises:
            UsageError: a slice or sample is not an integer in its range (TD3017), or a sample is
                not below `latin` (TD3049).
        """
        latin = self.latin
        if latin is None:
            return self._normal(rows, INITIAL, shape)
        return _batch(rows, shape, lambda at, k: stratified_normal(self.seed, k, at, latin, shape))

    def step(
        self, rows: Sequence[tuple[int, int]], shape: tuple[int, ...]
    ) -> Callable[[int], NDArray[np.float32]]:
        """The `noise` argument of `solvers.solve` for a batch: solver row i draws step i + 1."""
        return lambda i: self._normal(rows, i + 1, shape)

    def _normal(
        self, rows: Sequence[tuple[int, int]], step: int, shape: tuple[int, ...]
    ) -> NDArray[np.float32]:
        weights = ar1_weights(self.coherence)
        if len(weights) == 1:
            return _batch(rows, shape, lambda at, k: normal(self.seed, k, at, step, shape))
        return _batch(rows, shape, lambda at, k: _coherent(weights, self.seed, k, at, step, shape))


def _batch(
    rows: Sequence[tuple[int, int]],
    shape: tuple[int, ...],
    draw: Callable[[int, int], NDArray[np.float32]],
) -> NDArray[np.float32]:
    batch = np.empty((len(rows), *shape), dtype=np.float32)
    # By slice, in whatever order the rows come: what is cached serves a slice or its neighbours.
    for k in sorted(range(len(rows)), key=lambda k: rows[k][0]):
        batch[k] = draw(*rows[k])
    return batch


def _coherent(
    weights: NDArray[np.float64],
    seed: int,
    sample: int,
    slice_index: int,
    step: int,
    shape: tuple[int, ...],
) -> NDArray[np.float32]:
    """Coherent noise of one slice of one sample; see the module docstring."""
    # Integers before they meet the cache, which takes 1.0 for 1.
    seed, step = check_word("seed", seed, 64), check_word("step", step)
    sample, slice_index = check_word("sample", sample), check_word("slice", slice_index)
    total = np.zeros(shape)
    for j, weight in enumerate(weights):
        draw = _cached_normal(seed, sample, (slice_index - j) % 2**32, step, shape)
        # The dtype is said: numpy 1 would multiply a scalar and a float32 array in float32.
        total += np.multiply(weight, draw, dtype=np.float64)
    return total.astype(np.float32)


# What 8 samples need at coherence 0.9; 283 MB where an image is 3 x 192 x 192.
@lru_cache(maxsize=640)
def _cached_normal(
    seed: int, sample: int, slice_index: int, step: int, shape: tuple[int, ...]
) -> NDArray[np.float32]:
    return normal(seed, sample, slice_index, step, shape)
