"""The options of `tadiff-train fit`, by group. None leaves a choice to the preset."""

from pathlib import Path
from typing import Annotated

import typer

# What is trained on.
Data = Annotated[
    Path,
    typer.Option("--data", help="Cohort: BIDS, SAILOR, LUMIERE, npy arrays or a manifest.csv."),
]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="Leave out patients that cannot be used, and say so.")
]
Cache = Annotated[Path | None, typer.Option(help="Folder for prepared images; default OUT/cache.")]
Jobs = Annotated[int, typer.Option(min=1, help="Processes that prepare images.")]
ValFraction = Annotated[
    float,
    typer.Option(min=0, max=0.9, help="Share of patients held out to choose weights by."),
]
TestFraction = Annotated[
    float,
    typer.Option(
        min=0, max=0.9, help="Share of patients left alone, for `evaluate --split test`."
    ),
]
Salt = Annotated[str, typer.Option(help="Another one gives another split.")]

# What is trained.
Size = Annotated[int, typer.Option(min=1, help="In-plane window of the network, voxels.")]
SpacingMm = Annotated[float, typer.Option(help="Voxel edge of the images.")]
ModelChannels = Annotated[int, typer.Option(help="Multiple of 32.")]
ChannelMult = Annotated[str, typer.Option(help="Channels of each level, as multiples.")]
NumResBlocks = Annotated[int, typer.Option(min=1, help="Residual blocks of each level.")]
NumHeads = Annotated[int, typer.Option(min=1, help="Attention heads.")]
Name = Annotated[str, typer.Option(help="Name of the model.")]
TrainedOn = Annotated[
    str, typer.Option(help="The training data in words; shown with every forecast.")
]
WeightsLicence = Annotated[str, typer.Option(help="Licence of the weights, in words.")]
StartLam = Annotated[
    float | None,
    typer.Option(
        help="Half log-SNR from which forecasts start, from the noised last scan; "
        "default: pure noise."
    ),
]

# How.
Out = Annotated[Path, typer.Option("-o", "--out", help="Run folder; must be new.")]
Resume = Annotated[
    bool,
    typer.Option("--resume", help="Go on with the run in OUT, with the same settings and data."),
]
Preset = Annotated[
    str, typer.Option(help="default, or published: every choice below as published.")
]
Steps = Annotated[int, typer.Option(min=1, help="Optimiser steps.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Windows of a step, over all processes.")]
Accumulate = Annotated[int, typer.Option(min=1, help="Passes a step is computed in, to fit.")]
Seed = Annotated[int, typer.Option(min=0, help="Of weights, windows and noise.")]
LearningRate = Annotated[
    float | None, typer.Option(min=1e-8, help="Highest, after the warm-up. [2.5e-4]")
]
WarmupSteps = Annotated[
    int | None, typer.Option(min=0, help="Steps in which the rate rises. [100; published 1000]")
]
WeightDecay = Annotated[float | None, typer.Option(min=0, help="Of AdamW. [3e-5]")]
ClipNorm = Annotated[float | None, typer.Option(min=1e-8, help="Of gradients. [1.5]")]
EmaDecay = Annotated[
    float | None,
    typer.Option(min=0, max=0.99999, help="Moving average of weights. [0.999; published 0]"),
]
Precision = Annotated[str | None, typer.Option(help="fp32, bf16, or fp16 on a GPU. [fp32]")]
Loss = Annotated[
    str | None, typer.Option(help="A preset of docs/training.md. [unbiased; published]")
]
TargetSlots = Annotated[
    str | None,
    typer.Option(
        help="future: the last slot; published: 62.5 % so; paper: half so. [future; published]"
    ),
]
Sources = Annotated[
    str | None,
    typer.Option(
        help="published: the sessions before the target; mixed: at times earlier ones. "
        "[mixed; published]"
    ),
]
Augmentation = Annotated[
    str | None,
    typer.Option(help="none, flip, or full: flips, small affine maps, intensities. [flip; none]"),
]
Timesteps = Annotated[
    str | None,
    typer.Option(help="all, or forecast: down from --start-lam alone. [forecast; all]"),
]
Start = Annotated[str | None, typer.Option(help="Initial weights: pass_through or published.")]

# What is shown and saved, and what computes.
SaveEvery = Annotated[int, typer.Option(min=1, help="Steps between saves.")]
LogEvery = Annotated[int, typer.Option(min=1, help="Steps between lines of the curves.")]
PictureEvery = Annotated[int, typer.Option(min=0, help="Steps between samples; 0: none.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Workers = Annotated[int, typer.Option(min=0, help="Processes that prepare windows ahead.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; default all.")]
