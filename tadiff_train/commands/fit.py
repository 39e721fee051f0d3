"""`tadiff-train fit`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tadiff_rt.console import progress_bar, say
from tadiff_train.commands.options import Quiet

if TYPE_CHECKING:
    from tadiff_rt.card import ModelCard
    from tadiff_train.network import NetworkConfig


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
