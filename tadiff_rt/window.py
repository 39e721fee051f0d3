"""The square of voxels that the network sees of every slice."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Scalar = TypeVar("Scalar", bound=np.generic)


@dataclass(frozen=True)
class Window:
    """A square of `size` x `size` voxels of the first two canonical axes."""

    start: tuple[int, int]
    """Canonical index of its first voxel; negative where the window sticks out of the grid."""
    size: int

    def overlap(self, shape: Sequence[int]) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """What window and grid share: (rows, columns) of the grid, then of the window."""
        first = [max(start, 0) for start in self.start]
        stop = [min(start + self.size, n) for start, n in zip(self.start, shape, strict=False)]
        rows, columns = (slice(a, b) for a, b in zip(first, stop, strict=True))
        inner = [
            slice(a - start, b - start)
            for a, b, start in zip(first, stop, self.start, strict=True)
        ]
        return (rows, columns), (inner[0], inner[1])

    def cut(self, array: NDArray[Scalar]) -> NDArray[Scalar]:
        """Slices (d, size, size) of a canonical array (h, w, d), 0 outside the grid."""
        outer, inner = self.overlap(array.shape)
        out = np.zeros((array.shape[2], self.size, self.size), dtype=array.dtype)
        out[:, *inner] = np.moveaxis(array[outer], 2, 0)
        return out

    def inside(self, shape: Sequence[int]) -> NDArray[np.bool_]:
        """(size, size) which voxels of the window lie on the grid."""
        _, inner = self.overlap(shape)
        held = np.zeros((self.size, self.size), dtype=bool)
        held[inner] = True
        return held

    def paste(
        self, stack: NDArray[Scalar], shape: tuple[int, int, int], fill: float
    ) -> NDArray[Scalar]:
        """The canonical array (h, w, d) that `cut` takes `stack` from, `fill` outside."""
        outer, inner = self.overlap(shape)
        out = np.full(shape, fill, dtype=stack.dtype)
        out[outer] = np.moveaxis(stack[:, *inner], 0, 2)
        return out
