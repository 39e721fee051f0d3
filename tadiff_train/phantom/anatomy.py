"""Brains for the phantom: the MNI152 tissue maps that nilearn ships, and random deformations."""

from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tadiff_rt.errors import UsageError

Float32Array = NDArray[np.float32]

WINDOW_ORIGIN = (2, 21, -6)
"""First template voxel of the window kept, so that the brain lies in its middle."""
WINDOW_SHAPE = (192, 192, 168)
"""Extent of that window, in template voxels of 1 mm; even, so that 2 mm blocks tile it."""
TISSUE_MIN = 0.5
"""A voxel holds cells if grey and white matter fill more than this fraction of it."""

CONTROL_MM = 36.0
MAX_DISPLACEMENT_MM = 8.0
SHRINK = 0.97


@dataclass(frozen=True)
class Anatomy:
    """One tumour-free brain on a cubic grid in RAS order; all maps share `t1.shape`."""

    t1: Float32Array
    """T1 intensity of the template, 0 (outside) to 255; averaged with the zeros outside."""
    gm: Float32Array
    """Grey matter, fraction of the voxel."""
    wm: Float32Array
    """White matter, fraction of the voxel."""
    coverage: Float32Array
    """Brain including CSF, fraction of the voxel."""
    spacing_mm: float
    affine: NDArray[np.float64]
    """Voxel index -> RAS+ millimetres."""

    @property
    def brain(self) -> NDArray[np.bool_]:
        """Voxels that are brain or CSF; everything else is exactly 0 in an image."""
        return self.coverage > 0.5

    @property
    def csf(self) -> Float32Array:
        """Cerebrospinal fluid, fraction of the voxel: brain that is neither grey nor white."""
        return np.maximum(self.coverage - self.gm - self.wm, 0, dtype=np.float32)

    @property
    def tissue(self) -> NDArray[np.bool_]:
        """Voxels in which tumour cells can live."""
        return (self.gm + self.wm > TISSUE_MIN) & self.brain


def _template(name: str) -> Float32Array:
    """One template map in the window, as stored (0 ... 255)."""
    spec = find_spec("nilearn")  # located, not imported: the maps are files, nilearn is heavy
    if spec is None or spec.origin is None:
        raise UsageError(
            "TD3090",
            "the phantom needs the MNI152 maps that nilearn ships",
            fix="pip install 'tadiff[phantom]'",
        )
    file = f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz"
    path = Path(spec.origin).parent / "datasets" / "data" / file
    data = np.asanyarray(nib.load(path).dataobj)
    starts = np.array(WINDOW_ORIGIN)
    stops = np.minimum(starts + WINDOW_SHAPE, data.shape)
    inside = tuple(
        slice(max(a, 0), b) for a, b in zip(starts.tolist(), stops.tolist(), strict=True)
    )
    window = np.zeros(WINDOW_SHAPE, np.float32)
    placed = tuple(
        slice(s.start - a, s.stop - a) for s, a in zip(inside, starts.tolist(), strict=True)
    )
    window[placed] = data[inside]
    return window


