"""The two tumour masks of a SAILOR session as one label volume.

Labels are those of the published preprocessing: 1 oedema, 3 enhancing, the latter on top. Masks of
that data set were resampled: their tumour need not be 1, and faint voxels lie around it. Anything
between the two is refused, as its border would be a guess.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from tadiff_rt.case import Case, ReadOptions, Volume
from tadiff_rt.errors import (
    GeometryError,
    InputDataError,
    TableError,
    TadiffError,
    UsageError,
    raise_findings,
)
from tadiff_rt.geometry import canonical_grid, canonical_view, from_canonical, grid_findings
from tadiff_rt.labels import PUBLISHED
from tadiff_rt.readers.manifest import ImageFile
from tadiff_rt.readers.nifti import read_volume, voxel_digest

MASKS = {"EdemaMask-CL": 1, "ContrastEnhancedMask-CL": 3}
"""File name -> label, in the order of writing."""
FAINT = 0.1
"""Below this share of the maximum a voxel is no tumour, above 1 - FAINT it is."""

Names = Mapping[str, Sequence[ImageFile]]
"""Candidates for each of MASKS."""


def with_masks(load: Callable[[], Case], masks: Mapping[str, Names], options: ReadOptions) -> Case:
    """The case that `load` reads, with its tumour masks.

    A session with one of the two masks gets none: half a tumour is a wrong one.

    Args:
        load: gives the case without masks, or raises what is wrong with it.
        masks: of each session that is to have one.

    Raises:
        TadiffError: carrying the problems of images and masks together.
    """
    case: Case | None = None
    findings: list[TadiffError] = []
    try:
        case = load()
    except (InputDataError, UsageError) as error:
        findings += error.findings
    notes: list[str] = []
    merged: dict[str, Volume | None] = {}
    for session, names in masks.items():
        try:
            merged[session] = _merge(session, names, options, notes)
        except InputDataError as error:
            findings += error.findings
    raise_findings(findings)
    if any(merged.values()):
        notes.append(PUBLISHED.note)
    assert case is not None
    sessions = (replace(session, mask=merged.get(session.name)) for session in case.sessions)
    return replace(case, sessions=tuple(sessions), notes=(*case.notes, *notes))


def _merge(session: str, names: Names, options: ReadOptions, notes: list[str]) -> Volume | None:
    present = {stem: files for stem, files in names.items() if files}
    if len(present) < len(MASKS):
        if present:
            (stem,) = present
            absent = ", ".join(name for name in MASKS if name not in present)
            notes.append(f"no mask for {session}: it has {stem} without {absent}")
        return None
    raise_findings(
        [
            TableError(
                "TD3321",
                f"{len(files)} files could be {stem} of {session}",
                where=", ".join(file.label for file in files),
                fix="keep one of them",
            )
            for stem, files in present.items()
            if len(files) > 1
        ]
    )
    volumes = [_read(session, stem, names[stem][0], options, notes) for stem in MASKS]
    raise_findings(grid_findings(volumes))
    oedema = volumes[0]
    labels = np.zeros_like(oedema.data)
    grid = canonical_grid(_shape(oedema), oedema.affine)
    for volume, label in zip(volumes, MASKS.values(), strict=True):
        own = canonical_grid(_shape(volume), volume.affine)
        labels[from_canonical(canonical_view(volume.data > 0, own), grid)] = label
    if not labels.any():
        notes.append(f"there is no tumour in the masks of {session}")
    return replace(oedema, data=labels, sha256=voxel_digest(labels, oedema.affine))


def _shape(volume: Volume) -> tuple[int, int, int]:
    x, y, z = volume.data.shape
    return x, y, z


def _read(
    session: str, stem: str, file: ImageFile, options: ReadOptions, notes: list[str]
) -> Volume:
    """A mask of 0 and 1."""
    remarks: list[str] = []
    volume = read_volume(file.path, options, file.label, notes=remarks)
    top = float(volume.data.max())
    share = volume.data / np.float32(top if top > 0 else 1)
    tumour = share >= 1 - FAINT
    between = int(((np.abs(share) >= FAINT) & ~tumour).sum())
    if between:
        raise GeometryError(
            "TD3209",
            f"{between} voxels of the mask lie between background and its maximum, {top:g}",
            where=file.label,
            fix="save the mask with 1 for tumour and 0 elsewhere",
        )
    if top > 0 and (volume.data != tumour).any():
        remarks.append(
            f"{file.label}: tumour is {top:g}, fainter voxels were taken for background"
        )
    # The merged mask has the label of one file; a report knows sessions, and hides their names.
    notes += [remark.replace(file.label, f"{stem} of {session}") for remark in remarks]
    return replace(volume, data=tumour.astype(np.float32))
