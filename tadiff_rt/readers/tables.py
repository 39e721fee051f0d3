"""Session tables: text with one row a session, read strictly and reported whole.

A table that a spreadsheet, a locale or a hand edit has changed usually still parses:
`int("1_000")` is 1000, a missing cell shifts its row, a byte-order mark renames a column. All of
that is refused here, with the line, and every problem of a table is reported at once.
"""

import csv
import itertools
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tadiff_rt.case import TREATMENTS, ReadOptions
from tadiff_rt.errors import TableError, TadiffError, raise_findings

MAX_BYTES = 1_000_000
MAX_ROWS = 10_000
MAX_CELL = 4096
"""Characters; a path may be long, a cell of 200 kB is an attack or another kind of file."""
MAX_DATE = 64
"""Characters of a calendar date, with time and zone in words."""

_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)
_DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.ASCII | re.IGNORECASE)
_DAY = re.compile(r"[0-9]{1,5}", re.ASCII)
_NEGATIVE = re.compile(r"-[0-9]+", re.ASCII)
_DATE = re.compile(
    r"([0-9]{4}[-/.][0-9]{1,2}[-/.][0-9]{1,2}|[0-9]{1,2}[-/.][0-9]{1,2}[-/.][0-9]{2,4})([T ].*)?"
    r"|(19|20)[0-9]{2}(0[1-9]|1[0-2])[0-3][0-9]"
    r"|.*[0-9].*(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec).*[0-9].*",
    re.ASCII | re.IGNORECASE,
)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_SEPARATORS = {"\t": "tabs", ",": "commas", ";": "semicolons", "|": "bars"}


@dataclass(frozen=True)
class Columns:
    """Which columns one kind of session table has."""

    session: str
    day: str
    treatment: str
    required: tuple[str, ...] = ()
    """Further columns that must be there."""
    optional: tuple[str, ...] = ()
    extra_allowed: bool = False
    """Columns of any other name are ignored instead of refused."""
    separator: str = ","

    @property
    def all_required(self) -> tuple[str, ...]:
        return (self.session, self.day, self.treatment, *self.required)


@dataclass(frozen=True)
class Row:
    """One session as its table gives it, checked."""

    line: int
    """Counted from 1, the header included: what an editor shows."""
    session: str
    day: int
    treatment: str
    cells: dict[str, str]
    """Every cell of the row by column name, as written."""


def quoted(text: str, limit: int = 40) -> str:
    """`text` as messages show it: in quotes, escaped, cut after `limit` characters."""
    return repr(text if len(text) <= limit else text[:limit] + "...")


def date_like(text: str) -> bool:
    """Whether `text` looks like a calendar date, which may identify a patient."""
    trimmed = text.strip(" ")
    # The pattern takes time as the square of the length, and a table may hold 250 long cells.
    return len(trimmed) <= MAX_DATE and _DATE.fullmatch(trimmed) is not None


def id_problem(text: str) -> str:
    """Why `text` cannot be the name of a session, subject or result; empty when it can."""
    if not _ID.fullmatch(text):
        return "must be 1 to 64 of A-Z a-z 0-9 _ . -"
    if text in (".", ".."):
        return "means a folder, not a name"
    if _DEVICE.fullmatch(text):
        return "is the name of a device on Windows"
    return ""


def read_text(path: Path, label: str) -> str:
    """The text of a small UTF-8 file, without a byte-order mark and with `\\n` line ends."""
    try:
        # O_NONBLOCK: opening a FIFO that nobody writes to must not hang.
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except (FileNotFoundError, NotADirectoryError):
        raise TableError("TD3122", "there is no such file", where=label) from None
    except OSError as error:
        raise TableError("TD3123", f"cannot be opened: {error.strerror}", where=label) from None
    except ValueError as error:
        raise TableError("TD3122", f"is not a file name: {error}", where=label) from None
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise TableError("TD3121", "is not a regular file", where=label)
        data = file.read(MAX_BYTES + 1)
    return _decode(data, label)


def _decode(data: bytes, label: str) -> str:
    fix = "save the table as plain text in UTF-8"
    if len(data) > MAX_BYTES:
        raise TableError("TD3303", f"is larger than {MAX_BYTES} bytes", where=label, fix=fix)
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise TableError("TD3303", "is UTF-16 text", where=label, fix=fix)
    try:
        text = data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        what = f"byte {error.start} (0x{data[error.start]:02x}) is not UTF-8; Latin-1?"
        raise TableError("TD3303", what, where=label, fix=fix) from None
    control = _CONTROL.search(text)
    if control:
        line = text.count("\n", 0, control.start()) + 1
        what = f"holds the control character {control.group()!r}"
        raise TableError("TD3303", what, where=f"{label}, line {line}", fix=fix)
    return text


