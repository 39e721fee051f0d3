"""Cases as the arrays that the published preprocessing writes.

    sub-17_image.npy       (4 T, h, w, d) float32: channel = modality * T + session, of T1, T1c,
                           FLAIR and T2 (not read); (3 T, h, w, d) without T2
    sub-17_label.npy       (T, h, w, d) integers: 0 no tumour, 1 oedema, 2 necrosis, 3 enhancing
                                                                                     (if known)
    sub-17_days.npy        (T,) integers, days since the first session
    sub-17_treatment.npy   (T,) integers: 0 CRT, 1 TMZ, 2 none, 3 unknown

Sessions have no names there; they are called ses-01, ses-02, ... in order. Intensities are those
of the array, normalised to [0, 1] when published, and so are those of a forecast from it. Where
the voxels lie is said by `npy_grid`; labels of masks that somebody else numbered by
`ReadOptions.labels`.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tadiff_rt.case import MODALITIES, TREATMENTS, Case, ReadOptions, Session, Volume
from tadiff_rt.errors import (
    GeometryError,
    InputDataError,
    NiftiError,
    ResourceError,
    TableError,
    TadiffError,
    raise_findings,
)
from tadiff_rt.labels import PUBLISHED, convention_named
from tadiff_rt.readers.folders import NPY_IMAGE, npy_image
from tadiff_rt.readers.manifest import with_tumours
from tadiff_rt.readers.nifti import handle_nonfinite, voxel_digest
from tadiff_rt.readers.npy_file import NpyFile, open_npy
from tadiff_rt.readers.npy_grid import npy_affine, parse_npy_grid
from tadiff_rt.readers.npy_order import check_modality_major
from tadiff_rt.readers.tables import Row, check_day, id_problem, quoted
from tadiff_rt.readers.visits import in_order

AXES = {"image": 4, "label": 4, "days": 1, "treatment": 1}
"""Arrays of a case, and how many axes each has."""
NUM_MODALITIES = (4, 3)
MAX_SESSIONS = 200
"""The check of the order of channels compares every two of them."""
_NAMES = {code: name for name, code in TREATMENTS.items()}


@dataclass(frozen=True)
class Arrays:
    """The files of one case, their headers judged."""

    image: NpyFile
    days: NpyFile
    treatment: NpyFile
    label: NpyFile | None


def read_npy_case(path: Path, options: ReadOptions, *, last: int | None = None) -> Case:
    """The case of `..._image.npy` and the files beside it.

    Args:
        path: that file, or a folder with one such file.
        options: relaxations asked for.
        last: read the images of only so many sessions, counted from the end.

    Raises:
        UsageError: TD3002, the folder holds several cases.
        TadiffError: carrying every problem of the headers, then of days, treatments and counts,
            then of the voxels. TD3303 for more than MAX_SESSIONS sessions, TD3319 where the
            counts disagree, TD3322 where the channels are ordered by session, TD7001 where
            memory does not suffice.
    """
    parse_npy_grid(options.npy_grid)
    path = npy_image(path)
    name = path.name.removesuffix(NPY_IMAGE)
    if problem := id_problem(name):
        raise TableError("TD3318", f"case {quoted(name)} {problem}", where=path.name)
    notes: list[str] = []
    arrays = _open_all(path, name, options)
    rows = _rows(arrays, options, notes)
    try:
        affine = _affine(arrays.image, len(rows), options, notes)
        sessions = _read_sessions(arrays, rows, affine, options, last, notes)
    except MemoryError as error:
        raise ResourceError("TD7001", "not enough memory to read it", where=path.name) from error
    return Case(name, sessions, tuple(notes))


def _affine(
    image: NpyFile, num_sessions: int, options: ReadOptions, notes: list[str]
) -> NDArray[np.float64]:
    """Where the voxels lie; problems of grid and order of channels are raised together."""
    h, w, d = image.shape[1:]
    findings: list[TadiffError] = []
    affine = np.eye(4)
    try:
        affine = npy_affine((h, w, d), options, image.label, notes)
    except GeometryError as error:
        findings += error.findings
    try:
        check_modality_major(image, num_sessions, notes)
    except InputDataError as error:
        findings += error.findings
    raise_findings(findings)
    return affine


def _open_all(path: Path, name: str, options: ReadOptions) -> Arrays:
    files: dict[str, NpyFile] = {}
    findings: list[TadiffError] = []
    for key in AXES:
        file = path.with_name(f"{name}_{key}.npy")
        if key == "label" and not os.path.lexists(file):
            continue
        try:
            files[key] = open_npy(file, file.name)
            _check_header(key, files[key], options)
        except InputDataError as error:
            findings += error.findings
    raise_findings(findings)
    return Arrays(files["image"], files["days"], files["treatment"], files.get("label"))


def _check_header(key: str, file: NpyFile, options: ReadOptions) -> None:
    if len(file.shape) != AXES[key]:
        what = f"the array has {len(file.shape)} axes, expected {AXES[key]}"
        raise NiftiError("TD3113", what, where=file.label)
    kinds = {"image": "f", "label": "iub"}.get(key, "iu")
    if file.dtype.kind not in kinds:
        expected = "floating-point numbers" if kinds == "f" else "integers"
        what = f"elements are {file.dtype}, expected {expected}"
        raise NiftiError("TD3115", what, where=file.label)
    voxels = math.prod(file.shape[1:])
    if voxels > options.max_voxels:
        what = f"a volume has {voxels} voxels, at most {options.max_voxels} are read"
        fix = "pass --max-voxels=N if the image really is that large"
        raise NiftiError("TD3111", what, where=file.label, fix=fix)


def _rows(arrays: Arrays, options: ReadOptions, notes: list[str]) -> list[Row]:
    """Name, day and treatment of every session, in order of day."""
    _check_counts(arrays)
    findings: list[TadiffError] = []
    rows = []
    days, codes = (file.read().tolist() for file in (arrays.days, arrays.treatment))
    for i, (day, code) in enumerate(zip(days, codes, strict=True)):
        name = _session_name(i)
        error = check_day(str(day), f"day of {name}", arrays.days.label)
        if error:
            findings.append(error)
        if code not in _NAMES:
            known = ", ".join(f"{number} {word}" for number, word in _NAMES.items())
            what = f"treatment code {code} of {name} is unknown; known are {known}"
            findings.append(TableError("TD3314", what, where=arrays.treatment.label))
        rows.append(Row(0, name, day, _NAMES.get(code, ""), {}))
    if not findings:
        rows, disorder = in_order(rows, options, notes, arrays.days.label)
        findings += disorder
    raise_findings(findings)
    return rows


def _session_name(index: int) -> str:
    return f"ses-{index + 1:02}"


def _check_counts(arrays: Arrays) -> None:
    findings: list[TadiffError] = []
    channels, sessions = arrays.image.shape[0], arrays.days.shape[0]
    counts = {arrays.treatment.label: arrays.treatment.shape[0]}
    if arrays.label:
        counts[arrays.label.label] = arrays.label.shape[0]
        ours, theirs = arrays.label.shape[1:], arrays.image.shape[1:]
        if ours != theirs:
            what = f"label volumes have shape {ours}, image volumes {theirs}"
            findings.append(GeometryError("TD3201", what, where=arrays.label.label))
    wrong = [f"{count} entries in {label}" for label, count in counts.items() if count != sessions]
    if channels not in [n * sessions for n in NUM_MODALITIES]:
        each = " or ".join(map(str, NUM_MODALITIES))
        wrong.append(f"{channels} channels in {arrays.image.label}, expected {each} a session")
    if sessions > MAX_SESSIONS:
        what = f"there are {sessions} sessions, at most {MAX_SESSIONS} are read"
        fix = "save the arrays of one patient, with the sessions that are wanted"
        findings.append(TableError("TD3303", what, where=arrays.days.label, fix=fix))
    if wrong:
        what = f"there are {sessions} days, but {'; '.join(wrong)}"
        fix = "find out which sessions lack a day, and save all arrays for the same sessions"
        findings.append(TableError("TD3319", what, where=arrays.days.label, fix=fix))
    raise_findings(findings)


def _read_sessions(
    arrays: Arrays,
    rows: Sequence[Row],
    affine: NDArray[np.float64],
    options: ReadOptions,
    last: int | None,
    notes: list[str],
) -> tuple[Session, ...]:
    findings: list[TadiffError] = []
    positions = {_session_name(i): i for i in range(len(rows))}
    sessions = []
    for k, row in enumerate(rows):
        images: dict[str, Volume] = {}
        mask = None
        if last is None or k >= len(rows) - last:
            at = positions[row.session]
            try:
                for m, modality in enumerate(MODALITIES):
                    label = f"{arrays.image.label}, {modality} of {row.session}"
                    data = arrays.image.read(m * len(rows) + at, 1)[0]
                    images[modality] = _volume(data, affine, label, options, notes)
                if arrays.label:
                    label = f"{arrays.label.label}, {row.session}"
                    data = arrays.label.read(at, 1)[0]
                    mask = _volume(data, affine, label, options, notes)
            except InputDataError as error:
                findings += error.findings
        sessions.append(Session(row.session, row.day, row.treatment, images, mask))
    declared = convention_named(options.labels) if options.labels else PUBLISHED
    sessions = with_tumours(sessions, [None] * len(rows), declared, findings, notes)
    raise_findings(findings)
    return tuple(sessions)


def _volume(
    stored: NDArray[Any],
    affine: NDArray[np.float64],
    label: str,
    options: ReadOptions,
    notes: list[str],
) -> Volume:
    # A damaged voxel may hold a signalling NaN, which numpy warns of.
    with np.errstate(over="ignore", invalid="ignore"):
        data = stored.astype(np.float32)
    finite = np.isfinite(data)
    if not finite.all():
        num_nan = int(np.isnan(data).sum())
        num_inf = data.size - int(finite.sum()) - num_nan
        handle_nonfinite(num_nan, num_inf, data.size, options, label, notes)
        data[~finite] = 0
    return Volume(data, affine, label, voxel_digest(data, affine))
