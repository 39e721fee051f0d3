"""Cases in the layout of the SAILOR data set: one folder a session, days as a list of intervals.

    sub-17/intervals-days.txt        days from each session to the next, one a line
    sub-17/ses-01/T1.nii.gz  T1c.nii.gz  Flair.nii.gz
    sub-17/ses-01/EdemaMask-CL.nii.gz  ContrastEnhancedMask-CL.nii.gz        (if known)
    sub-17/ses-01/treatment.txt      CRT, TMZ, no or unknown                 (if known)

Names may be in any case of the letters; other files, such as T1c-icor.nii.gz and the -ONCO masks,
are not looked at. Treatments come from treatments.csv (see `visits`) where there is one, else from
treatment.txt. The published preprocessing ignores both: sessions 0 to 3 are CRT and all later ones
TMZ, by index alone; that is `ReadOptions.treatments="published"`.
"""

import itertools
import os
import re
from collections.abc import Sequence
from pathlib import Path

from tadiff_rt.case import MAX_DAY, Case, ReadOptions
from tadiff_rt.errors import TableError, TadiffError
from tadiff_rt.labels import PUBLISHED, require_agreement
from tadiff_rt.readers.folders import (
    SAILOR_INTERVALS,
    SAILOR_NAMES,
    SESSION,
    entries,
    files_named,
)
from tadiff_rt.readers.manifest import Found, ImageFile, load_case
from tadiff_rt.readers.sailor_masks import MASKS, with_masks
from tadiff_rt.readers.tables import Row, check_day, id_problem, quoted, read_text
from tadiff_rt.readers.visits import (
    TABLE,
    leave_out,
    list_in_order,
    match_sessions,
    missing_table,
    read_treatments,
)

TREATMENT_FILE = "treatment.txt"
FILE_WORDS = {"CRT": "CRT", "TMZ": "TMZ", "no": "none"}
"""Word in treatment.txt -> treatment; "unknown" is a word too, and no treatment."""
PUBLISHED_CRT_SESSIONS = 4
"""So many of a patient's first sessions are CRT in the published preprocessing."""

FIX_DAYS = "give the day of every session in a column day of {}/" + TABLE

_DECIMAL = re.compile(r"([0-9]{1,5})\.0+", re.ASCII)


def read_sailor_case(path: Path, options: ReadOptions, *, last: int | None = None) -> Case:
    """The case of a subject folder.

    Args:
        path: `.../sub-17`.
        options: relaxations asked for.
        last: read the images of only so many sessions, counted from the end.

    Raises:
        TadiffError: carrying every problem of days, treatments and folders, or of all the images.
            TD3319 where the intervals do not fit the sessions, as for seven patients in the table
            that the published script reads; TD3007 where `options.labels` names other labels.
    """
    if problem := id_problem(path.name):
        what = f"subject {quoted(path.name)} {problem}"
        raise TableError("TD3318", what, where=path.name)
    require_agreement(PUBLISHED, options.labels, path.name)
    found = Found()
    names = _sessions(path)
    sessions = leave_out(names, options, found.notes, path.name)
    days, treatments, findings = _days_and_treatments(path, names, sessions, options, found.notes)
    list_in_order(
        [Row(0, s, days.get(s, -1), treatments.get(s, ""), {}) for s in sessions],
        lambda session: _files(path, session),
        options,
        found,
        findings,
        where=f"{path.name}/{SAILOR_INTERVALS}",
        fix_days=FIX_DAYS.format(path.name),
    )
    wanted = [listing.row.session for listing in found.listings][-(last or 0) :]
    masks = {name: _masks(path, name) for name in wanted}
    return with_masks(lambda: load_case(path.name, found, options, last), masks, options)


def _days_and_treatments(
    path: Path,
    names: Sequence[str],
    sessions: Sequence[str],
    options: ReadOptions,
    notes: list[str],
) -> tuple[dict[str, int], dict[str, str], list[TadiffError]]:
    """By session, and what is wrong with them; `sessions` are those of `names` that count."""
    findings: list[TadiffError] = []
    table = read_treatments(path)
    published = options.treatments == "published"
    if table and published and not table.has_days:
        table = None
    if table:
        findings += match_sessions(table, sessions, options.leave_out)
    if published:
        treatments = {name: _published(i) for i, name in enumerate(names)}
        notes.append(
            f"treatments by the published rule: CRT in the first {PUBLISHED_CRT_SESSIONS} "
            "sessions, TMZ in all later ones"
        )
    elif table:
        treatments = {name: row.treatment for name, row in table.rows.items()}
    else:
        treatments, problems = _from_files(path, sessions)
        findings += problems
    if table and table.has_days:
        days = {name: row.day for name, row in table.rows.items()}
        notes.append(f"days are those of {TABLE}")
    else:
        days, problems = _from_intervals(path, names)
        findings += problems
    return days, treatments, findings


