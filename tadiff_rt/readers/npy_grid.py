"""Where the voxels of an array without an affine lie."""

import re

import numpy as np
from numpy.typing import NDArray

from tadiff_rt.case import ReadOptions
from tadiff_rt.errors import GeometryError, UsageError
from tadiff_rt.geometry import canonical_grid
from tadiff_rt.readers.tables import quoted

MNI152_2009C_SHAPE = (193, 229, 193)
MNI152_2009C_AFFINE = np.array(
    [[1.0, 0, 0, -96], [0, 1.0, 0, -132], [0, 0, 1.0, -78], [0, 0, 0, 1.0]]
)
"""Voxel index -> RAS+ mm of the template mni_icbm152_nlin_sym_09c (Fonov et al. 2011)."""
AXES = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
"""Direction -> world axis and sign."""
FIX = (
    "pass --npy-grid=PLI:1 if the axes run to posterior, left and inferior in voxels of 1 mm, as "
    "the published script writes them, or give the NIfTI images"
)

_GRID = re.compile(r"([RLAPSI]{3}):([0-9]{1,3}(?:\.[0-9]{1,4})?)", re.ASCII)


def parse_npy_grid(text: str) -> tuple[str, float] | None:
    """("PLI", 1.0) for "PLI:1"; None for no text.

    Raises:
        UsageError: TD3005, the text is no such grid.
    """
    if not text:
        return None
    match = _GRID.fullmatch(text)
    if match and len({AXES[axis][0] for axis in match[1]}) == 3 and float(match[2]) > 0:
        return match[1], float(match[2])
    what = f"--npy-grid {quoted(text)} is unknown; expected three directions and the voxel edge"
    fix = "pass --npy-grid=PLI:1 for axes to posterior, left and inferior in voxels of 1 mm"
    raise UsageError("TD3005", what, where="--npy-grid", fix=fix)


def npy_affine(
    shape: tuple[int, int, int], options: ReadOptions, label: str, notes: list[str]
) -> NDArray[np.float64]:
    """(4, 4) index of a voxel of the array -> RAS+ millimetres.

    Args:
        shape: of one volume.
        notes: gets what was assumed.

    Raises:
        GeometryError: TD3205, neither the published grid nor one that the user has named.
    """
    stated = parse_npy_grid(options.npy_grid)
    published = canonical_grid(MNI152_2009C_SHAPE, MNI152_2009C_AFFINE)
    if stated is None and shape != published.shape:
        size, expected = (" x ".join(map(str, s)) for s in (shape, published.shape))
        what = (
            f"an array has no orientation, and its {size} voxels are not the published grid of "
            f"{expected}"
        )
        raise GeometryError("TD3205", what, where=label, fix=FIX)
    if stated is None:
        notes.append(
            "arrays have no affine; by their shape they lie on the published grid, MNI152 2009c "
            "at 1 mm with axes P, L, I"
        )
        return published.affine
    axes, edge_mm = stated
    affine = np.diag([0.0, 0.0, 0.0, 1.0])
    for column, axis in enumerate(axes):
        row, sign = AXES[axis]
        affine[row, column] = sign * edge_mm
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    notes.append(
        f"arrays have no affine; axes {', '.join(axes)} and voxels of {edge_mm:g} mm as stated, "
        "the world's origin at the centre"
    )
    return affine
