"""Which weights of a graph are not the checkpoint's, and what became of them."""

import itertools
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Weights = Mapping[str, NDArray[np.float32]]

SHOWN = 4
"""Weights that a message names."""


def compare_weights(got: Weights, exact: Weights, tolerance: float) -> list[str]:
    """What differs, one sentence a tensor, in the checkpoint's order; empty for nothing.

    Args:
        got: by the checkpoint's names; others are ignored.
        exact: the checkpoint's.
        tolerance: allowed difference relative to the tensor's largest value.
    """
    wrong = {name: truth for name, truth in exact.items() if _differs(got, name, truth, tolerance)}
    if len(wrong) > max(SHOWN, len(exact) // 2):
        return [
            f"{len(wrong)} of {len(exact)} weights differ: they are the weights of another "
            "checkpoint, such as those of training instead of their moving average (EMA)"
        ]
    return [
        f"weight {name} {_became(got.get(name), name, truth, exact, tolerance)}"
        for name, truth in wrong.items()
    ]


def _differs(got: Weights, name: str, truth: NDArray[np.float32], tolerance: float) -> bool:
    return name not in got or not _same(got[name], truth, tolerance)


def _same(got: NDArray[np.float32], exact: NDArray[np.float32], tolerance: float) -> bool:
    if got.shape != exact.shape:
        return False
    return bool(np.abs(got - exact).max(initial=0) <= tolerance * np.abs(exact).max(initial=0))


def _became(
    got: NDArray[np.float32] | None,
    name: str,
    truth: NDArray[np.float32],
    exact: Weights,
    tolerance: float,
) -> str:
    """What happened to a weight, in words."""
    if got is None:
        return "is missing: it was dropped"
    if got.ndim == truth.ndim > 1:
        axes = itertools.permutations(range(truth.ndim))
        if any(_same(got, truth.transpose(order), tolerance) for order in axes):
            return "is transposed"
    if got.shape != truth.shape:
        return f"has shape {list(got.shape)} instead of {list(truth.shape)}"
    if not got.any():
        return "is all zero: it was dropped"
    if got.ndim > 2 and _same(got, np.flip(truth, tuple(range(2, truth.ndim))), tolerance):
        return "has its kernels flipped"
    owner = next((n for n, w in exact.items() if n != name and _same(got, w, tolerance)), None)
    if owner is not None:
        return f"holds the values of {owner}: they were swapped"
    factor = float((got.astype(np.float64) * truth).sum() / (truth.astype(np.float64) ** 2).sum())
    if _same(got, np.float32(factor) * truth, tolerance):
        return f"is {factor:.4g} times the checkpoint's"
    apart = np.abs(got - truth)
    where = np.unravel_index(int(np.argmax(apart)), apart.shape)
    return (
        f"differs from the checkpoint in {int((apart > 0).sum())} of {apart.size} values, most "
        f"at {[int(k) for k in where]}"
    )
