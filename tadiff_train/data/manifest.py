"""Tables of loose files that list several cases.

    case,session,day,treatment,t1,t1c,flair,mask
    P01,ses-01,0,CRT,P01/a_t1.nii.gz,P01/a_t1c.nii.gz,P01/a_flair.nii.gz,P01/a_mask.nii.gz

As `tadiff_rt.readers.manifest`, which reads a table of one case, with a column `case` more; days
count from the first session of each case.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path

from tadiff_rt.case import MODALITIES, Case, ReadOptions
from tadiff_rt.errors import TableError, TadiffError, UsageError, raise_findings
from tadiff_rt.readers import CHOICES, MEANT_FOR
from tadiff_rt.readers.manifest import COLUMNS as OF_ONE_CASE
from tadiff_rt.readers.manifest import Found, ImageFile, Listing, load_case
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
from tadiff_rt.readers.visits import in_order

NAME = "manifest.csv"
"""Of a table that a folder is searched for."""
COLUMNS = Columns(
    "session", "day", "treatment", required=("case", *MODALITIES), optional=("mask",)
)

Cells = dict[str, str]


def cases_in(path: Path) -> list[str]:
    """Names in the column `case`, in order of their first row; none without that column.

    Raises:
        TableError: the table cannot be read, or a name is no safe file name.
    """
    columns, rows = _rows(path)
    if columns is not COLUMNS:
        return []
    names = list(dict.fromkeys(cells["case"] for _, cells in rows))
    raise_findings(
        [
            TableError("TD3318", f"case {quoted(name)} {problem}", where=path.name)
            for name in names
            if (problem := id_problem(name))
        ]
    )
    return names


def files_in(path: Path, case: str) -> list[Path]:
    """The table, and the files that it names for a case; for all rows if `case` is empty."""
    _, rows = _rows(path)
    wanted = [cells for _, cells in rows if not case or cells["case"] == case]
    kinds = (*MODALITIES, "mask")
    return [path, *(path.parent / cells[k] for cells in wanted for k in kinds if cells.get(k))]


def read_case_in(path: Path, case: str, options: ReadOptions) -> Case:
    """One of the cases of a table.

    Raises:
        UsageError: TD3005, TD3007 as `read_case`.
        TadiffError: carrying every problem of its rows, or of all its images.
    """
    _require_meant(options)
    found = Found()
    _, table = _rows(path)
    rows = []
    for line, cells in table:
        if cells["case"] == case:
            row, problems = _row(line, cells, path.name)
            rows.append(row)
            found.findings += problems
    found.findings += _repeated(rows, path.name)
    if not found.findings:
        # Order and origin can only be judged when no day is missing from the sequence.
        rows, disorder = in_order(rows, options, found.notes, f"{path.name}, {case}")
        raise_findings(disorder)
    found.listings = [_listing(row, path, found.findings) for row in rows]
    return load_case(case, found, options, None)


def _require_meant(options: ReadOptions) -> None:
    default = ReadOptions()
    for name, known in CHOICES.items():
        if getattr(options, name) not in known:
            what = f"{name} {quoted(getattr(options, name))} is unknown; known are"
            raise UsageError("TD3005", f"{what} {', '.join(known)}")
    for name in (*MEANT_FOR, "layout"):
        if getattr(options, name) != getattr(default, name):
            raise UsageError("TD3007", f"{name} is not for a table; this is a manifest case")


def _rows(path: Path) -> tuple[Columns, list[tuple[int, Cells]]]:
    lines = read_text(path, path.name).split("\n")
    while lines and not lines[-1].strip(" \t"):
        lines.pop()
    header = lines[0].split(",") if lines else []
    columns = COLUMNS if "case" in header else OF_ONE_CASE
    rows, ragged = cells_of(lines, columns, path.name)
    raise_findings(ragged)
    return columns, rows


def _row(line: int, cells: Cells, table: str) -> tuple[Row, list[TadiffError]]:
    """The row, its day -1 where the cell is no day, and what is wrong with it."""
    where = f"{table}, line {line}"
    session, day, treatment = cells["session"], cells["day"], cells["treatment"]
    bad_day = check_day(day, "day", where)
    problems: list[TadiffError | None] = [bad_day, check_treatment(treatment, where)]
    if problem := id_problem(session):
        problems.append(TableError("TD3318", f"session {quoted(session)} {problem}", where=where))
    number = -1 if bad_day else int(day.strip(" "))
    row = Row(line, session, number, treatment, cells)
    return row, [finding for finding in problems if finding]


def _repeated(rows: Sequence[Row], table: str) -> list[TableError]:
    return [
        TableError(
            "TD3309",
            f"session {quoted(later.session)} is on line {first.line} already",
            where=f"{table}, line {later.line}",
        )
        for first, later in itertools.combinations(rows, 2)
        if first.session == later.session
    ]


def _listing(row: Row, path: Path, findings: list[TadiffError]) -> Listing:
    images = {}
    for modality in MODALITIES:
        if cell := row.cells[modality]:
            images[modality] = ImageFile(path.parent / cell, cell)
        else:
            what = f"session {row.session} has no {modality} image"
            fix = "name the file, or leave the session out of the table"
            where = f"{path.name}, line {row.line}"
            findings.append(TableError("TD3316", what, where=where, fix=fix))
    mask = row.cells.get("mask", "")
    return Listing(row, images, ImageFile(path.parent / mask, mask) if mask else None)
