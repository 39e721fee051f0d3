"""Sessions that are folders: which count, what treatments.csv says of them, and their order.

    session,treatment              in the folder of the subject
    case,session,treatment         beside it, for all subjects

Both tables may have a column `day`, days since the first session; it then replaces what the layout
itself says about days. A subject's own table goes before the common one. The treatment of a
session is the one given in the interval that ends at it; of the first session, the one about to
start.
"""

import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tadiff_rt.case import MODALITIES, ReadOptions
from tadiff_rt.errors import TableError, TadiffError, UsageError, raise_findings
from tadiff_rt.readers.manifest import Found, ImageFile, Listing
from tadiff_rt.readers.tables import (
    Columns,
    Row,
    cells_of,
    check_day,
    check_treatment,
    id_problem,
    quoted,
    read_text,
)

TABLE = "treatments.csv"


class _Columns(Columns):
    """Of a table whose days are optional."""

    @property
    def all_required(self) -> tuple[str, ...]:
        return (self.session, self.treatment, *self.required)


OWN = _Columns("session", "day", "treatment", optional=("day",))
COMMON = _Columns("session", "day", "treatment", required=("case",), optional=("day",))


@dataclass(frozen=True)
class Treatments:
    """The rows of treatments.csv that are about one subject."""

    label: str
    rows: dict[str, Row]
    """By session; the day is -1 where the table has none."""
    has_days: bool


def read_treatments(folder: Path) -> Treatments | None:
    """What treatments.csv in a subject's folder, or beside it, says; None without a table.

    Raises:
        TableError: carrying every problem of the table.
    """
    if os.path.lexists(folder / TABLE):
        return _read(folder / TABLE, f"{folder.name}/{TABLE}", OWN, "")
    if os.path.lexists(folder.parent / TABLE):
        return _read(folder.parent / TABLE, TABLE, COMMON, folder.name)
    return None


def _read(path: Path, label: str, columns: Columns, case: str) -> Treatments:
    lines = read_text(path, label).split("\n")
    while lines and not lines[-1].strip(" \t"):
        lines.pop()
    table, ragged = cells_of(lines, columns, label)
    findings: list[TadiffError] = [*ragged]
    rows: dict[str, Row] = {}
    for line, cells in table:
        if case and cells["case"] != case:
            continue
        where = f"{label}, line {line}"
        session, treatment, day = cells["session"], cells["treatment"], cells.get("day")
        if problem := id_problem(session):
            findings.append(
                TableError("TD3318", f"session {quoted(session)} {problem}", where=where)
            )
        if session in rows:
            what = f"session {quoted(session)} is on line {rows[session].line} already"
            findings.append(TableError("TD3309", what, where=where))
        unknown = check_treatment(treatment, where)
        no_day = None if day is None else check_day(day, "day", where)
        findings += [error for error in (unknown, no_day) if error]
        number = -1 if day is None or no_day else int(day.strip(" "))
        rows.setdefault(session, Row(line, session, number, treatment, cells))
    raise_findings(sorted(findings, key=lambda finding: int(finding.where.rsplit(" ", 1)[1])))
    return Treatments(label, rows, bool(table) and "day" in table[0][1])


def missing_table(case: str, what: str) -> TableError:
    """The finding on a subject whose treatments nobody has written down."""
    fix = (
        f"write {case}/{TABLE} with the columns session,treatment (CRT, TMZ or none) and, "
        "if known, day"
    )
    return TableError("TD3122", what, where=f"{case}/{TABLE}", fix=fix)


def match_sessions(
    table: Treatments, sessions: Sequence[str], left_out: Sequence[str]
) -> list[TableError]:
    """Rows without a folder, and folders without a row."""
    findings = [
        TableError(
            "TD3316",
            f"session {quoted(session)} of the table has no folder",
            where=f"{table.label}, line {row.line}",
            fix="remove the row, or add the session",
        )
        for session, row in table.rows.items()
        if session not in (*sessions, *left_out)
    ]
    return findings + [
        TableError(
            "TD3317",
            f"session {session} has a folder and no row; the table has {len(table.rows)} rows "
            "on this subject",
            where=table.label,
            fix=f"add its treatment, or pass --leave-out={session}",
        )
        for session in sessions
        if session not in table.rows
    ]


