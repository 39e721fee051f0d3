"""Cases listed file by file: manifest.csv, and the loading that every reader ends in.

    session,day,treatment,t1,t1c,flair,mask
    ses-01,0,CRT,ses-01/t1.nii.gz,ses-01/t1c.nii.gz,ses-01/flair.nii.gz,
    ses-02,84,TMZ,ses-02/t1.nii.gz,ses-02/t1c.nii.gz,ses-02/flair.nii.gz,ses-02/tumour.nii.gz

Paths are relative to the folder of the table, or absolute. The mask column and its cells may be
missing; what the labels of the masks mean is said by `ReadOptions.labels`. The treatment of a
session is the one given in the interval that ends at it; of the first session, the one about to
start.
"""

import itertools
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tadiff_rt.case import MODALITIES, Case, ReadOptions, Session, Volume
from tadiff_rt.errors import InputDataError, TableError, TadiffError, UsageError, raise_findings
from tadiff_rt.labels import Convention, convention_named, tumour_masks
from tadiff_rt.readers.tables import Columns, Row, read_rows

COLUMNS = Columns("session", "day", "treatment", required=MODALITIES, optional=("mask",))


@dataclass(frozen=True)
class ImageFile:
    """One image of a listing: where it lies and what messages call it."""

    path: Path
    label: str


@dataclass(frozen=True)
class Listing:
    """The files of one session."""

    row: Row
    images: dict[str, ImageFile]
    """By modality; one that is not there has been reported as a finding."""
    mask: ImageFile | None = None
    labels: Convention | None = None
    """What the data set says of the labels of the mask; None: what `ReadOptions.labels` says."""


@dataclass
class Found:
    """What a reader finds out before any image is read."""

    listings: list[Listing] = field(default_factory=list)
    findings: list[TadiffError] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_manifest_case(path: Path, options: ReadOptions, *, last: int | None = None) -> Case:
    """The case that a manifest.csv lists; it is named after the file.

    Args:
        path: the table.
        options: relaxations asked for.
        last: read the images of only so many sessions, counted from the end.

    Raises:
        TadiffError: carrying every problem of the table, or of all the images.
    """
    found = Found()
    table = path.name
    for row in read_rows(path, COLUMNS, options, found.notes, label=table):
        images = {}
        for modality in MODALITIES:
            cell = row.cells[modality]
            if cell:
                images[modality] = ImageFile(path.parent / cell, cell)
            else:
                what = f"session {row.session} has no {modality} image"
                fix = "name the file, or leave the session out of the table"
                where = f"{table}, line {row.line}"
                found.findings.append(TableError("TD3316", what, where=where, fix=fix))
        mask = row.cells.get("mask", "")
        file = ImageFile(path.parent / mask, mask) if mask else None
        found.listings.append(Listing(row, images, file))
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", path.stem)[:64]
    return load_case(name, found, options, last)


def load_case(name: str, found: Found, options: ReadOptions, last: int | None) -> Case:
    """Reads the images of a listing; reports the problems of all sessions together.

    Sessions before the last `last` keep their name, day and treatment and have no images.

    Raises:
        UsageError: TD3005, the convention of the labels is unknown.
        TadiffError: carrying every problem of the images and masks.
    """
    declared = convention_named(options.labels)
    findings, notes = list(found.findings), list(found.notes)
    first = 0 if last is None else max(0, len(found.listings) - last)
    sessions = []
    for i, listing in enumerate(found.listings):
        _check_distinct(listing, options, findings, notes)
        images: dict[str, Volume] = {}
        mask = None
        if i >= first:
            images, mask = _read_session(listing, options, findings, notes)
        else:
            _check_present(listing, findings)
        row = listing.row
        sessions.append(Session(row.session, row.day, row.treatment, images, mask))
    own = [listing.labels for listing in found.listings]
    sessions = with_tumours(sessions, own, declared, findings, notes)
    if findings:
        findings += _findings_on_grids(sessions)
    raise_findings(findings)
    return Case(name, tuple(sessions), tuple(notes))


def _read_session(
    listing: Listing, options: ReadOptions, findings: list[TadiffError], notes: list[str]
) -> tuple[dict[str, Volume], Volume | None]:
    from tadiff_rt.readers.nifti import read_volume

    images, mask = {}, None
    for modality, file in listing.images.items():
        try:
            images[modality] = read_volume(file.path, options, file.label, notes=notes)
        except InputDataError as error:
            findings.extend(_advised(error.findings, file))
    if listing.mask:
        file = listing.mask
        try:
            mask = read_volume(file.path, options, file.label, notes=notes)
        except InputDataError as error:
            findings.extend(_advised(error.findings, file))
    return images, mask


def _findings_on_grids(sessions: Sequence[Session]) -> list[TadiffError]:
    """What the images of a refused case would be refused for next, resampled or not."""
    from tadiff_rt.resample import resampling_findings

    last = sessions[-1].images.get(MODALITIES[0]) if sessions else None
    if last is None:
        return []
    volumes = [volume for session in sessions for volume in session.images.values()]
    return [*resampling_findings(volumes, last)]


def with_tumours(
    sessions: Sequence[Session],
    own: Sequence[Convention | None],
    declared: Convention,
    findings: list[TadiffError],
    notes: list[str],
) -> list[Session]:
    """`sessions` with masks of tumour alone; what is wrong with labels is appended to `findings`.

    Args:
        own: of each session, what the data set says of its labels, or None.
        declared: of the other sessions, together.
    """
    known = {i: session.mask for i, session in enumerate(sessions) if session.mask is not None}
    groups = [([i], labels) for i in known if (labels := own[i]) is not None]
    groups.append(([i for i in known if own[i] is None], declared))
    for indices, labels in groups:
        try:
            masks = tumour_masks([known[i] for i in indices], labels, notes)
        except InputDataError as error:
            findings += error.findings
        else:
            known.update(zip(indices, masks, strict=True))
    return [replace(session, mask=known.get(i)) for i, session in enumerate(sessions)]


def _check_present(listing: Listing, findings: list[TadiffError]) -> None:
    """An image that is not needed must still be there: its absence means a wrong table."""
    files = [*listing.images.values(), *([listing.mask] if listing.mask else [])]
    for file in files:
        if not os.path.isfile(file.path):
            missing = TableError("TD3122", "there is no such file", where=file.label)
            findings += _advised([missing], file)


def _advised(findings: Sequence[TadiffError], file: ImageFile) -> Sequence[TadiffError]:
    """Findings on a file, with what to do about a path that was copied from Windows."""
    for finding in findings:
        if finding.code == "TD3122" and "\\" in file.label and os.sep == "/":
            finding.fix = "write / between folders, and paths as they are on this machine"
    return findings


def _check_distinct(
    listing: Listing, options: ReadOptions, findings: list[TadiffError], notes: list[str]
) -> None:
    files = dict(listing.images)
    if listing.mask:
        files["mask"] = listing.mask
    for (first, a), (second, b) in itertools.combinations(files.items(), 2):
        if not _same_file(a.path, b.path):
            continue
        what = f"one file stands for {first} and {second} of session {listing.row.session}"
        if options.allow_same:
            notes.append(what)
        else:
            fix = "name two files, or pass --allow-same"
            findings.append(UsageError("TD3001", what, where=b.label, fix=fix))


def _same_file(a: Path, b: Path) -> bool:
    try:
        return os.path.samefile(a, b)
    except OSError:
        return os.path.abspath(a) == os.path.abspath(b)
