"""Cases in the layout of the LUMIERE data set (Suter et al. 2022): one folder a week.

    Patient-042/week-000-1/{T1,CT1,FLAIR}.nii.gz                                       raw
    .../HD-GLIO-AUTO-segmentation/registered/{T1,CT1,FLAIR}_r2s_bet_reg.nii.gz         registered
    .../HD-GLIO-AUTO-segmentation/registered/segmentation.nii.gz
    .../DeepBraTumIA-segmentation/atlas/skull_strip/{t1,ct1,flair}_skull_strip.nii.gz  atlas
    .../DeepBraTumIA-segmentation/atlas/segmentation/seg_mask.nii.gz

Raw images are as scanned; registered ones are skull-stripped and lie on one grid within a session;
atlas ones lie in MNI152 at 1 mm, on one grid in all sessions. No mask is drawn by hand. Weeks are
all that is published of dates: a day is 7 times the week, and two sessions of one week have no
known order in days. The folders do not say which treatments were given (see `visits`).
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tadiff_rt.case import MODALITIES, Case, ReadOptions
from tadiff_rt.errors import TableError, TadiffError, UsageError
from tadiff_rt.labels import HDGLIO, TUMOUR, Convention, require_agreement
from tadiff_rt.readers.folders import WEEK, entries, files_named
from tadiff_rt.readers.manifest import Found, ImageFile, load_case
from tadiff_rt.readers.tables import Row, id_problem, quoted
from tadiff_rt.readers.visits import (
    TABLE,
    leave_out,
    list_in_order,
    match_sessions,
    missing_table,
    read_treatments,
)

DAYS_IN_WEEK = 7
FIX_DAYS = (
    "give the day of every session in a column day of {}/" + TABLE + ", or keep one session a "
    "week with --leave-out"
)


@dataclass(frozen=True)
class ImageSet:
    """Where one of the three versions of a session's images lies; paths end before .nii.gz."""

    images: Mapping[str, str]
    mask: str = ""
    labels: Convention | None = None
    drawn_by: str = ""
    about: str = ""


DEEPBRATUMIA = Convention("deepbratumia", dict.fromkeys((1, 2, 3), TUMOUR))
"""Necrosis, oedema and enhancing tumour are 1 to 3, in an order that does not matter here."""
_HD_GLIO = "HD-GLIO-AUTO-segmentation/registered"
_ATLAS = "DeepBraTumIA-segmentation/atlas"
NAMES = {"t1": "T1", "t1c": "CT1", "flair": "FLAIR"}
IMAGE_SETS = {
    "raw": ImageSet(NAMES, about="as scanned, with skull"),
    "registered": ImageSet(
        {modality: f"{_HD_GLIO}/{name}_r2s_bet_reg" for modality, name in NAMES.items()},
        mask=f"{_HD_GLIO}/segmentation",
        labels=HDGLIO,
        drawn_by="HD-GLIO-AUTO",
        about="without skull, a grid of its own for every session",
    ),
    "atlas": ImageSet(
        {
            modality: f"{_ATLAS}/skull_strip/{name.lower()}_skull_strip"
            for modality, name in NAMES.items()
        },
        mask=f"{_ATLAS}/segmentation/seg_mask",
        labels=DEEPBRATUMIA,
        drawn_by="DeepBraTumIA",
        about="without skull, all sessions on the MNI152 grid",
    ),
}


