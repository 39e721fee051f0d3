"""Sessions -> the arrays a TaDiff network is fed, and the way back onto the patient's grid.

Re-derived from the published preprocessing: reorient to P, L, I; normalise every volume by itself
(`intensity`); crop to the foreground box of all sources; cut or pad it symmetrically to the
network's window. Slices are axial, along the last canonical axis, and none is dropped.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from tadiff_rt.case import MODALITIES, Session, Volume
from tadiff_rt.errors import GeometryError, TableError, TadiffError, raise_findings
from tadiff_rt.geometry import (
    Grid,
    canonical_grid,
    canonical_view,
    check_spacing,
    from_canonical,
    grid_findings,
)
from tadiff_rt.intensity import Range, measure_range

Scalar = TypeVar("Scalar", bound=np.generic)

MAX_TUMOUR_FRACTION = 0.5
"""Share of the foreground above which a tumour mask is remarked on."""


@dataclass(frozen=True, kw_only=True)
class DataContract:
    """What the network was trained on; a property of the checkpoint, kept in the engine bundle."""

    size: int = 192
    """Edge of the square in-plane window, in voxels."""
    spacing_mm: float = 1.0
    spacing_tolerance: float = 0.1
    """Relative, along every axis."""
    percentiles: tuple[float, float] = (0.2, 99.8)
    orientation: str = "PLI"
    """Axis codes of the canonical array, as nibabel names them."""
    num_sources: int = 3
    min_slices: int = 8

    def __post_init__(self) -> None:
        if self.size < 1 or not 0 < self.spacing_mm < math.inf or self.num_sources < 1:
            raise ValueError(
                "size, spacing_mm and num_sources must be positive numbers, got "
                f"{self.size}, {self.spacing_mm} and {self.num_sources}"
            )


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


@dataclass(frozen=True)
class Prepared:
    """The sources of one forecast, and how its result returns to the patient."""

    sources: NDArray[np.float32]
    """(d, 3 * num_sources, size, size) in [0, 1]; channel 3 * session + modality, sessions in
    time order. Slice k is slice k of the canonical grid, from superior to inferior."""
    brain: NDArray[np.bool_]
    """(d,) whether a slice holds any voxel > 0."""
    intensity_scale: NDArray[np.float64]
    """(3,) scanner units of the last session that 1.0 stands for, by modality."""
    masks: NDArray[np.bool_] | None
    """(num_sources, d, size, size) tumour of the sources, if known for all."""
    window: Window
    grid: Grid
    """Of the last session's first modality, on whose voxels results are given."""
    notes: tuple[str, ...] = ()
    """What is unusual about the images; shown to the user and recorded in the result."""

    def to_patient_grid(self, stack: NDArray[Scalar], fill: float = 0.0) -> NDArray[Scalar]:
        """Slices (d, size, size) on the voxel axes and shape of the last session's own file.

        Args:
            fill: value of voxels outside the window.
        """
        d, size = self.grid.shape[2], self.window.size
        if stack.shape != (d, size, size):
            raise ValueError(f"stack has shape {stack.shape}, expected {(d, size, size)}")
        return from_canonical(self.window.paste(stack, self.grid.shape, fill), self.grid)


def prepare(sessions: Sequence[Session], contract: DataContract) -> Prepared:
    """What the network is fed for these sources, exactly `contract.num_sources` in time order.

    The same head gives bitwise the same sources in whatever orientation its files are stored.

    Raises:
        GeometryError: grids, spacing or extent do not fit the network (TD3201, TD3202, TD3207,
            TD3208, TD3211).
        NiftiError: an image is not a skull-stripped scan in scanner units (TD3124 to TD3127).
        TableError: TD3315, another number of sessions.

    All findings on the images are raised together.
    """
    if len(sessions) != contract.num_sources:
        raise TableError(
            "TD3315",
            f"{len(sessions)} sessions were given, the model needs {contract.num_sources}",
        )
    images = [session.images[modality] for session in sessions for modality in MODALITIES]
    masks = [session.mask for session in sessions if session.mask is not None]
    ranges = _check_images(images, masks, contract)

    views = [_view(volume, contract) for volume in images]
    foreground = np.logical_or.reduce([view > 0 for view in views])
    window = _place_window(foreground, contract.size, images[0].label)
    d = foreground.shape[2]
    sources = np.empty((d, len(images), contract.size, contract.size), dtype=np.float32)
    for channel, (volume, view) in enumerate(zip(images, views, strict=True)):
        sources[:, channel] = ranges[id(volume)].normalise(window.cut(view))
    last = images[-len(MODALITIES) :]
    return Prepared(
        sources=sources,
        brain=foreground.any(axis=(0, 1)),
        intensity_scale=np.array([ranges[id(volume)].high for volume in last]),
        masks=_cut_masks(masks, window, contract) if len(masks) == len(sessions) else None,
        window=window,
        grid=_grid(last[0], contract),
        notes=tuple(_remarks(sessions, int(foreground.sum()))),
    )


