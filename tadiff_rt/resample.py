"""Sessions on other voxel grids, brought onto the network's where that is asked for by name.

Only grids with parallel axes are resampled, through the images' own affines (`interpolation`);
nothing is turned or registered. So images must already be registered: to one head, if not to one
grid.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from tadiff_rt.case import MODALITIES, Session, Volume
from tadiff_rt.errors import GeometryError, raise_findings
from tadiff_rt.geometry import (
    PLI,
    REGISTER,
    Grid,
    canonical_grid,
    canonical_view,
    grid_of,
    in_mm,
    spacing_of,
)
from tadiff_rt.interpolation import HALF, Map, centre_mm, directions

MAX_TURN = 1e-3
"""Direction cosines of two grids may differ by so much: 0.1 mm at a distance of 100 mm."""
EDGES_MM = (0.1, 10.0)
"""Voxel edges that are resampled; slices of a head scan are no thicker."""
MAX_EXTENT_MM = 512.0
"""Of a head; with the spacing of the network it bounds the memory."""
REMARKABLE_SHARE = 0.05
"""Share of the brain outside the field of view of the last T1 that is remarked on."""
MIN_OVERLAP = 0.8
"""Share of the smaller of two brains that lies in the other; registered ones have far more."""


@dataclass(frozen=True)
class Moved:
    """Sessions on the grid of a network."""

    sessions: tuple[Session, ...]
    patient: Grid
    """Of the last session's T1 as it was."""
    notes: tuple[str, ...]


def resampling_findings(
    volumes: Sequence[Volume], reference: Volume, axcodes: Sequence[str] = PLI
) -> list[GeometryError]:
    """Why images cannot be resampled onto axes parallel to those of `reference`, one an image.

    TD3201 turned, or elsewhere; TD3202 mirrored; TD3207 voxels or extent of no head scan.
    """
    target = grid_of(reference, axcodes)
    findings = []
    for volume in volumes:
        grid = grid_of(volume, axcodes)
        finding = _unfit(grid, volume.label)
        findings.append(finding or _apart(grid, target, volume.label, reference.label))
    return [finding for finding in findings if finding]


def network_grid(reference: Volume, axcodes: Sequence[str], spacing_mm: float) -> Grid:
    """Cubes of `spacing_mm` on canonical axes parallel to those of an image, over its extent.

    Both have the same centre, so that the grid does not depend on how the image is stored.
    """
    own = grid_of(reference, axcodes)
    x, y, z = (math.ceil(length / spacing_mm - 1e-3) for length in _extents_mm(own))
    affine = np.eye(4)
    affine[:3, :3] = directions(own) * spacing_mm
    affine[:3, 3] = centre_mm(own) - affine[:3, :3] @ ((np.array([x, y, z]) - 1) / 2)
    return canonical_grid((x, y, z), affine, axcodes)


def resample_sessions(
    sessions: Sequence[Session], axcodes: Sequence[str], spacing_mm: float
) -> Moved:
    """All images and masks of `sessions` on the grid that the network takes.

    Args:
        sessions: without `resampling_findings`; the last one's T1 says where the grid lies.

    Raises:
        GeometryError: TD3211, there is tumour outside the field of view of that T1.
    """
    last = sessions[-1].images[MODALITIES[0]]
    grid = network_grid(last, axcodes, spacing_mm)
    done: dict[int, Volume] = {}  # a session repeated as padding is resampled once
    notes: list[str] = []
    findings = []
    moved = []
    for session in sessions:
        images = {}
        for name, volume in session.images.items():
            if id(volume) not in done:
                done[id(volume)] = _resample_image(volume, grid, axcodes, notes)
            images[name] = done[id(volume)]
        mask = session.mask
        if mask is not None and id(mask) not in done:
            try:
                done[id(mask)] = _resample_mask(mask, grid, axcodes, notes)
            except GeometryError as error:
                findings.append(error)
        moved.append(replace(session, images=images, mask=done.get(id(mask))))
    raise_findings(findings)
    notes += _overlaps(moved)
    return Moved(tuple(moved), grid_of(last, axcodes), tuple(notes))


def _resample_image(
    volume: Volume, grid: Grid, axcodes: Sequence[str], notes: list[str]
) -> Volume:
    """An image on `grid`, its background 0 again where less than half of a voxel is brain.

    Without that, resampling would add a rim of faint voxels to the brain, several slices deep
    where slices are thick. Voxels < 0 are background, as to the network.
    """
    own = grid_of(volume, axcodes)
    to_grid = Map(own, grid)
    data = canonical_view(volume.data, own)
    if to_grid.is_identity:
        return replace(volume, data=np.ascontiguousarray(data), affine=grid.affine)
    data = np.maximum(data, np.float32(0), order="C")
    brain = (data > 0).astype(np.float32)
    notes.append(_note(volume, own, grid))
    outside = to_grid.share_outside(brain)
    if outside > REMARKABLE_SHARE:
        notes.append(
            f"W3212: {volume.label}: {outside:.0%} of the brain lie outside the field of view of "
            "the last T1 and were not used"
        )
    data = np.where(to_grid(brain) >= HALF, to_grid(data), np.float32(0))
    return replace(volume, data=data, affine=grid.affine)