def leave_out(
    sessions: Sequence[str], options: ReadOptions, notes: list[str], where: str
) -> list[str]:
    """The sessions but those that are to be ignored.

    Raises:
        UsageError: TD3005, one of those does not exist.
    """
    unknown = [name for name in options.leave_out if name not in sessions]
    if unknown:
        what = f"--leave-out names {', '.join(map(quoted, unknown))}; there is no such session"
        raise UsageError("TD3005", what, where=where, fix=f"sessions are {', '.join(sessions)}")
    if options.leave_out:
        notes.append(f"sessions left out as asked for: {len(options.leave_out)}")
    return [name for name in sessions if name not in options.leave_out]


Files = Callable[[str], tuple[dict[str, list[ImageFile]], str]]
"""Session -> candidates for each modality and perhaps "mask", and where images are expected."""


def list_in_order(
    rows: Sequence[Row],
    files: Files,
    options: ReadOptions,
    found: Found,
    findings: Sequence[TadiffError],
    *,
    where: str,
    fix_days: str,
) -> None:
    """Adds the sessions to `found` in order of day, the incomplete ones left out if asked for.

    Args:
        rows: a session whose day or treatment is unknown has some other one.
        findings: what is wrong with days and treatments.
        where: what the days were taken from.
        fix_days: how other days can be given.

    Raises:
        TadiffError: `findings`, or the days are in no order; with what the folders lack. Nothing
            is raised for folders alone: what is wrong with their images belongs to it.
    """
    _list(rows, files, options, found)
    if not found.listings:
        what = f"no session is left that has all of {', '.join(MODALITIES)}"
        found.findings.append(TableError("TD3301", what, where=where))
    if not findings:
        kept, disorder = in_order([s.row for s in found.listings], options, found.notes, where)
        for finding in disorder:
            finding.fix = f"{finding.fix}; or {fix_days}" if finding.fix else fix_days
        by_name = {listing.row.session: listing for listing in found.listings}
        found.listings = [replace(by_name[row.session], row=row) for row in kept]
        findings = disorder
    if findings:
        raise_findings([*findings, *found.findings])


def _list(rows: Sequence[Row], files: Files, options: ReadOptions, found: Found) -> None:
    for row in rows:
        candidates, expected = files(row.session)
        missing = [modality for modality in MODALITIES if not candidates[modality]]
        if missing and options.skip_incomplete:
            what = f"the session on day {row.day} was skipped: it has no {', '.join(missing)}"
            found.notes.append(what)
            continue
        for modality in missing:
            what = f"session {row.session} has no {modality} image"
            fix = "add the image, or pass --skip-incomplete"
            found.findings.append(TableError("TD3316", what, where=expected, fix=fix))
        chosen = {}
        for kind, names in candidates.items():
            if len(names) > 1:
                what = f"{len(names)} files could be {kind} of {row.session}"
                where = ", ".join(file.label for file in names)
                fix = "keep one of them, or list the files in a manifest.csv"
                found.findings.append(TableError("TD3321", what, where=where, fix=fix))
            elif names:
                chosen[kind] = names[0]
        mask = chosen.pop("mask", None)
        found.listings.append(Listing(row, chosen, mask))


def in_order(
    rows: Sequence[Row], options: ReadOptions, notes: list[str], where: str
) -> tuple[list[Row], list[TableError]]:
    """The rows in order of day, the first on day 0, and what stands against that."""
    findings = []
    ordered = sorted(rows, key=lambda row: row.day)
    for a, b in itertools.pairwise(ordered):
        if a.day == b.day:
            what = f"sessions {a.session} and {b.session} are both on day {a.day}"
            findings.append(TableError("TD3309", what, where=where))
    backwards = [(a, b) for a, b in itertools.pairwise(rows) if b.day < a.day]
    if backwards and options.sort:
        notes.append("sessions were sorted by day")
    elif backwards:
        a, b = backwards[0]
        what = f"session {b.session} (day {b.day}) comes after {a.session} (day {a.day})"
        findings.append(TableError("TD3310", what, where=where, fix="pass --sort"))
    first = ordered[0].day if ordered else 0
    if first and options.rebase_days:
        notes.append(f"days were counted from the first session: {first} subtracted from each")
        ordered = [replace(row, day=row.day - first) for row in ordered]
    elif first:
        what = f"the first session, {ordered[0].session}, is on day {first}, expected 0"
        findings.append(TableError("TD3311", what, where=where, fix="pass --rebase-days"))
    return ordered, findings