def read_rows(
    path: Path, columns: Columns, options: ReadOptions, notes: list[str], *, label: str
) -> list[Row]:
    """The rows of a session table, in order of day, the first on day 0.

    Args:
        path: the table.
        columns: which columns it must and may have.
        options: `sort` and `rebase_days` are honoured here.
        notes: gets a sentence for each relaxation that was used.
        label: what messages call the table.

    Raises:
        TableError: carrying every problem of the table.
    """
    lines = read_text(path, label).split("\n")
    while lines and not lines[-1].strip(" \t"):
        lines.pop()
    table, findings = cells_of(lines, columns, label)
    rows: list[Row] = []
    for line, cells in table:
        row, problems = _row(line, cells, columns, label)
        findings += problems
        rows.append(row)
    findings += _duplicates(rows, label)
    # Order and origin can only be judged when no day is missing from the sequence.
    if len(rows) == len(lines) - 1 and all(row.day >= 0 for row in rows):
        rows, problems = _in_order(rows, options, notes, label)
        findings += problems
    raise_findings(sorted(findings, key=_line_of))
    return rows


def _line_of(finding: TadiffError) -> int:
    return int(finding.where.rsplit("line ", 1)[1])


def cells_of(
    lines: Sequence[str], columns: Columns, label: str
) -> tuple[list[tuple[int, dict[str, str]]], list[TableError]]:
    """(line number, cells by column) of the rows as wide as the header, and the other rows."""
    if len(lines) < 2 or not lines[0].strip(" \t"):
        what = "has no sessions: a header and at least one row are needed"
        raise TableError("TD3301", what, where=label)
    if len(lines) - 1 > MAX_ROWS:
        raise TableError("TD3303", f"has more than {MAX_ROWS} rows", where=label)
    _check_separator(lines[0], columns.separator, label)
    header, *body = [
        _split(text, columns.separator, f"{label}, line {line}")
        for line, text in enumerate(lines, 1)
    ]
    _check_header(header, columns, label)
    table = []
    findings: list[TableError] = []
    for line, cells in enumerate(body, 2):
        if len(cells) == len(header):
            table.append((line, dict(zip(header, cells, strict=True))))
            continue
        what = f"the row has {len(cells)} cells, the header has {len(header)}"
        fix = "add the missing cells or remove the extra ones"
        findings.append(TableError("TD3304", what, where=f"{label}, line {line}", fix=fix))
    return table, findings


def _check_separator(header: str, separator: str, label: str) -> None:
    if separator in header:
        return
    found = [name for mark, name in _SEPARATORS.items() if mark in header]
    if found:
        raise TableError(
            "TD3302",
            f"cells are separated by {found[0]}, expected {_SEPARATORS[separator]}",
            where=f"{label}, line 1",
            fix=f"save the table with {_SEPARATORS[separator]} between the cells",
        )


def _split(text: str, separator: str, where: str) -> list[str]:
    """The cells of one line; a quoted cell cannot go on in the lines below it."""
    if len(text) > 4 * MAX_CELL:
        raise TableError("TD3303", f"is a line of {len(text)} characters", where=where)
    if separator == "\t":
        # BIDS has no quoting: a quotation mark in a .tsv is part of its cell.
        return text.split("\t")
    try:
        return next(csv.reader([text], delimiter=separator, strict=True), [])
    except csv.Error as error:
        raise TableError("TD3303", f"is not CSV: {error}", where=where) from None


def _check_header(header: Sequence[str], columns: Columns, label: str) -> None:
    where = f"{label}, line 1"
    findings = [
        TableError(
            "TD3305", f"column {quoted(name)} occurs {header.count(name)} times", where=where
        )
        for name in dict.fromkeys(header)
        if header.count(name) > 1
    ]
    known = (*columns.all_required, *columns.optional)
    missing = [name for name in columns.all_required if name not in header]
    unknown = [name for name in header if name not in known]
    if missing:
        what = f"column {', '.join(missing)} is missing; found " + ", ".join(map(quoted, header))
        findings.append(TableError("TD3305", what, where=where, fix="names are case-sensitive"))
    if unknown and not columns.extra_allowed:
        what = "unknown column " + ", ".join(map(quoted, unknown))
        fix = f"the columns are {', '.join(known)}"
        findings.append(TableError("TD3305", what, where=where, fix=fix))
    raise_findings(findings)


