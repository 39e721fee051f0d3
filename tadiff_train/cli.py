"""`tadiff-train`: the simulated cohort, training, and evaluation."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tadiff_rt.console import progress_bar, run_app, say

if TYPE_CHECKING:
    from tadiff_rt.card import ModelCard
    from tadiff_train.network import NetworkConfig

app = typer.Typer(
    name="tadiff-train",
    help="Train TaDiff and judge it. Research only.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="No progress.")]


@app.command()
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


@app.command()
def fit(
    data: Annotated[Path, typer.Option("--data", help="BIDS data set with tumour masks.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Run folder; must be new.")],
    size: Annotated[int, typer.Option(min=1, help="In-plane window of the network, voxels.")] = 96,
    spacing_mm: Annotated[float, typer.Option(help="Voxel edge of the images.")] = 2.0,
    model_channels: Annotated[int, typer.Option(help="Multiple of 32.")] = 32,
    channel_mult: Annotated[
        str, typer.Option(help="Channels of each level, as multiples.")
    ] = "1,2,3,4",
    num_res_blocks: Annotated[int, typer.Option(min=1)] = 1,
    num_heads: Annotated[int, typer.Option(min=1)] = 1,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 5000,
    batch_size: Annotated[int, typer.Option(min=1)] = 8,
    learning_rate: Annotated[float, typer.Option(min=1e-8)] = 2.5e-4,
    loss: Annotated[
        str, typer.Option(help="published, or calibrated: with voxel-wise cross-entropy.")
    ] = "published",
    target_slots: Annotated[
        str, typer.Option(help="published: any slot half of the time; future: always the last.")
    ] = "published",
    seed: Annotated[int, typer.Option(min=0)] = 0,
    name: Annotated[str, typer.Option(help="Name of the model.")] = "tadiff",
    trained_on: Annotated[
        str, typer.Option(help="The training data in words; shown with every forecast.")
    ] = "unstated",
    start_lam: Annotated[
        float | None,
        typer.Option(
            help="Half log-SNR from which forecasts start, from the noised last scan; "
            "default: pure noise."
        ),
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Folder for prepared images; default OUT/cache.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default all.")] = None,
    quiet: Quiet = False,
) -> None:
    """Train a network; the run folder is what `tadiff-export` takes."""
    import torch

    from tadiff_rt.errors import UsageError
    from tadiff_rt.preprocess import DataContract
    from tadiff_train.data import cache_cases, training_domain
    from tadiff_train.fit import FitConfig, fit, require_new_run

    if threads:
        torch.set_num_threads(threads)
    network = network_config(
        model_channels=model_channels,
        channel_mult=channel_mult.split(","),
        num_res_blocks=num_res_blocks,
        num_heads=num_heads,
    )
    config = FitConfig(
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        loss=loss,
        target_slots=target_slots,
        seed=seed,
    )
    contract = DataContract(size=size, spacing_mm=spacing_mm)
    if size % network.stride:
        raise UsageError("TD3052", f"--size {size} is not a multiple of {network.stride}")
    card = model_card(name=name, trained_on=trained_on, data=contract, start_lam=start_lam)
    require_new_run(out)
    with progress_bar("reading", quiet) as progress:
        cases = cache_cases(data, contract, cache or out / "cache", progress)
    card = card.model_copy(update=training_domain(cases).model_dump())
    with progress_bar("training", quiet) as progress:

        def show(step: int, terms: dict[str, float]) -> None:
            progress(step, steps)
            if not quiet and step % max(steps // 50, 1) == 0:
                say(f"step {step}: " + ", ".join(f"{k} {v:.4f}" for k, v in terms.items()))

        fit(cases, network, card, config, out, show)
    typer.echo(f"checkpoint in {out}; next: tadiff-export {out} -o {name}.tadiff")


@app.command()
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


def network_config(**fields: object) -> "NetworkConfig":
    """The network asked for; its own complaints become usage errors."""
    from pydantic import ValidationError

    from tadiff_rt.errors import UsageError
    from tadiff_train.network import NetworkConfig

    try:
        return NetworkConfig.model_validate(fields)
    except ValidationError as e:
        first = e.errors()[0]
        raise UsageError("TD3037", f"no such network: {first['msg']}") from None


def model_card(**fields: object) -> "ModelCard":
    """A card before the training data are known; its own complaints become usage errors."""
    from pydantic import ValidationError

    from tadiff_rt.card import ModelCard
    from tadiff_rt.errors import UsageError

    try:
        return ModelCard.model_validate(fields)
    except ValidationError as e:
        first = e.errors()[0]
        option = str(first["loc"][0]).replace("_", "-") if first["loc"] else "start-lam"
        raise UsageError("TD3038", f"--{option}: {first['msg']}") from None


def main() -> None:
    """Entry point of `tadiff-train`."""
    run_app(app, "tadiff-train")