def _block_mean(x: Float32Array, block: int) -> Float32Array:
    """Averages over cubes of `block` voxels a side."""
    if block == 1:
        return x
    a, b, c = (n // block for n in x.shape)
    return x.reshape(a, block, b, block, c, block).mean(axis=(1, 3, 5), dtype=np.float32)


@lru_cache(maxsize=2)
def load_anatomy(size: int) -> Anatomy:
    """The undeformed template brain; read once a process.

    Args:
        size: in-plane voxels, 192 for the 1 mm grid or 96 for the 2 mm grid.

    Raises:
        ValueError: any other size.
    """
    if size not in (96, 192):
        raise ValueError(f"size must be 96 (2 mm) or 192 (1 mm), got {size}")
    block = WINDOW_SHAPE[0] // size
    t1 = _template("t1")
    brain = (t1 > 0).astype(np.float32)
    affine = np.diag([block, block, block, 1.0])
    # The centre of a block of two voxels lies half a voxel beyond the centre of its first.
    affine[:3, 3] = np.array(WINDOW_ORIGIN) + (-98.0, -134.0, -72.0) + (block - 1) / 2
    return Anatomy(
        t1=_block_mean(t1, block),
        gm=_block_mean(_template("gm") / 255 * brain, block),
        wm=_block_mean(_template("wm") / 255 * brain, block),
        coverage=_block_mean(brain, block),
        spacing_mm=float(block),
        affine=affine,
    )


def _spline_basis(num: int, spacing_mm: float, control_mm: float) -> Float32Array:
    """(voxel, control point) weights of the uniform cubic B-spline; every row sums to one."""
    position = (np.arange(num) + 0.5) * spacing_mm / control_mm
    num_controls = int(np.ceil(num * spacing_mm / control_mm)) + 3
    distance = np.abs(position[:, None] + 1 - np.arange(num_controls)[None, :])
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = np.clip(2 - distance, 0, None) ** 3 / 6
    return np.where(distance < 1, near, far).astype(np.float32)


def smooth_field(
    rng: np.random.Generator, shape: tuple[int, ...], spacing_mm: float, control_mm: float
) -> Float32Array:
    """Random field of unit order: cubic B-spline through normal coefficients.

    The coefficients depend on the extent in millimetres only, so two grids over the same brain
    sample the same field.
    """
    x, y, z = (_spline_basis(n, spacing_mm, control_mm) for n in shape)
    coefficients = rng.standard_normal((x.shape[1], y.shape[1], z.shape[1]), dtype=np.float32)
    field: Float32Array = np.einsum("xi,ijk->xjk", x, coefficients)
    field = np.einsum("yj,xjk->xyk", y, field)
    return field @ z.T


def _random_affine(rng: np.random.Generator) -> NDArray[np.float64]:
    """(3, 3) map from a point of the deformed brain to the template, about the grid centre."""
    angles = np.deg2rad(rng.uniform(-4, 4, 3))
    scale = rng.uniform([0.93, 0.92, 0.93], [1.05, 1.0, 1.03])
    flip = -1.0 if rng.random() < 0.5 else 1.0
    rotation = np.eye(3)
    for axis, angle in enumerate(angles):
        i, j = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        rotation = rotation @ turn
    return np.diag([flip, 1, 1]) @ rotation @ np.diag(1 / scale)


def touches_border(coverage: Float32Array) -> bool:
    """Whether the brain reaches the outermost voxels of the grid, and so may be cut off."""
    brain = coverage > 0.5
    return any(bool(brain.take(edge, axis).any()) for axis in range(3) for edge in (0, -1))


def deform(anatomy: Anatomy, rng: np.random.Generator) -> Anatomy:
    """A different brain: random scale, rotation, left-right flip and smooth displacement.

    The result is shrunk until it lies inside the grid, so no brain is ever cut off.
    """
    shape = anatomy.t1.shape
    to_template = _random_affine(rng)
    displacement = np.stack(
        [
            np.clip(
                9.0 * smooth_field(rng, shape, anatomy.spacing_mm, CONTROL_MM),
                -MAX_DISPLACEMENT_MM,
                MAX_DISPLACEMENT_MM,
            )
            for _ in range(3)
        ]
    )
    displacement /= anatomy.spacing_mm
    axes = [np.arange(n, dtype=np.float32) - (n - 1) / 2 for n in shape]
    centre = (np.array(shape) - 1) / 2

    def source(shrink: float) -> Float32Array:
        x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
        rows = (to_template / shrink).astype(np.float32)
        moved = [
            row[0] * x + row[1] * y + row[2] * z + c for row, c in zip(rows, centre, strict=True)
        ]
        return displacement + np.stack(moved)

    shrink = 1.0
    while True:
        where = source(shrink)
        coverage = ndimage.map_coordinates(anatomy.coverage, where, order=1)
        if not touches_border(coverage):
            break
        shrink *= SHRINK
    t1, gm, wm = (
        ndimage.map_coordinates(x, where, order=1) for x in (anatomy.t1, anatomy.gm, anatomy.wm)
    )
    return Anatomy(t1, gm, wm, coverage, anatomy.spacing_mm, anatomy.affine)
