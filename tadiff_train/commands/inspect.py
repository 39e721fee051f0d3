"""`tadiff-train inspect`."""

import io
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tadiff_rt.console import progress_bar, tell
from tadiff_rt.errors import printable
from tadiff_rt.readers.folders import some
from tadiff_train.commands import reading as r
from tadiff_train.commands.options import Quiet

if TYPE_CHECKING:
    from tadiff_train.data.inspect import Inspection, PatientSummary

COLUMNS = (
    "patient", "layout", "part", "days", "treatments", "tumour ml", "grid", "voxel mm", "findings",
)  # fmt: skip
UNKNOWN = "-"
MAX_REMARKS = 40
"""Lines of remarks in the table."""


def inspect(
    data: Annotated[
        Path,
        typer.Argument(
            help="Cohort or subject: BIDS, SAILOR, LUMIERE, npy arrays or a manifest.csv."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Folder for the picture, inspect.png.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The table as JSON.")] = False,
    max_patients: Annotated[
        int, typer.Option(min=1, max=100, help="Patients in the picture.")
    ] = 12,
    split: Annotated[
        str, typer.Option(help="Parts and their shares.")
    ] = "train=0.8,val=0.1,test=0.1",
    salt: Annotated[str, typer.Option(help="Another one gives another split.")] = "tadiff",
    layout: r.Layout = "auto",
    labels: r.Labels = "",
    treatments: r.Treatments = "table",
    lumiere_images: r.LumiereImages = "auto",
    npy_grid: r.NpyGrid = "",
    skip_incomplete: r.SkipIncomplete = False,
    leave_out: r.LeaveOut = None,
    rebase_days: r.RebaseDays = False,
    sort: r.Sort = False,
    affine: r.Affine = "agree",
    assume_ras: r.AssumeRas = False,
    allow_same: r.AllowSame = False,
    nonfinite: r.Nonfinite = "refuse",
    max_voxels: r.MaxVoxels = 512**3,
    quiet: Quiet = False,
) -> None:
    """Say what is understood of a data set: a table, a picture, remarks, and all that is wrong.

    Ends with exit code 3 (2 for masks that are missing) where there are findings.
    """
    given = dict(locals())
    from tadiff_rt.errors import raise_findings
    from tadiff_train.data.inspect import inspect_cohort
    from tadiff_train.data.split import parse_fractions

    options = r.read_options_of(given)
    fractions = parse_fractions(split)
    if out is not None:
        _prepare_folder(out)
    with progress_bar("reading", quiet) as progress:
        inspection = inspect_cohort(
            data,
            options,
            fractions=fractions,
            salt=salt,
            max_strips=max_patients if out is not None else 0,
            progress=progress,
        )
    _print(inspection, as_json)
    if out is not None:
        _draw(inspection, out, as_json)
    raise_findings(inspection.findings)


def _prepare_folder(out: Path) -> None:
    """Before anything is read: the folder, and whether pictures can be drawn at all."""
    from tadiff_rt.atomic import output_error
    from tadiff_rt.overview import check_drawing

    check_drawing()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(error, out) from error


def _print(inspection: "Inspection", as_json: bool) -> None:
    if as_json:
        patients = [patient.model_dump(mode="json") for patient in inspection.patients]
        tell(json.dumps({"patients": patients, "totals": inspection.totals()}, indent=2))
        return
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    tell(inspection_table(inspection, width=width))


def _draw(inspection: "Inspection", out: Path, as_json: bool) -> None:
    from tadiff_rt.write import write_bytes
    from tadiff_train.data.picture import strips_png

    path = out / "inspect.png"
    write_bytes(path, strips_png(inspection.strips, inspection.heading()))
    if not as_json:
        tell(printable(f"picture in {path}: {inspection.heading()}"))


def inspection_table(inspection: "Inspection", *, width: int | None = None) -> str:
    """A line a patient, then totals.

    Args:
        width: of a terminal, for a table with a frame; None for plain lines of any length.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD if width else None, pad_edge=bool(width))
    for column in COLUMNS:
        table.add_column(column, no_wrap=width is None)
    for patient in inspection.patients:
        table.add_row(*map(printable, _cells(patient)))
    out = io.StringIO()
    console = Console(file=out, width=width or 100_000, markup=False, highlight=False, emoji=False)
    console.print(table)
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    return "\n".join([*lines, "", *_total_lines(inspection)])


def _cells(patient: "PatientSummary") -> tuple[str, ...]:
    volumes = (UNKNOWN if ml is None else f"{ml:.2f}" for ml in patient.tumour_ml)
    return (
        patient.name,
        patient.layout,
        patient.part,
        " ".join(map(str, patient.days)) or UNKNOWN,
        " ".join(patient.treatments) or UNKNOWN,
        " ".join(volumes) or UNKNOWN,
        _times(patient.shape),
        _times(patient.spacing_mm),
        " ".join(dict.fromkeys(patient.findings)) or "none",
    )


def _times(numbers: Sequence[float] | None) -> str:
    return " x ".join(f"{n:g}" for n in numbers) if numbers else UNKNOWN


def _total_lines(inspection: "Inspection") -> list[str]:
    total: dict[str, Any] = inspection.totals()
    lines = [
        f"{total['patients']} patients, {total['read']} read, {total['with_findings']} with "
        f"findings; {total['sessions']} sessions",
        f"parts: {_counts(total['parts'])}",
    ]
    if total["read"]:
        gap = total["max_gap_days"]
        lines += [
            f"treatments: {_counts(total['treatments'])}",
            f"last day {total['max_day']}"
            + ("" if gap is None else f", longest gap between sessions {gap} days"),
            "voxels: "
            + "; ".join(f"{_times(edges)} mm" for edges in total["spacings_mm"])
            + ("" if total["one_spacing_fits"] else "; no one --spacing-mm takes all of them"),
        ]
    if total["largest_brain"]:
        rows, columns = total["largest_brain"]
        lines.append(f"largest brain in plane: {rows} x {columns} voxels, what --size must hold")
    return [*lines, *_remark_lines(inspection)]


def _remark_lines(inspection: "Inspection") -> list[str]:
    """Notes on the patients, equal ones in one line."""
    names: dict[str, list[str]] = {}
    for patient in inspection.patients:
        for note in dict.fromkeys(patient.notes):
            names.setdefault(note, []).append(patient.name)
    lines = [f"  {some(who, 3)}: {note}" for note, who in names.items()]
    more = [f"  and {len(lines) - MAX_REMARKS} more; --json has all"]
    shown = [*lines[:MAX_REMARKS], *(more if len(lines) > MAX_REMARKS else [])]
    return ["", "remarks:", *map(printable, shown)] if lines else []


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())