def _row(
    line: int, cells: dict[str, str], columns: Columns, label: str
) -> tuple[Row, list[TableError]]:
    """The row, its day -1 where the cell is no day, and what is wrong with it."""
    where = f"{label}, line {line}"
    findings = []
    session, treatment = cells[columns.session], cells[columns.treatment]
    if any(len(cell) > MAX_CELL for cell in cells.values()):
        findings.append(TableError("TD3303", f"a cell of over {MAX_CELL} characters", where=where))
    problem = id_problem(session)
    if problem:
        what = f"{columns.session} {quoted(session)} {problem}"
        findings.append(TableError("TD3318", what, where=where))
    day_error = check_day(cells[columns.day], columns.day, where)
    if day_error:
        findings.append(day_error)
    treatment_error = check_treatment(treatment, where)
    if treatment_error:
        findings.append(treatment_error)
    day = -1 if day_error else int(cells[columns.day].strip(" "))
    return Row(line, session, day, treatment, cells), findings


def check_day(text: str, name: str, where: str) -> TableError | None:
    """What is wrong with a cell that should hold a day; None when nothing is."""
    trimmed = text.strip(" ")
    if _DAY.fullmatch(trimmed):
        return None
    if date_like(trimmed):
        # The date itself stays out of the message: it may identify the patient.
        return TableError(
            "TD3307",
            f"{name} holds a date; dates are refused because they can identify a patient",
            where=where,
            fix="give the days since the first session, e.g. 0, 84, 171",
        )
    if _NEGATIVE.fullmatch(trimmed):
        what = f"{name} {quoted(text)} is negative; days count from the first session"
        return TableError("TD3308", what, where=where)
    what = f"{name} {quoted(text)} is not a whole number of 1 to 5 digits 0-9"
    return TableError("TD3306", what, where=where)


def check_treatment(text: str, where: str) -> TableError | None:
    """What is wrong with a treatment name; None when it is a key of TREATMENTS."""
    if text in TREATMENTS:
        return None
    what = f"treatment {quoted(text)} is unknown; known are {', '.join(TREATMENTS)}"
    return TableError("TD3314", what, where=where, fix="names are case-sensitive")


def _duplicates(rows: Sequence[Row], label: str) -> list[TableError]:
    findings = []
    first_day: dict[int, int] = {}
    first_session: dict[str, int] = {}
    for row in rows:
        earlier = first_session.setdefault(row.session, row.line)
        if earlier != row.line:
            what = f"session {quoted(row.session)} is on line {earlier} already"
            findings.append(TableError("TD3309", what, where=f"{label}, line {row.line}"))
        if row.day < 0:
            continue
        earlier = first_day.setdefault(row.day, row.line)
        if earlier != row.line:
            what = f"day {row.day} is on line {earlier} already; sessions need different days"
            findings.append(TableError("TD3309", what, where=f"{label}, line {row.line}"))
    return findings


def _in_order(
    rows: list[Row], options: ReadOptions, notes: list[str], label: str
) -> tuple[list[Row], list[TableError]]:
    findings = []
    ordered = sorted(rows, key=lambda row: row.day)
    if ordered != rows and options.sort:
        notes.append("sessions were sorted by day")
    elif ordered != rows:
        line = next(b.line for a, b in itertools.pairwise(rows) if b.day < a.day)
        fix = "sort the rows, or pass --sort"
        if ordered[-1].day < 200:
            fix += "; if these are intervals between sessions, give their running sum"
        what = "days are not in increasing order"
        findings.append(TableError("TD3310", what, where=f"{label}, line {line}", fix=fix))
    first = ordered[0]
    if first.day and options.rebase_days:
        notes.append(f"days were counted from the first session: {first.day} subtracted from each")
        ordered = [replace(row, day=row.day - first.day) for row in ordered]
    elif first.day:
        what = f"the first session is on day {first.day}, expected 0"
        fix = "count days from the first session, or pass --rebase-days"
        findings.append(TableError("TD3311", what, where=f"{label}, line {first.line}", fix=fix))
    return ordered, findings
