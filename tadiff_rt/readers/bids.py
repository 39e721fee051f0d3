"""Cases in a BIDS dataset: one subject folder with its table of sessions.

    sub-17/sub-17_sessions.tsv       session_id  days_from_baseline  treatment  (further columns)
    sub-17/ses-01/anat/sub-17_ses-01_T1w.nii.gz
    sub-17/ses-01/anat/sub-17_ses-01_ce-gadolinium_T1w.nii.gz
    sub-17/ses-01/anat/sub-17_ses-01_FLAIR.nii.gz
    derivatives/*/sub-17/ses-01/anat/sub-17_ses-01_desc-tumour_dseg.nii.gz        (if known)

What the labels of a mask mean is said by a table (`label_table`) or by `ReadOptions.labels`.

Names may hold further entities (acq-, run-, space-, ...) as long as one file is left for each
image: which of two T1w runs is meant is not guessed.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from tadiff_rt.case import MODALITIES, Case, ReadOptions
from tadiff_rt.errors import InputDataError, TableError, TadiffError, UsageError
from tadiff_rt.labels import Convention, require_agreement
from tadiff_rt.readers.folders import entries, some
from tadiff_rt.readers.label_table import find_label_table, read_label_table
from tadiff_rt.readers.manifest import Found, ImageFile, Listing, load_case
from tadiff_rt.readers.tables import Columns, Row, id_problem, quoted, read_rows

COLUMNS = Columns(
    "session_id", "days_from_baseline", "treatment", extra_allowed=True, separator="\t"
)

_NO_TABLE = ("TD3122", "TD3301", "TD3305")
FIX_TABLE = (
    "the table has a row a session and, separated by tabs, the columns session_id (as ses-01), "
    "days_from_baseline (0 in the first session; no dates) and treatment (CRT, TMZ or none, until "
    "that session)"
)
_NAME = re.compile(r"((?:[a-z]+-[A-Za-z0-9+]+_)+)(T1w|FLAIR|dseg)\.nii(?:\.gz)?")
_SUFFIX = {"t1": "T1w", "t1c": "ce-gadolinium_T1w", "flair": "FLAIR"}


def read_bids_case(path: Path, options: ReadOptions, *, last: int | None = None) -> Case:
    """The case of a subject folder, or of a dataset that has exactly one subject.

    Args:
        path: `.../sub-17`, or the folder that holds it.
        options: relaxations asked for.
        last: read the images of only so many sessions, counted from the end.

    Raises:
        TadiffError: carrying every problem of the table, or of all the images.
    """
    subject = _subject_folder(path)
    problem = id_problem(subject.name)
    if problem:
        what = f"subject {quoted(subject.name)} {problem}"
        raise TableError("TD3318", what, where=subject.name)
    found = Found()
    table = f"{subject.name}_sessions.tsv"
    label = f"{subject.name}/{table}"
    try:
        rows = read_rows(subject / table, COLUMNS, options, found.notes, label=label)
    except TableError as error:
        for finding in error.findings:
            finding.fix = FIX_TABLE if finding.code in _NO_TABLE else finding.fix
        raise
    for row in rows:
        found.listings.append(_list_session(subject, row, options, found.findings, label))
    _check_all_listed(subject, rows, found.findings, label)
    return load_case(subject.name, found, options, last)


def _subject_folder(path: Path) -> Path:
    if path.name.startswith("sub-"):
        return path
    subjects = [entry for entry in entries(path) if entry.startswith("sub-")]
    subjects = [entry for entry in subjects if os.path.isdir(path / entry)]
    if len(subjects) == 1:
        return path / subjects[0]
    if subjects:
        what = f"the dataset has {len(subjects)} subjects: {some(subjects)}"
        fix = f"name one of them, e.g. {path.name}/{subjects[0]}"
        raise UsageError("TD3002", what, where=path.name, fix=fix)
    fix = "give the folder of a subject (BIDS, SAILOR or LUMIERE), a manifest.csv or npy arrays"
    raise TableError("TD3122", "the folder holds no subject sub-XX", where=path.name, fix=fix)


def _kind(name: str, subject: str, session: str) -> str:
    """ "t1", "t1c", "flair" or "dseg" for an image of this session, "" for any other file."""
    match = _NAME.fullmatch(name)
    if not match or not name.startswith(f"{subject}_{session}_"):
        return ""
    enhanced = "_ce-" in match[1]
    if match[2] == "T1w":
        return "t1c" if enhanced else "t1"
    if match[2] == "FLAIR":
        return "" if enhanced else "flair"
    return "dseg" if match[2] == "dseg" else ""


def _candidates(folder: Path, subject: str, session: str) -> dict[str, list[str]]:
    """Names of the images in an anat folder, by kind."""
    kinds: dict[str, list[str]] = {}
    for name in entries(folder):
        kinds.setdefault(_kind(name, subject, session), []).append(name)
    kinds.pop("", None)
    return kinds


def _list_session(
    subject: Path, row: Row, options: ReadOptions, findings: list[TadiffError], table: str
) -> Listing:
    session, where = row.session, f"{table}, line {row.line}"
    images: dict[str, ImageFile] = {}
    if not session.startswith("ses-"):
        what = f"session_id {quoted(session)} does not start with ses-"
        findings.append(TableError("TD3318", what, where=where))
        return Listing(row, images)
    anat = Path(session) / "anat"
    names = _candidates(subject / anat, subject.name, session)
    for modality in MODALITIES:
        files = names.get(modality, [])
        label = f"{subject.name}/{anat.as_posix()}"
        if len(files) == 1:
            images[modality] = ImageFile(subject / anat / files[0], f"{label}/{files[0]}")
        elif files:
            what = f"{len(files)} files could be {modality} of {session}: {some(files)}"
            fix = "keep one of them, or list the files in a manifest.csv"
            findings.append(TableError("TD3321", what, where=label, fix=fix))
        else:
            name = f"{subject.name}_{session}_{_SUFFIX[modality]}.nii.gz"
            what = f"session {session} has no {modality} image; expected {label}/{name}"
            fix = "add the image, or list the complete sessions in a manifest.csv"
            findings.append(TableError("TD3316", what, where=where, fix=fix))
    mask = _find_mask(subject, session, findings)
    if mask is None:
        return Listing(row, images)
    try:
        return Listing(row, images, mask, _labels_of(subject.parent, mask, options))
    except (InputDataError, UsageError) as error:
        known = {(finding.code, finding.where, finding.message) for finding in findings}
        # One table may be about the masks of all sessions.
        findings += [e for e in error.findings if (e.code, e.where, e.message) not in known]
        return Listing(row, images)


def _find_mask(subject: Path, session: str, findings: list[TadiffError]) -> ImageFile | None:
    """The tumour mask of a session among the derivatives; of several, the one desc-tumour.

    Masks that a model predicted (desc-predicted...) are results, not what a rater saw.
    """
    root = subject.parent
    files = []
    for pipeline in entries(root / "derivatives"):
        anat = Path("derivatives", pipeline, subject.name, session, "anat")
        names = _candidates(root / anat, subject.name, session).get("dseg", [])
        files += [anat / name for name in names if "_desc-predicted" not in name]
    tumour = [file for file in files if "_desc-tumour_" in file.name]
    chosen = tumour or files
    if len(chosen) > 1:
        what = f"{len(chosen)} files could be the tumour mask of {session}"
        fix = "name exactly one of them desc-tumour"
        where = some([file.as_posix() for file in chosen])
        findings.append(TableError("TD3321", what, where=where, fix=fix))
        return None
    return ImageFile(root / chosen[0], chosen[0].as_posix()) if chosen else None


def _labels_of(root: Path, mask: ImageFile, options: ReadOptions) -> Convention | None:
    """What a table says of the labels of a mask; None without one."""
    table = find_label_table(root, Path(mask.label))
    if table is None:
        return None
    own = read_label_table(root / table, table.as_posix())
    require_agreement(own, options.labels, table.as_posix())
    return own


def _check_all_listed(
    subject: Path, rows: Sequence[Row], findings: list[TadiffError], table: str
) -> None:
    listed = {row.session for row in rows}
    for session in entries(subject):
        if not session.startswith("ses-") or session in listed:
            continue
        if _candidates(subject / session / "anat", subject.name, session):
            what = f"session {session} has images and no row; the table has {len(rows)} rows"
            fix = "add its day and treatment, or list the wanted sessions in a manifest.csv"
            findings.append(TableError("TD3317", what, where=table, fix=fix))
