"""What the readers understood of a cohort: a row for every subject, and small pictures.

Images are judged as training will judge them, each by itself: one grid within a subject, a brain
on a background of 0, a mask for every session. What depends on the network (`--size`,
`--spacing-mm`) is reported as numbers to choose it by.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from tadiff_rt.case import MODALITIES, Case, ReadOptions, Volume
from tadiff_rt.errors import GeometryError, InputDataError, TadiffError
from tadiff_rt.geometry import canonical_grid, grid_findings, spacing_of
from tadiff_rt.intensity import measure_range
from tadiff_rt.preprocess import DataContract
from tadiff_train.data.cohort import Subject, find_subjects, findings_of, read_subject
from tadiff_train.data.entry import require_masks
from tadiff_train.data.findings import merged
from tadiff_train.data.picture import Strip, strip_of, tumour_ml, view_of
from tadiff_train.data.remarks import Scans, remarks_on, remarks_on_twins, scans_of
from tadiff_train.data.split import FRACTIONS, SALT, split_of

CONTRACT = DataContract()
MAX_EDGE_RATIO = (1 + CONTRACT.spacing_tolerance) / (1 - CONTRACT.spacing_tolerance)


class PatientSummary(BaseModel):
    """A row of the table; what could not be read is empty."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    layout: str
    part: str
    """Of the split."""
    days: tuple[int, ...] = ()
    treatments: tuple[str, ...] = ()
    tumour_ml: tuple[float | None, ...] = ()
    """By session; None without a mask."""
    shape: tuple[int, int, int] | None = None
    """Of the first image, on canonical axes: rows, columns, axial slices."""
    spacing_mm: tuple[float, float, float] | None = None
    """Along the same axes."""
    brain: tuple[int, int] | None = None
    """Rows and columns that hold the brain of all sessions; what `--size` must be at least."""
    notes: tuple[str, ...] = ()
    """What the reader assumed or relaxed, and `remarks`."""
    findings: tuple[str, ...] = ()
    """Codes."""


@dataclass(frozen=True)
class Inspection:
    """What was understood of a cohort."""

    patients: tuple[PatientSummary, ...]
    findings: tuple[TadiffError, ...]
    """Of all patients, those on data before those on usage; those on one
    choice for the cohort as one."""
    strips: tuple[Strip, ...]
    """Of the first patients that could be read."""

    def heading(self) -> str:
        """How much of the cohort the pictures show."""
        shown = sum(len(strip.panels) for strip in self.strips)
        total = self.totals()
        return (
            f"T1c, {len(self.strips)} of {total['patients']} patients, {shown} of "
            f"{total['sessions']} sessions"
        )

    def totals(self) -> dict[str, object]:
        """Counts and ranges over the patients that could be read."""
        read = [p for p in self.patients if p.days]
        gaps = [b - a for p in read for a, b in itertools.pairwise(p.days)]
        brains = [p.brain for p in read if p.brain]
        return {
            "patients": len(self.patients),
            "read": len(read),
            "with_findings": sum(bool(p.findings) for p in self.patients),
            "sessions": sum(len(p.days) for p in read),
            "treatments": dict(sorted(Counter(t for p in read for t in p.treatments).items())),
            "parts": dict(Counter(p.part for p in self.patients)),
            "max_day": max((p.days[-1] for p in read), default=None),
            "max_gap_days": max(gaps, default=None),
            "spacings_mm": sorted({p.spacing_mm for p in read if p.spacing_mm}),
            "one_spacing_fits": _one_spacing_fits(read),
            "largest_brain": [max(n) for n in zip(*brains, strict=True)] if brains else None,
        }


def inspect_cohort(
    root: Path,
    options: ReadOptions | None = None,
    *,
    fractions: Mapping[str, float] = FRACTIONS,
    salt: str = SALT,
    max_strips: int = 12,
    progress: Callable[[int, int], None] | None = None,
) -> Inspection:
    """Reads every subject of a cohort and says what it holds; a bad one hides no other.

    Args:
        root, options: as `find_subjects` and `read_subject` take them.
        fractions, salt: of the split, as `split_of`.
        max_strips: pictures are kept of so many patients.
        progress: called with (subjects done, subjects).

    Raises:
        UsageError: no subject, or the request cannot be understood.
        ResourceError: memory ran out.
    """
    options = options or ReadOptions()
    found = find_subjects(root, options)
    patients: list[PatientSummary] = []
    strips: list[Strip] = []
    findings: list[TadiffError] = []
    scans: list[tuple[str, Scans]] = []
    for i, subject in enumerate(found):
        part = split_of(subject.name, fractions, salt)
        row, case, problems = _inspect(subject, options, part)
        if case is not None and len(strips) < max_strips:
            strips.append(strip_of(case))
        if case is not None:
            scans.append((subject.name, scans_of(case)))
        patients.append(row)
        findings += problems
        if progress is not None:
            progress(i + 1, len(found))
    findings.sort(key=lambda finding: not isinstance(finding, InputDataError))
    patients = _with_notes(patients, remarks_on_twins(scans))
    return Inspection(tuple(patients), tuple(merged(findings)), tuple(strips))