def _resample_mask(volume: Volume, grid: Grid, axcodes: Sequence[str], notes: list[str]) -> Volume:
    """Tumour (0 or 1) on `grid`: voxels of which at least half is tumour."""
    own = grid_of(volume, axcodes)
    to_grid = Map(own, grid)
    tumour = np.ascontiguousarray(canonical_view(volume.data > 0, own), np.float32)
    if to_grid.is_identity:
        return replace(volume, data=tumour, affine=grid.affine)
    outside = to_grid.share_outside(tumour)
    if outside > 0:
        raise GeometryError(
            "TD3211",
            f"{outside:.2%} of the tumour lie outside the field of view of the last session's T1",
            where=volume.label,
            fix="mask and images do not belong together, or the mask holds stray voxels",
        )
    notes.append(_note(volume, own, grid))
    data = (to_grid(tumour) >= HALF).astype(np.float32)
    return replace(volume, data=data, affine=grid.affine)


def _note(volume: Volume, own: Grid, grid: Grid) -> str:
    before, after = in_mm(spacing_of(own.affine)), in_mm(spacing_of(grid.affine))
    return f"{volume.label}: resampled from voxels of {before} to {after}"


def _overlaps(sessions: Sequence[Session]) -> list[str]:
    """Remarks on sessions whose brains lie elsewhere than the last one's."""
    brains = [
        np.logical_or.reduce([volume.data > 0 for volume in session.images.values()])
        for session in sessions
    ]
    notes = []
    for session, brain in zip(sessions[:-1], brains[:-1], strict=True):
        smaller = min(int(brain.sum()), int(brains[-1].sum()))
        share = int((brain & brains[-1]).sum()) / max(smaller, 1)
        if share < MIN_OVERLAP:
            notes.append(
                f"W3213: {session.name}: {share:.0%} of the brain lie within that of the last "
                "session; resampling does not register"
            )
    return list(dict.fromkeys(notes))


def _extents_mm(grid: Grid) -> list[float]:
    return [n * edge for n, edge in zip(grid.shape, spacing_of(grid.affine), strict=True)]


def _unfit(grid: Grid, label: str) -> GeometryError | None:
    edges, extents_mm = spacing_of(grid.affine), _extents_mm(grid)
    low, high = EDGES_MM
    if min(edges) >= low and max(edges) <= high and max(extents_mm) <= MAX_EXTENT_MM:
        return None
    what = (
        f"voxels measure {in_mm(edges)} and the image {in_mm(extents_mm)}; edges of {low:g} to "
        f"{high:g} mm over at most {MAX_EXTENT_MM:g} mm are resampled"
    )
    return GeometryError("TD3207", what, where=label, fix="check the voxel size in the header")


def _apart(grid: Grid, target: Grid, label: str, reference: str) -> GeometryError | None:
    """Why two grids cannot be brought together by moving along their axes."""
    ours, theirs = directions(target), directions(grid)
    if np.abs(ours - theirs).max() > MAX_TURN:
        cosine = (float(np.trace(ours.T @ theirs)) - 1) / 2
        degrees = math.degrees(math.acos(min(1.0, max(-1.0, cosine))))
        what = (
            f"the image is turned by {degrees:.2g} degrees against {reference}; resampling does "
            "not turn"
        )
        return GeometryError("TD3201", what, where=label, fix=REGISTER)
    shifts_mm = np.abs((centre_mm(grid) - centre_mm(target)) @ ours)
    if (shifts_mm <= np.array(_extents_mm(target)) / 2).all():
        return None
    place = (
        f"its centre lies {shifts_mm.max():.1f} mm from that of {reference}, outside its field of "
        "view"
    )
    handedness = [np.sign(np.linalg.det(g.file_affine[:3, :3])) for g in (grid, target)]
    if handedness[0] == handedness[1]:
        what = f"the image is elsewhere: {place}"
        return GeometryError("TD3201", what, where=label, fix=REGISTER)
    return GeometryError(
        "TD3202",
        f"the image is mirrored: {place}, and the grids have opposite handedness",
        where=label,
        fix="one header was flipped without its data; take the affine from the original file",
    )
