"""`tadiff-train fit`."""

import signal
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from tadiff_rt.console import progress_bar, say
from tadiff_train.commands import fit_options as o
from tadiff_train.commands import reading as r
from tadiff_train.commands.fit_request import (
    fractions_of,
    model_card,
    network_config,
    settings_of,
)
from tadiff_train.commands.options import Quiet

if TYPE_CHECKING:
    from tadiff_rt.card import ModelCard
    from tadiff_rt.preprocess import DataContract
    from tadiff_train.data import CachedCase
    from tadiff_train.fit import FitConfig, Processes
    from tadiff_train.network import NetworkConfig


def fit(
    data: o.Data,
    out: o.Out,
    resume: o.Resume = False,
    preset: o.Preset = "default",
    steps: o.Steps = 5000,
    batch_size: o.BatchSize = 8,
    accumulate: o.Accumulate = 1,
    seed: o.Seed = 0,
    learning_rate: o.LearningRate = None,
    warmup_steps: o.WarmupSteps = None,
    weight_decay: o.WeightDecay = None,
    clip_norm: o.ClipNorm = None,
    ema_decay: o.EmaDecay = None,
    precision: o.Precision = None,
    loss: o.Loss = None,
    target_slots: o.TargetSlots = None,
    sources: o.Sources = None,
    augmentation: o.Augmentation = None,
    timesteps: o.Timesteps = None,
    start: o.Start = None,
    save_every: o.SaveEvery = 500,
    log_every: o.LogEvery = 10,
    picture_every: o.PictureEvery = 500,
    val_fraction: o.ValFraction = 0.1,
    test_fraction: o.TestFraction = 0.1,
    salt: o.Salt = "tadiff",
    size: o.Size = 96,
    spacing_mm: o.SpacingMm = 2.0,
    model_channels: o.ModelChannels = 32,
    channel_mult: o.ChannelMult = "1,2,3,4",
    num_res_blocks: o.NumResBlocks = 1,
    num_heads: o.NumHeads = 1,
    start_lam: o.StartLam = None,
    name: o.Name = "tadiff",
    trained_on: o.TrainedOn = "unstated",
    weights_licence: o.WeightsLicence = "unstated",
    cache: o.Cache = None,
    jobs: o.Jobs = 1,
    skip_bad: o.SkipBad = False,
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
    device: o.Device = "auto",
    workers: o.Workers = 0,
    threads: o.Threads = None,
    quiet: Quiet = False,
) -> None:
    """Train a network; the run folder is what `tadiff-export` takes.

    The weights of the least loss on held-out patients are in OUT/best. Ctrl-C saves first, and
    --resume goes on. Several GPUs: torchrun --nproc-per-node=N --no-python tadiff-train fit ...
    """
    given = dict(locals())
    import torch

    from tadiff_rt.errors import UsageError
    from tadiff_rt.overview import check_drawing
    from tadiff_rt.preprocess import DataContract
    from tadiff_train.fit import joined

    if threads:
        torch.set_num_threads(threads)
    network = network_config(
        model_channels=model_channels,
        channel_mult=channel_mult.split(","),
        num_res_blocks=num_res_blocks,
        num_heads=num_heads,
    )
    config = settings_of(given)
    contract = DataContract(size=size, spacing_mm=spacing_mm)
    if size % network.stride:
        raise UsageError("TD3052", f"--size {size} is not a multiple of {network.stride}")
    card = model_card(
        name=name,
        trained_on=trained_on,
        data=contract,
        start_lam=start_lam,
        weights_licence=weights_licence,
    )
    if picture_every:
        check_drawing()
    with joined(device) as processes:
        given["quiet"] = quiet or not processes.is_first
        _claim(out, processes, resume)
        parts = _read(given, contract, processes)
        _train(given, parts, network, card, config, processes)
        if processes.is_first:
            best = out / "best"
            chosen = best if best.is_dir() else out
            typer.echo(f"checkpoint in {chosen}; next: tadiff-export {chosen} -o {name}.tadiff")


def _claim(out: Path, processes: "Processes", resume: bool) -> None:
    """Before hours are spent: a new folder, or one that holds a run to go on with."""
    from tadiff_train.fit.run import require_new_run, require_state

    processes.first(partial(require_state if resume else require_new_run, out))


def _read(
    given: Mapping[str, Any], contract: "DataContract", processes: "Processes"
) -> "dict[str, list[CachedCase]]":
    """The cohort by part. The first process prepares it, then the others find it prepared.

    Raises:
        UsageError: TD3085, nobody is left to train on.
    """
    from tadiff_rt.errors import UsageError
    from tadiff_train.data import cache_cases, split_by_patient

    fractions, options = fractions_of(given), r.read_options_of(given)
    folder = given["cache"] or given["out"] / "cache"
    cases: list[CachedCase] = []

    def read() -> None:
        with progress_bar("reading", given["quiet"]) as progress:
            cases[:] = cache_cases(
                given["data"], contract, folder, progress, options=options,
                skip_bad=given["skip_bad"], jobs=given["jobs"],
            )  # fmt: skip

    processes.first(read)
    if not processes.is_first:
        read()
    parts = split_by_patient(cases, fractions, given["salt"])
    if not parts["train"]:
        what = f"of {len(cases)} patients none is left to train on"
        raise UsageError("TD3085", what, fix="lower --val-fraction and --test-fraction")
    if not given["quiet"]:
        sizes = ", ".join(f"{part} {len(members)}" for part, members in parts.items())
        say(f"patients: {sizes}")
    return parts


def _train(
    given: Mapping[str, Any],
    parts: "Mapping[str, Sequence[CachedCase]]",
    network: "NetworkConfig",
    card: "ModelCard",
    config: "FitConfig",
    processes: "Processes",
) -> None:
    """The run itself; one that is asked to end says how it goes on."""
    from tadiff_train.data import training_domain
    from tadiff_train.fit import Interrupted, Machine, fit

    card = card.model_copy(update=training_domain(parts["train"]).model_dump())
    machine = Machine(device=given["device"], workers=given["workers"], quiet=given["quiet"])
    notes = {
        "command": sys.argv,
        "cohort": str(given["data"].absolute()),
        "salt": given["salt"],
        "parts": {part: [case.name for case in members] for part, members in parts.items()},
    }
    with progress_bar("training", given["quiet"]) as progress:

        def show(step: int, terms: dict[str, float]) -> None:
            progress(step, config.steps)
            if not given["quiet"] and step % max(config.steps // 50, 1) == 0:
                say(f"step {step}: " + ", ".join(f"{k} {v:.4f}" for k, v in terms.items()))

        try:
            fit(
                parts["train"], network, card, config, given["out"], show,
                resume=given["resume"], validation=parts["val"], machine=machine, notes=notes,
            )  # fmt: skip
        except Interrupted as end:
            if processes.is_first:
                name = signal.Signals(end.number).name
                say(
                    f"{name}: saved after step {end.step} of {config.steps}; go on with the same "
                    "command and --resume"
                )
            raise typer.Exit(128 + end.number) from None