def _with_notes(
    patients: Sequence[PatientSummary], notes: Sequence[tuple[str, str]]
) -> list[PatientSummary]:
    """Rows with further notes, each given with the name of its patient."""
    added = {p.name: tuple(note for name, note in notes if name == p.name) for p in patients}
    return [p.model_copy(update={"notes": (*p.notes, *added[p.name])}) for p in patients]


def _inspect(
    subject: Subject, options: ReadOptions, part: str
) -> tuple[PatientSummary, Case | None, tuple[TadiffError, ...]]:
    """The row of a subject, its case if it can be read, and what is wrong with it."""
    base = PatientSummary(name=subject.name, layout=subject.layout, part=part)
    try:
        case = read_subject(subject, options)
    except TadiffError as error:
        problems = findings_of(subject, error)
        return base.model_copy(update={"findings": _codes(problems)}), None, problems
    problems = tuple(
        finding for error in _problems(case, subject) for finding in findings_of(subject, error)
    )
    first = case.sessions[0].images[MODALITIES[0]]
    row = {
        "days": tuple(session.day for session in case.sessions),
        "treatments": tuple(session.treatment for session in case.sessions),
        "tumour_ml": tuple(tumour_ml(session.mask) for session in case.sessions),
        "shape": view_of(first).shape,
        "spacing_mm": _spacing_mm(first),
        "brain": _brain(case),
        "notes": (*case.notes, *remarks_on(case)),
        "findings": _codes(problems),
    }
    return base.model_copy(update=row), case, problems


def _problems(case: Case, subject: Subject) -> list[TadiffError]:
    """What training would refuse, whatever the network."""
    volumes = [session.images[name] for session in case.sessions for name in MODALITIES]
    masks = [session.mask for session in case.sessions if session.mask is not None]
    problems: list[TadiffError] = [*grid_findings([*volumes, *masks])]
    edges = spacing_of(volumes[0].affine)
    if max(edges) > MAX_EDGE_RATIO * min(edges):
        problems.append(
            GeometryError(
                "TD3207",
                f"voxels measure {' x '.join(f'{edge:.4g}' for edge in edges)} mm; a network "
                f"takes edges that differ by a factor of at most {MAX_EDGE_RATIO:.3g}",
                where=volumes[0].label,
                fix="resample all images and masks of the subject to cubes",
            )
        )
    for volume in volumes:
        try:
            measure_range(volume.data, CONTRACT.percentiles, volume.label)
        except InputDataError as error:
            problems.append(error)
    try:
        require_masks(case, subject.layout)
    except TadiffError as error:
        problems.append(error)
    return problems


def _one_spacing_fits(patients: Sequence[PatientSummary]) -> bool:
    """Whether some `--spacing-mm` takes the voxels of all patients."""
    edges = [edge for p in patients for edge in p.spacing_mm or ()]
    return not edges or max(edges) <= MAX_EDGE_RATIO * min(edges)


def _spacing_mm(volume: Volume) -> tuple[float, ...]:
    """Edges of a voxel along the canonical axes."""
    x, y, z = volume.data.shape
    affine = canonical_grid((x, y, z), volume.affine).affine
    return tuple(round(edge, 3) for edge in spacing_of(affine))


def _codes(problems: Sequence[TadiffError]) -> tuple[str, ...]:
    return tuple(problem.code for problem in problems)


def _brain(case: Case) -> tuple[int, int] | None:
    """Extent of the brain of all sessions in plane, in voxels; None without one grid."""
    held: dict[int, list[NDArray[np.bool_]]] = {0: [], 1: []}
    for session in case.sessions:
        for volume in session.images.values():
            view = view_of(volume) > 0
            for axis, profiles in held.items():
                profiles.append(view.any(axis=(1 - axis, 2)))
    if any(len({len(profile) for profile in profiles}) > 1 for profiles in held.values()):
        return None
    rows, columns = (np.flatnonzero(np.logical_or.reduce(held[axis])) for axis in held)
    return (int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1) if len(rows) else (0, 0)
