"""From one voxel grid to another with parallel axes, each axis by itself.

Where voxels shrink, values are interpolated linearly; where they grow, they are averaged over the
larger voxel, as a scanner with thicker slices would (linear interpolation would pick single voxels
and keep their noise). Outside the field of view is 0.
"""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from tadiff_rt.geometry import Grid, spacing_of

Scalar = TypeVar("Scalar", bound=np.generic)
Float = TypeVar("Float", np.float32, np.float64)

ROUNDING = 1e-6
"""Relative; far above that of affines in float32, far below any voxel."""
HALF = 0.5 - ROUNDING
"""Share of a voxel from which on it belongs to a mask."""

Axis = tuple[int, float, int, float, float]
"""What `linear_weights` and `box_weights` take."""


class Map:
    """Weights that take canonical arrays from one grid to another.

    Equal grids give no change of any bit.
    """

    def __init__(self, source: Grid, target: Grid) -> None:
        self._axes = axes_between(source, target)
        self._weights = [_weights(*axis) for axis in self._axes]
        self.is_identity = all(map(_is_identity, self._weights))

    def __call__(self, data: NDArray[np.float32]) -> NDArray[np.float32]:
        """`data` on the new grid, contiguous."""
        return apply_weights(self._weights, data)

    def share_outside(self, held: NDArray[np.float32]) -> float:
        """Share of the voxels of an indicator (0 or 1) that lie outside the new grid."""
        total = float(held.sum(dtype=np.float64))
        for axis, (num, edge_mm, num_in, edge_in_mm, shift_mm) in enumerate(self._axes):
            # One voxel as long as the new grid: which share of each given voxel it holds.
            length_mm = num * edge_mm
            inside = box_weights(1, length_mm, num_in, edge_in_mm, shift_mm)
            share = np.round(inside * length_mm / edge_in_mm, 4).astype(np.float32)
            held = np.moveaxis(np.tensordot(share, held, (1, axis)), 0, axis)
        return max(0.0, 1 - float(held.sum()) / total) if total else 0.0


def back_to(array: NDArray[Scalar], source: Grid, patient: Grid) -> NDArray[Scalar]:
    """A canonical array of `source` on the voxels of `patient`, canonical, too.

    Linear along every axis; of a boolean array voxels of at least one half.
    """
    if array.dtype.kind not in "fb":
        raise ValueError(f"numbers of type {array.dtype} have nothing in between")
    exact = array.astype(np.float64 if array.dtype == np.float64 else np.float32)
    weights = [linear_weights(*axis).astype(exact.dtype) for axis in axes_between(source, patient)]
    result = apply_weights(weights, exact)
    if array.dtype.kind == "b":
        result = result >= HALF
    return result.astype(array.dtype)


def slices_between(chosen: Sequence[int], source: Grid, patient: Grid) -> NDArray[np.bool_]:
    """Which canonical slices of `patient` lie among `chosen` slices of `source` entirely."""
    held = np.zeros(source.shape[2])
    held[list(chosen)] = 1
    share = linear_weights(*axes_between(source, patient)[2]) @ held
    return np.asarray(share >= 1 - ROUNDING)


def linear_weights(
    num: int, edge_mm: float, num_in: int, edge_in_mm: float, shift_mm: float
) -> NDArray[np.float64]:
    """(num, num_in) weights of linear interpolation along one axis.

    Args:
        num, edge_mm: voxels asked for, and their edge.
        num_in, edge_in_mm: voxels that are given.
        shift_mm: where the middle of those given lies, seen from the middle of those asked for.

    Rows sum to 1, and are 0 for voxels whose centre lies outside the given ones. Between the
    centre and the end of the first and the last given voxel the value is that of the voxel.
    """
    middle = (np.arange(num) - (num - 1) / 2) * edge_mm
    # Rounded: a shift of 1e-16 voxels would give every voxel a trace of its neighbour.
    at = np.round((middle - shift_mm) / edge_in_mm + (num_in - 1) / 2, 6)
    inside = (at >= -0.5) & (at <= num_in - 0.5)
    distance = np.abs(np.clip(at, 0, num_in - 1)[:, None] - np.arange(num_in))
    return np.where(inside[:, None], np.clip(1 - distance, 0, None), 0)


def box_weights(
    num: int, edge_mm: float, num_in: int, edge_in_mm: float, shift_mm: float
) -> NDArray[np.float64]:
    """(num, num_in) shares of each voxel asked for that the given ones fill; as `linear_weights`.

    Rows sum to the share of the voxel that lies within the given ones: 1 inside.
    """
    middle = (np.arange(num) - (num - 1) / 2)[:, None] * edge_mm
    middle_in = shift_mm + (np.arange(num_in) - (num_in - 1) / 2) * edge_in_mm
    stop = np.minimum(middle + edge_mm / 2, middle_in + edge_in_mm / 2)
    start = np.maximum(middle - edge_mm / 2, middle_in - edge_in_mm / 2)
    share = (stop - start) / edge_mm
    return np.where(share > ROUNDING, share, 0)


def axes_between(source: Grid, target: Grid) -> list[Axis]:
    """What `linear_weights` takes, of each canonical axis.

    Rounded to what an affine in float32 holds, so that the order in which a file stores its axes
    changes no bit.
    """
    edges, edges_in = (np.round(spacing_of(grid.affine), 6) for grid in (target, source))
    shifts = np.round((centre_mm(source) - centre_mm(target)) @ directions(target), 4) + 0.0
    columns = (target.shape, edges.tolist(), source.shape, edges_in.tolist(), shifts.tolist())
    return list(zip(*columns, strict=True))


def directions(grid: Grid) -> NDArray[np.float64]:
    """(3, 3) unit vectors of the axes, as columns."""
    return np.divide(grid.affine[:3, :3], spacing_of(grid.affine))


def centre_mm(grid: Grid) -> NDArray[np.float64]:
    """(3,) where the middle of a grid lies, RAS+ millimetres."""
    middle = (np.array(grid.shape) - 1) / 2
    return np.add(grid.affine[:3, :3] @ middle, grid.affine[:3, 3])


def _weights(
    num: int, edge_mm: float, num_in: int, edge_in_mm: float, shift_mm: float
) -> NDArray[np.float32]:
    make = box_weights if edge_mm > edge_in_mm * (1 + ROUNDING) else linear_weights
    return make(num, edge_mm, num_in, edge_in_mm, shift_mm).astype(np.float32)


def apply_weights(weights: Sequence[NDArray[Float]], data: NDArray[Float]) -> NDArray[Float]:
    """A canonical array with the weights (n, n_in) of each axis applied; contiguous."""
    # Axes that shrink most come first, which keeps what lies between small.
    for axis in sorted(range(3), key=lambda i: weights[i].shape[0] / weights[i].shape[1]):
        if not _is_identity(weights[axis]):
            moved = np.ascontiguousarray(np.moveaxis(data, axis, 0))
            out = weights[axis] @ moved.reshape(len(moved), -1)
            data = np.moveaxis(out.reshape(-1, *moved.shape[1:]), 0, axis)
    return np.ascontiguousarray(data)


def _is_identity(weights: NDArray[Float]) -> bool:
    rows, columns = weights.shape
    return rows == columns and bool((weights == np.eye(rows)).all())