def _grid(volume: Volume, contract: DataContract) -> Grid:
    x, y, z = volume.data.shape
    return canonical_grid((x, y, z), volume.affine, tuple(contract.orientation))


def _view(volume: Volume, contract: DataContract) -> NDArray[np.float32]:
    return canonical_view(volume.data, _grid(volume, contract))


def _check_images(
    images: Sequence[Volume], masks: Sequence[Volume], contract: DataContract
) -> dict[int, Range]:
    """The range of every image by id(volume): a session repeated as padding is measured once."""
    findings: list[TadiffError] = []
    findings += grid_findings(_distinct([*images, *masks]))
    reference = images[0]
    num_slices = _grid(reference, contract).shape[2]
    if num_slices < contract.min_slices:
        findings.append(
            GeometryError(
                "TD3208",
                f"the image has {num_slices} axial slices, at least {contract.min_slices} are "
                "needed",
                where=reference.label,
                fix="give the whole head",
            )
        )
    try:
        # The others share this grid, or are refused for that.
        check_spacing(
            reference.affine, contract.spacing_mm, contract.spacing_tolerance, reference.label
        )
    except GeometryError as error:
        findings.append(error)
    ranges = {}
    for volume in _distinct(images):
        try:
            ranges[id(volume)] = measure_range(volume.data, contract.percentiles, volume.label)
        except TadiffError as error:
            findings.append(error)
    raise_findings(findings)
    return ranges


def _distinct(volumes: Sequence[Volume]) -> list[Volume]:
    return list({id(volume): volume for volume in volumes}.values())


def _place_window(foreground: NDArray[np.bool_], size: int, label: str) -> Window:
    """The window around the foreground box: centred, the odd voxel at its end.

    The published pipeline crops to the box and pads it by (size - n) // 2 in front; outside the
    box the image is 0 either way.
    """
    boxes = []
    for other_axes in ((1, 2), (0, 2)):
        (held,) = np.nonzero(foreground.any(axis=other_axes))
        boxes.append((int(held[0]), int(held[-1]) + 1))
    lengths = [stop - start for start, stop in boxes]
    first, second = (start - (size - n) // 2 for (start, _), n in zip(boxes, lengths, strict=True))
    window = Window((first, second), size)
    if max(lengths) > size:
        raise GeometryError(
            "TD3211",
            f"the brain of all sessions spans {lengths[0]} x {lengths[1]} voxels in plane, the "
            f"model takes {size} x {size}: {_num_outside(foreground, window)} brain voxels would "
            "be cut off",
            where=label,
            fix="remove stray voxels outside the brain, or resample to larger voxels if the "
            "spacing allows",
        )
    return window


def _num_outside(foreground: NDArray[np.bool_], window: Window) -> int:
    outer, _ = window.overlap(foreground.shape)
    return int(foreground.sum() - foreground[outer].sum())


def _cut_masks(
    masks: Sequence[Volume], window: Window, contract: DataContract
) -> NDArray[np.bool_]:
    tumours = [_view(mask, contract) > 0 for mask in masks]
    raise_findings(
        [
            GeometryError(
                "TD3211",
                f"{outside} tumour voxels lie outside the {window.size} x {window.size} voxels "
                "around the brain",
                where=mask.label,
                fix="mask and image do not belong together, or the mask holds stray voxels",
            )
            for mask, tumour in zip(masks, tumours, strict=True)
            if (outside := _num_outside(tumour, window))
        ]
    )
    return np.stack([window.cut(tumour) for tumour in tumours])


def _remarks(sessions: Sequence[Session], num_foreground: int) -> list[str]:
    notes = []
    for session in sessions:
        digests = {session.images[modality].sha256 for modality in MODALITIES}
        if len(digests) < len(MODALITIES):
            notes.append(f"W3130: {session.name}: several modalities hold the same voxels")
        if session.mask is not None:
            share = int((session.mask.data > 0).sum()) / num_foreground
            if share > MAX_TUMOUR_FRACTION:
                notes.append(f"W3128: {session.name}: tumour covers {share:.0%} of the brain")
    return list(dict.fromkeys(notes))
