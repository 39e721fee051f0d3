"""Options of how a cohort is read, which all commands that read one share."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from tadiff_rt.case import ReadOptions

Layout = Annotated[str, typer.Option(help="bids, sailor, lumiere or npy.")]
Labels = Annotated[
    str,
    typer.Option(
        help="What labels of masks mean: binary, published, brats2021, brats2023, brats2024 or "
        "hdglio."
    ),
]
Treatments = Annotated[
    str, typer.Option(help="SAILOR: table, or published (4 sessions CRT, then TMZ).")
]
LumiereImages = Annotated[str, typer.Option(help="LUMIERE: raw, registered or atlas images.")]
NpyGrid = Annotated[
    str, typer.Option(help="npy: how the axes run and the voxel edge in mm, as PLI:1.")
]
SkipIncomplete = Annotated[
    bool,
    typer.Option(
        "--skip-incomplete", help="SAILOR, LUMIERE: leave out sessions that lack an image."
    ),
]
LeaveOut = Annotated[
    list[str] | None,
    typer.Option(
        "--leave-out",
        help="SAILOR, LUMIERE: a session to ignore, or SUBJECT/SESSION; may be repeated.",
    ),
]
RebaseDays = Annotated[
    bool, typer.Option("--rebase-days", help="Count days from the first session.")
]
Sort = Annotated[bool, typer.Option("--sort", help="Sort sessions by day.")]
Affine = Annotated[
    str, typer.Option(help="agree, or sform / qform: which to use where they differ.")
]
AssumeRas = Annotated[
    bool, typer.Option("--assume-ras", help="Images without orientation are R, A, S.")
]
AllowSame = Annotated[
    bool, typer.Option("--allow-same", help="One file may stand for several modalities.")
]
Nonfinite = Annotated[str, typer.Option(help="refuse, or zero: NaN and Inf to 0.")]
MaxVoxels = Annotated[int, typer.Option(min=1, help="Refuse images that declare more voxels.")]

NAMES = (
    "layout", "labels", "treatments", "lumiere_images", "npy_grid", "skip_incomplete",
    "rebase_days", "sort", "affine", "assume_ras", "allow_same", "nonfinite", "max_voxels",
)  # fmt: skip


def read_options_of(given: Mapping[str, Any]) -> "ReadOptions":
    """How subjects are read."""
    from tadiff_rt.case import ReadOptions

    leave_out = tuple(given["leave_out"] or ())
    return ReadOptions(leave_out=leave_out, **{name: given[name] for name in NAMES})
