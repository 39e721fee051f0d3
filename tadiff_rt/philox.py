"""Random words as a function of their counter: Philox4x32-10."""

import operator
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tadiff_rt.errors import UsageError

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


def check_word(name: str, value: int, bits: int = 32) -> int:
    """`value` as a Python integer that fits `bits` bits of the counter or key.

    Raises:
        UsageError: it does not (TD3017); `name` says what it is.
    """
    number = as_index(value)
    if not 0 <= number < 2**bits:
        raise UsageError(
            "TD3017", f"{name} must be an integer in 0 to 2^{bits} - 1, got {value!r}"
        )
    return number


def as_index(value: int) -> int:
    """`value` as a Python integer; −1 if it is none."""
    try:
        return operator.index(value)
    except TypeError:
        return -1
