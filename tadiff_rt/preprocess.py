"""Sessions -> the arrays a TaDiff network is fed, and the way back onto the patient's grid.

Re-derived from the published preprocessing: reorient to P, L, I; normalise every volume by itself
(`intensity`); crop to the foreground box of all sources; cut or pad it symmetrically to the
network's window. Slices are axial, along the last canonical axis, and none is dropped. Images on
other grids are refused, or resampled first where that is asked for (`resample`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from tadiff_rt.case import MODALITIES, Session, Volume
from tadiff_rt.contract import DataContract
from tadiff_rt.errors import GeometryError, TableError, raise_findings
from tadiff_rt.geometry import Grid, canonical_view, from_canonical, grid_of, spacing_of
from tadiff_rt.image_checks import check_images, distinct, misfits, remarks_on, volumes_of
from tadiff_rt.interpolation import back_to, slices_between
from tadiff_rt.resample import Moved, resample_sessions, resampling_findings
from tadiff_rt.window import Window

__all__ = ["DataContract", "Prepared", "Window", "prepare"]

Scalar = TypeVar("Scalar", bound=np.generic)


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
    """That the window was cut from: of the last session's first modality, on whose voxels results
    are given, or the one that all images were resampled to."""
    notes: tuple[str, ...] = ()
    """What is unusual about the images; shown to the user and recorded in the result."""
    patient: Grid | None = None
    """Of the last session's first modality where the images were resampled."""

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel of `sources`, in millilitres."""
        return float(np.prod(spacing_of(self.grid.file_affine))) / 1000

    def to_patient_grid(
        self, stack: NDArray[Scalar], fill: float = 0.0, slices: Sequence[int] | None = None
    ) -> NDArray[Scalar]:
        """Slices (d, size, size) on the voxel axes and shape of the last session's own file.

        Exact where the images were not resampled, else linear interpolation of floating-point
        numbers; of booleans, voxels of at least one half.

        Args:
            fill: value of voxels outside the window.
            slices: those of the stack that count; a slice of the file that lies among others,
                too, is `fill`. None: all.
        """
        d, size = self.grid.shape[2], self.window.size
        if stack.shape != (d, size, size):
            raise ValueError(f"stack has shape {stack.shape}, expected {(d, size, size)}")
        whole = self.window.paste(stack, self.grid.shape, fill)
        if self.patient is None:
            return from_canonical(whole, self.grid)
        there = back_to(whole, self.grid, self.patient)
        if slices is not None:
            there[..., ~slices_between(slices, self.grid, self.patient)] = fill
        return from_canonical(there, self.patient)


def prepare(
    sessions: Sequence[Session], contract: DataContract, *, resample: bool = False
) -> Prepared:
    """What the network is fed for these sources, exactly `contract.num_sources` in time order.

    The same head gives bitwise the same sources in whatever orientation its files are stored.

    Args:
        resample: images that do not fit the network's grid are resampled to it, all of them, if
            their axes are parallel; those that fit stay as they are, bit by bit.

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
    images, masks = volumes_of(sessions)
    findings = misfits(images, masks, contract)
    patient: Grid | None = None
    notes: tuple[str, ...] = ()
    if findings and resample:
        moved = _resampled(sessions, contract)
        sessions, patient, notes, findings = moved.sessions, moved.patient, moved.notes, []
        images, masks = volumes_of(sessions)
    ranges = check_images(images, contract, findings)

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
        grid=grid_of(last[0], contract.orientation),
        notes=(*notes, *remarks_on(sessions, int(foreground.sum()))),
        patient=patient,
    )


def _view(volume: Volume, contract: DataContract) -> NDArray[np.float32]:
    return canonical_view(volume.data, grid_of(volume, contract.orientation))


def _resampled(sessions: Sequence[Session], contract: DataContract) -> Moved:
    """The sessions on the network's grid; what is wrong with the images themselves comes first.

    Interpolation could hide it: of an image without a background of 0, or that is no brain.
    """
    images, masks = volumes_of(sessions)
    last = sessions[-1].images[MODALITIES[0]]
    axcodes = contract.orientation
    findings = resampling_findings(distinct([*images, *masks]), last, axcodes)
    check_images(images, contract, findings)
    return resample_sessions(sessions, axcodes, contract.spacing_mm)


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
