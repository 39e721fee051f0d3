"""`tadiff-train phantom`."""

from pathlib import Path
from typing import Annotated

import typer

from tadiff_rt.console import progress_bar
from tadiff_train.commands.options import Quiet


def phantom(
    out: Annotated[Path, typer.Argument(help="Folder for the BIDS data set; must be new.")],
    patients: Annotated[int, typer.Option("--patients", min=1, help="How many.")] = 20,
    size: Annotated[int, typer.Option("--size", help="96: 2 mm voxels; 192: 1 mm.")] = 96,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Another seed, other people.")] = 0,
    counterfactuals: Annotated[
        bool,
        typer.Option(
            "--counterfactuals", help="Also the last session under every other treatment."
        ),
    ] = False,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Processes.")] = 1,
    quiet: Quiet = False,
) -> None:
    """Simulate a longitudinal glioma cohort with known futures."""
    from tadiff_rt.errors import UsageError
    from tadiff_train.phantom import write_cohort

    if size not in (96, 192):
        raise UsageError("TD3033", f"--size must be 96 (2 mm) or 192 (1 mm), got {size}")
    with progress_bar("patients", quiet) as progress:
        write_cohort(
            out,
            patients,
            size,
            seed,
            counterfactuals=counterfactuals,
            jobs=jobs,
            progress=progress,
        )
    typer.echo(
        f"{patients} simulated patients in {out}; next: tadiff-train fit --data {out} -o RUN"
    )