def read_lumiere_case(path: Path, options: ReadOptions, *, last: int | None = None) -> Case:
    """The case of a patient folder.

    Args:
        path: `.../Patient-042`.
        options: relaxations asked for; `lumiere_images` chooses between versions of the images.
        last: read the images of only so many sessions, counted from the end.

    Raises:
        UsageError: TD3006, several versions of the images are there and none was chosen; TD3007,
            `options.labels` names other labels than those of the version.
        TadiffError: carrying every problem of weeks, treatments and folders, or of all the images.
            TD3309 where two sessions share a week.
    """
    if problem := id_problem(path.name):
        what = f"patient {quoted(path.name)} {problem}"
        raise TableError("TD3318", what, where=path.name)
    found = Found()
    weeks = _weeks(path)
    sessions = leave_out(list(weeks), options, found.notes, path.name)
    version = _choose(path, sessions, options.lumiere_images)
    days, treatments, findings = _days_and_treatments(path, weeks, sessions, options, found.notes)
    image_set = IMAGE_SETS[version]
    if image_set.labels:
        require_agreement(image_set.labels, options.labels, path.name)
    list_in_order(
        [Row(0, s, days.get(s, -1), treatments.get(s, ""), {}) for s in sessions],
        lambda session: _files(path, session, image_set),
        options,
        found,
        findings,
        where=path.name,
        fix_days=FIX_DAYS.format(path.name),
    )
    if version == "raw":
        needed = "a forecast needs them skull-stripped and registered to one grid"
        found.notes.append(f"images are {image_set.about}; {needed}")
    if any(listing.mask for listing in found.listings):
        found.notes.append(f"tumour masks were drawn by {image_set.drawn_by}, not by hand")
    found.listings = [replace(listing, labels=image_set.labels) for listing in found.listings]
    return load_case(path.name, found, options, last)


def _days_and_treatments(
    path: Path,
    weeks: Mapping[str, int],
    sessions: Sequence[str],
    options: ReadOptions,
    notes: list[str],
) -> tuple[dict[str, int], dict[str, str], list[TadiffError]]:
    """By session, and what is wrong with them; `sessions` are those of `weeks` that count."""
    days = {name: DAYS_IN_WEEK * week for name, week in weeks.items()}
    table = read_treatments(path)
    if table is None:
        what = "LUMIERE does not say which treatments were given"
        return days, {}, [missing_table(path.name, what)]
    if table.has_days:
        days = {name: row.day for name, row in table.rows.items()}
        notes.append(f"days are those of {TABLE}")
    treatments = {name: row.treatment for name, row in table.rows.items()}
    return days, treatments, [*match_sessions(table, sessions, options.leave_out)]


def _weeks(path: Path) -> dict[str, int]:
    """Sessions and their weeks, in order of week, then of the number within it."""
    keys = {
        name: (int(match[1]), int(match[2] or 0))
        for name in entries(path)
        if (match := WEEK.fullmatch(name)) and os.path.isdir(path / name)
    }
    if not keys:
        fix = "give a folder with week-000-1, week-044, ... or a manifest.csv"
        what = "the patient has no session week-NNN"
        raise TableError("TD3301", what, where=path.name, fix=fix)
    return {name: keys[name][0] for name in sorted(keys, key=lambda name: (keys[name], name))}


def _choose(path: Path, sessions: list[str], wanted: str) -> str:
    """The version of the images to read: the wanted one, or the only one."""
    if wanted != "auto":
        return wanted
    present = [
        name
        for name, image_set in IMAGE_SETS.items()
        if any(
            _find(path, session, image_set.images[modality])
            for session in sessions
            for modality in MODALITIES
        )
    ]
    if len(present) > 1:
        known = "; ".join(f"{name}: {IMAGE_SETS[name].about}" for name in present)
        what = f"the patient has {len(present)} versions of the images ({known})"
        fix = f"pass --lumiere-images={present[-1]}, or another of them"
        raise UsageError("TD3006", what, where=path.name, fix=fix)
    return present[0] if present else "raw"


def _find(path: Path, session: str, stem: str) -> list[ImageFile]:
    folder, _, name = f"{session}/{stem}".rpartition("/")
    return files_named(path / folder, name, f"{path.name}/{folder}")


def _files(
    path: Path, session: str, image_set: ImageSet
) -> tuple[dict[str, list[ImageFile]], str]:
    files = {modality: _find(path, session, stem) for modality, stem in image_set.images.items()}
    if image_set.mask:
        files["mask"] = _find(path, session, image_set.mask)
    stems = list(image_set.images.values())
    names = ",".join(os.path.basename(stem) for stem in stems)
    expected = "/".join(filter(None, (path.name, session, os.path.dirname(stems[0]))))
    return files, f"{expected}/{{{names}}}.nii.gz"
