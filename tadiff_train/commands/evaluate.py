"""`tadiff-train evaluate`."""

from pathlib import Path
from typing import Annotated

import typer

from tadiff_rt.console import progress_bar
from tadiff_train.commands.options import Quiet


def evaluate(
    engine: Annotated[Path, typer.Option("--engine", help="Engine bundle, NAME.tadiff.")],
    data: Annotated[
        Path, typer.Option("--data", help="BIDS data set with masks, not trained on.")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Markdown table; .json beside it.")],
    population: Annotated[
        str, typer.Option(help="Whom the data are of, in words; heads the table.")
    ] = "patients the model has not seen",
    samples: Annotated[int, typer.Option(min=1)] = 5,
    steps: Annotated[int, typer.Option(min=1)] = 20,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    max_slices: Annotated[
        int | None, typer.Option(min=1, help="At most so many slices a patient, evenly spaced.")
    ] = None,
    counterfactuals: Annotated[
        bool,
        typer.Option(
            "--counterfactuals", help="Also other treatments, where the data hold their outcome."
        ),
    ] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default all.")] = None,
    quiet: Quiet = False,
) -> None:
    """Forecast every patient's last session and compare it with the truth and with a copy."""
    from tadiff_rt.forecast import Forecaster
    from tadiff_rt.write import write_bytes
    from tadiff_train.evaluate import evaluate
    from tadiff_train.results import results_json, results_table

    forecaster = Forecaster.load(engine, threads=threads)
    with progress_bar("patients", quiet) as progress:
        results = evaluate(
            forecaster,
            data,
            samples=samples,
            steps=steps,
            seed=seed,
            max_slices=max_slices,
            counterfactuals=counterfactuals,
            progress=progress,
        )
    manifest = forecaster.bundle.manifest
    settings = {
        "model": manifest.card.name,
        "weights": manifest.weights_sha256[:12],
        "samples": samples,
        "steps": steps,
        "seed": seed,
    }
    table = results_table(results, population=population, settings=settings)
    write_bytes(out, table.encode())
    text = results_json(results, population=population, settings=settings)
    write_bytes(out.with_suffix(".json"), text.encode())
    typer.echo(table)
