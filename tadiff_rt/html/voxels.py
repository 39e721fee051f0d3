"""Volumes as a browser gets them: cropped, averaged over blocks, quantised, as gzip in base64."""

import base64
import gzip
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from nibabel.nifti1 import Nifti1Header
from numpy.typing import NDArray

from tadiff_rt.geometry import Grid, canonical_grid, canonical_view, spacing_of

RAS = ("R", "A", "S")
"""Axes of the arrays on the page: NiiVue shows those without turning them."""

Float32Array = NDArray[np.float32]
UInt8Array = NDArray[np.uint8]
Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class View:
    """A coarser grid over a part of the patient's, on RAS axes."""

    grid: Grid
    """Of the patient's volumes, canonical in RAS."""
    crop: Box
    """Voxels of that grid to show."""
    block: tuple[int, int, int]
    """Voxels averaged along each axis."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of what is shown."""
        x, y, z = (-(-(s.stop - s.start) // b) for s, b in zip(self.crop, self.block, strict=True))
        return x, y, z

    @property
    def affine(self) -> NDArray[np.float64]:
        """(4, 4) voxel index of what is shown -> RAS+ mm of its centre."""
        step = np.diag([*map(float, self.block), 1.0])
        step[:3, 3] = [s.start + (b - 1) / 2 for s, b in zip(self.crop, self.block, strict=True)]
        return self.grid.affine @ step

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Edges of a voxel of what is shown."""
        return spacing_of(self.affine)

    def of(self, volume: NDArray[Any]) -> Float32Array:
        """A volume on the patient's voxels as it is shown; beyond its border lies 0."""
        part = canonical_view(volume, self.grid)[self.crop].astype(np.float32)
        rest = [
            (0, n * b - have)
            for n, b, have in zip(self.shape, self.block, part.shape, strict=True)
        ]
        x, y, z = self.shape
        i, j, k = self.block
        blocks = np.pad(part, rest).reshape(x, i, y, j, z, k)
        return np.asarray(blocks.mean(axis=(1, 3, 5), dtype=np.float32))


def ras_grid(shape: Sequence[int], affine: NDArray[np.float64]) -> Grid:
    """The patient's grid on RAS axes."""
    x, y, z = shape
    return canonical_grid((x, y, z), affine, RAS)


def bounding_box(held: NDArray[np.bool_]) -> Box:
    """The smallest box around the True voxels; everything where there are none."""
    edges = []
    for axis in range(3):
        other = tuple(a for a in range(3) if a != axis)
        at = np.flatnonzero(held.any(axis=other))
        edges.append(slice(int(at[0]), int(at[-1]) + 1) if at.size else slice(0, held.shape[axis]))
    return edges[0], edges[1], edges[2]


def blocks_for(spacing_mm: Sequence[float], edges_mm: Sequence[float]) -> tuple[int, int, int]:
    """Whole voxels that come nearest to blocks of these edges; at least one."""
    x, y, z = (
        max(1, round(edge / mm + 1e-6)) for mm, edge in zip(spacing_mm, edges_mm, strict=True)
    )
    return x, y, z


@dataclass(frozen=True)
class Kind:
    """What the bytes of a volume stand for: 0 for `low`, `levels` for `high`, clipped beyond."""

    view: View
    low: float
    high: float
    levels: int

    def quantise(self, values: Float32Array) -> UInt8Array:
        """`values` in bytes, rounded to the nearest level."""
        # In place: a volume of a large patient has tens of megabytes.
        scaled = values - self.low
        scaled *= self.levels / (self.high - self.low)
        np.clip(np.rint(scaled), 0, self.levels, out=scaled)
        return scaled.astype(np.uint8)

    def header(self) -> bytes:
        """The start of a NIfTI file of one byte a voxel, up to the voxels."""
        header = Nifti1Header()
        header.set_data_dtype(np.uint8)
        header.set_data_shape(self.view.shape)
        header.set_zooms(self.view.spacing_mm)
        header.set_sform(self.view.affine, code="aligned")
        header.set_xyzt_units("mm")
        header.set_slope_inter((self.high - self.low) / self.levels, self.low)
        header["magic"], header["vox_offset"] = b"n+1", 352
        return bytes(header.binaryblock) + bytes(4)

    def as_json(self) -> dict[str, Any]:
        """What the page needs to know."""
        shape, spacing = self.view.shape, [round(mm, 3) for mm in self.view.spacing_mm]
        text = base64.b64encode(self.header()).decode()
        return {
            "header": text,
            "shape": shape,
            "spacing_mm": spacing,
            "low": self.low,
            "high": self.high,
            "levels": self.levels,
        }


@dataclass(eq=False)
class Pack:
    """Volumes by name, each alone or as the difference to one that resembles it."""

    entries: dict[str, dict[str, Any]] = field(default_factory=dict)
    size_bytes: int = 0
    """Of the base64 text."""
    _voxels: dict[str, UInt8Array] = field(default_factory=dict)
    """Of volumes that others may resemble."""

    def add(
        self,
        name: str,
        kind_name: str,
        kind: Kind,
        values: Float32Array,
        like: str,
        *,
        again: bool,
    ) -> str:
        """Packs `values` under `name`, and returns it.

        Args:
            like: a volume of the same kind packed before, of which only the differences are kept,
                modulo 256; empty for none. Forecasts of one patient resemble each other.
            again: it may be the `like` of a later one; its voxels stay in memory.
        """
        voxels = kind.quantise(values)
        if again:
            self._voxels[name] = voxels
        stored = voxels - self._voxels[like] if like else voxels
        # As NIfTI stores voxels: the first axis runs fastest.
        packed = gzip.compress(stored.tobytes(order="F"), compresslevel=6, mtime=0)
        text = base64.b64encode(packed).decode()
        self.entries[name] = {"kind": kind_name, "like": like, "gzip": text}
        self.size_bytes += len(text)
        return name
