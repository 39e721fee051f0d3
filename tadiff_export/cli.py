"""`tadiff-export`: a checkpoint in, an engine bundle out."""

from pathlib import Path
from typing import Annotated

import typer

from tadiff_rt.console import run_app, say

app = typer.Typer(
    name="tadiff-export",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.command()
def export(
    checkpoint: Annotated[
        Path, typer.Argument(help="Run folder of `tadiff-train fit`, or its model.safetensors.")
    ],
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="Bundle, NAME.tadiff; default: beside the checkpoint."),
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, max=64, help="Images a call; default: for this size.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a bundle.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress.")] = False,
) -> None:
    """Turn a checkpoint into an engine bundle and prove that the bundle computes it.

    Example: tadiff-export RUN -o tumour.tadiff
    """
    from tadiff_export.package import bundle_path, export

    target = bundle_path(checkpoint, out)
    manifest = export(
        checkpoint,
        target,
        batch=batch,
        overwrite=overwrite,
        say=(lambda message: None) if quiet else say,
    )
    for artefact in manifest.artefacts:
        typer.echo(f"{artefact.file:28} {artefact.bytes / 1e6:6.1f} MB  {artefact.sha256[:12]}")
    for name, error in manifest.parity.max_relative_error.items():
        typer.echo(
            f"{name}: {error:.1e} from float64 PyTorch, "
            f"{manifest.parity.allowed[name]:.1e} allowed"
        )
    typer.echo(
        f"written to {target}; next: tadiff-rt predict --engine {target} --case sub-XX "
        "--day +90 --treatment TMZ -o forecast"
    )


def main() -> None:
    """Entry point of `tadiff-export`."""
    run_app(app, "tadiff-export")