def _sessions(path: Path) -> list[str]:
    """Folders of sessions in the order of their numbers, which need not be that of their names."""
    numbers = {
        name: int(match[1])
        for name in entries(path)
        if (match := SESSION.fullmatch(name)) and os.path.isdir(path / name)
    }
    if not numbers:
        fix = "give a folder with ses-01, ses-02, ... or a manifest.csv"
        what = "the subject has no session ses-XX"
        raise TableError("TD3301", what, where=path.name, fix=fix)
    names = sorted(numbers, key=lambda name: numbers[name])
    for a, b in itertools.pairwise(names):
        if numbers[a] == numbers[b]:
            what = f"{a} and {b} are one session by their number"
            raise TableError("TD3309", what, where=path.name, fix="rename one of them")
    return names


def _published(index: int) -> str:
    return "CRT" if index < PUBLISHED_CRT_SESSIONS else "TMZ"


def _from_files(path: Path, sessions: Sequence[str]) -> tuple[dict[str, str], list[TadiffError]]:
    """What treatment.txt of every session says."""
    treatments: dict[str, str] = {}
    findings: list[TadiffError] = []
    present = [name for name in sessions if os.path.lexists(path / name / TREATMENT_FILE)]
    if not present:
        what = "no file says which treatments were given"
        finding = missing_table(path.name, what)
        finding.fix += "; or pass --treatments=published for the rule of the published script"
        return treatments, [finding]
    for session in sessions:
        label = f"{path.name}/{session}/{TREATMENT_FILE}"
        try:
            word = read_text(path / session / TREATMENT_FILE, label).strip(" \t\n")
        except TableError as error:
            findings.append(error)
            continue
        if word in FILE_WORDS:
            treatments[session] = FILE_WORDS[word]
        else:
            what = f"treatment {quoted(word)} of {session} is none of {', '.join(FILE_WORDS)}"
            fix = f"write {path.name}/{TABLE} with the treatment of every session"
            findings.append(TableError("TD3314", what, where=label, fix=fix))
    return treatments, findings


def _from_intervals(
    path: Path, sessions: Sequence[str]
) -> tuple[dict[str, int], list[TadiffError]]:
    """Days since the first session: the running sum of the intervals."""
    label = f"{path.name}/{SAILOR_INTERVALS}"
    fix = FIX_DAYS.format(path.name)
    try:
        lines = read_text(path / SAILOR_INTERVALS, label).split("\n")
    except TableError as error:
        error.fix = error.fix or fix
        return {}, [error]
    findings: list[TadiffError] = []
    intervals = []
    for line, text in enumerate(lines, 1):
        for cell in text.split():
            match = _DECIMAL.fullmatch(cell)
            whole = match[1] if match else cell
            problem = check_day(whole, "the interval", f"{label}, line {line}")
            if problem:
                findings.append(problem)
            else:
                intervals.append(int(whole))
    if findings:
        return {}, findings
    if len(intervals) != len(sessions) - 1:
        what = (
            f"{path.name} has {len(sessions)} sessions and {len(intervals)} intervals, expected "
            f"{len(sessions) - 1}: which sessions they lie between is unknown"
        )
        return {}, [TableError("TD3319", what, where=label, fix=fix)]
    days = list(itertools.accumulate(intervals, initial=0))
    if days[-1] > MAX_DAY:
        what = f"the intervals add up to {days[-1]} days, at most {MAX_DAY} are read"
        return {}, [TableError("TD3306", what, where=label)]
    return dict(zip(sessions, days, strict=True)), []


def _files(path: Path, session: str) -> tuple[dict[str, list[ImageFile]], str]:
    label = f"{path.name}/{session}"
    images = {
        modality: files_named(path / session, stem, label)
        for modality, stem in SAILOR_NAMES.items()
    }
    return images, f"{label}/{{{','.join(SAILOR_NAMES.values())}}}.nii.gz"


def _masks(path: Path, session: str) -> dict[str, list[ImageFile]]:
    label = f"{path.name}/{session}"
    return {stem: files_named(path / session, stem, label) for stem in MASKS}
