"""`tadiff-rt`: forecasts, the demo, and what a bundle is."""

import json
from pathlib import Path
from typing import Annotated

import typer

from tadiff_rt.console import progress_bar, run_app, say, tell
from tadiff_rt.errors import printable

app = typer.Typer(
    name="tadiff-rt",
    help="Treatment-aware forecasts of glioma MRI. Research only, not for diagnosis or treatment.",
    epilog="With every command: --errors=json prints errors as JSON, --debug adds a traceback.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

MAX_THREADS = 1024

Engine = Annotated[str, typer.Option("--engine", help="Engine bundle, a folder NAME.tadiff.")]
Out = Annotated[Path, typer.Option("-o", "--out", help="Folder for the result; must be new.")]
Threads = Annotated[
    int | None, typer.Option(min=1, max=MAX_THREADS, help="CPU threads; default all.")
]


@app.command()
def predict(
    engine: Engine,
    case: Annotated[
        Path, typer.Option("--case", help="BIDS subject folder (sub-XX), or a manifest.csv.")
    ],
    day: Annotated[str, typer.Option("--day", help="+N days after the last session, or day N.")],
    treatment: Annotated[str, typer.Option("--treatment", help="CRT, TMZ or none, until then.")],
    out: Out,
    samples: Annotated[str, typer.Option(help="Ensemble members; 2 or more give a spread.")] = "5",
    steps: Annotated[str, typer.Option(help="Network evaluations a sample.")] = "20",
    seed: Annotated[str, typer.Option(help="0 to 2^64 - 1; same seed, same forecast.")] = "0",
    slices: Annotated[
        str, typer.Option(help="brain, tumour (needs masks), all, k or a:b (top to bottom).")
    ] = "brain",
    backend: Annotated[str, typer.Option(help="auto or onnxruntime.")] = "auto",
    threads: Threads = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a result.")] = False,
    extrapolate: Annotated[
        bool, typer.Option("--extrapolate", help="Allow days and horizons beyond training.")
    ] = False,
    allow_same: Annotated[
        bool, typer.Option("--allow-same", help="One file may stand for several modalities.")
    ] = False,
    nonfinite: Annotated[str, typer.Option(help="refuse, or zero: NaN and Inf to 0.")] = "refuse",
    rebase_days: Annotated[
        bool, typer.Option("--rebase-days", help="Count days from the first session.")
    ] = False,
    sort: Annotated[bool, typer.Option("--sort", help="Sort sessions by day.")] = False,
    affine: Annotated[
        str, typer.Option(help="agree, or sform / qform: which to use where they differ.")
    ] = "agree",
    max_voxels: Annotated[
        int, typer.Option(min=1, help="Refuse images that declare more voxels.")
    ] = 512**3,
    assume_ras: Annotated[
        bool, typer.Option("--assume-ras", help="Images without orientation are R, A, S.")
    ] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress, no notes.")] = False,
) -> None:
    """Forecast scan and tumour of a case on a future day under a treatment.

    Example: tadiff-rt predict --engine demo.tadiff --case sub-17 --day +90 --treatment TMZ -o out
    """
    from tadiff_rt.case import ReadOptions
    from tadiff_rt.commands import predict_to_folder
    from tadiff_rt.request import PredictRequest

    request = PredictRequest(
        day=day,
        treatment=treatment,
        samples=samples,
        steps=steps,
        seed=seed,
        slices=slices,
        extrapolate=extrapolate,
    )
    options = ReadOptions(
        allow_same=allow_same,
        nonfinite=nonfinite,
        rebase_days=rebase_days,
        sort=sort,
        affine=affine,
        assume_ras=assume_ras,
        max_voxels=max_voxels,
    )
    with progress_bar("forecast", quiet) as progress:
        forecast = predict_to_folder(
            engine,
            case,
            out,
            request,
            options=options,
            overwrite=overwrite,
            backend=backend,
            threads=threads,
            progress=progress,
        )
    if not quiet:
        for note in forecast.report["notes"]:
            say(f"note: {printable(note)}")
    tell(summary(forecast.report))
    tell(_written(out, "overview.png"))


@app.command()
def demo(
    out: Out = Path("demo"),
    samples: Annotated[str, typer.Option(help="Ensemble members of each forecast.")] = "4",
    threads: Threads = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a result.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress.")] = False,
) -> None:
    """Forecast the bundled simulated case under two treatments, and draw the difference."""
    from tadiff_rt.commands import run_demo

    with progress_bar("demo", quiet) as progress:
        forecasts = run_demo(out, samples, threads, overwrite, progress)
    for forecast in forecasts.values():
        tell(summary(forecast.report))
    tell(_written(out, "difference.png"))


@app.command()
def info(
    bundle: Annotated[str, typer.Argument(help="Engine bundle, a folder NAME.tadiff.")],
    as_json: Annotated[bool, typer.Option("--json", help="The whole manifest as JSON.")] = False,
) -> None:
    """What a bundle computes and how far it may be trusted. Reads the manifest alone."""
    from tadiff_rt.bundle import describe_bundle, open_bundle

    opened = open_bundle(bundle)
    if as_json:
        tell(json.dumps(opened.manifest.model_dump(mode="json"), indent=2))
    else:
        tell("\n".join(printable(line) for line in describe_bundle(opened).split("\n")))


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Options of the command itself."""
    if version:
        from importlib.metadata import version as installed

        tell(f"tadiff {installed('tadiff')}")
        raise typer.Exit


def summary(report: dict[str, object]) -> str:
    """One line of a forecast: request and tumour volume."""
    request, volume = report["request"], report["volume_ml"]
    assert isinstance(request, dict)
    assert isinstance(volume, dict)
    low, high = volume["interval"]
    interval = (
        f" ({volume['level']:.0%} interval {low:.1f} to {high:.1f})" if low is not None else ""
    )
    return (
        f"day {request['day']}, {request['treatment']}: tumour {volume['mean']:.1f} ml{interval}; "
        "predicted, not acquired, research use"
    )


def _written(out: Path, start: str) -> str:
    return printable(f"written to {out}; start with {out / start}")


def main() -> None:
    """Entry point of `tadiff-rt`."""
    run_app(app, "tadiff-rt")
