"""`tadiff-rt`: forecasts, the demo, and what a bundle is."""

import json
from pathlib import Path
from typing import Annotated, Any

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
        Path,
        typer.Option(
            "--case",
            help="Folder of a subject (BIDS, SAILOR, LUMIERE, npy arrays), or a manifest.csv.",
        ),
    ],
    day: Annotated[str, typer.Option("--day", help="+N days after the last session, or day N.")],
    treatment: Annotated[str, typer.Option("--treatment", help="CRT, TMZ or none, until then.")],
    out: Out,
    samples: Annotated[
        str, typer.Option(help="Ensemble members, 2 or more for a spread; or auto.")
    ] = "5",
    volume_ci: Annotated[
        str | None,
        typer.Option(
            "--volume-ci",
            help="With --samples auto: draw until the mean volume is known this well [10%].",
        ),
    ] = None,
    max_samples: Annotated[str, typer.Option(help="With --samples auto: at most these.")] = "64",
    steps: Annotated[
        str, typer.Option(help="Network evaluations a sample; auto: 20, or as distilled.")
    ] = "auto",
    solver: Annotated[
        str,
        typer.Option(
            help="dpmpp_2m, unipc_2, sde_dpmpp_2m, ddim, ddpm, ...; auto: the first, or as "
            "distilled."
        ),
    ] = "auto",
    grid: Annotated[
        str,
        typer.Option(
            help="logsnr; optimised (see certify); trailing, ... to compare only; auto: the "
            "first, or as distilled."
        ),
    ] = "auto",
    round_times: Annotated[
        bool, typer.Option("--round-times", help="Whole timesteps only, as trained.")
    ] = False,
    coherence: Annotated[
        float, typer.Option(help="Correlation of the noise of neighbouring slices, 0 to 0.99.")
    ] = 0.0,
    latin: Annotated[
        bool, typer.Option("--latin", help="Stratify the noise over the samples.")
    ] = False,
    seed: Annotated[str, typer.Option(help="0 to 2^64 - 1; same seed, same forecast.")] = "0",
    slices: Annotated[
        str,
        typer.Option(help="brain, tumour (needs masks), all, k, a:b or a list (top to bottom)."),
    ] = "brain",
    backend: Annotated[
        str,
        typer.Option(help="auto: the fastest here; or NAME[:PRECISION], as onnxruntime, torch."),
    ] = "auto",
    threads: Threads = None,
    workers: Annotated[
        int, typer.Option(min=1, max=64, help="Batches at a time; they share the cores.")
    ] = 1,
    work: Annotated[
        Path | None,
        typer.Option(help="Keep finished slices here; the same command goes on from them."),
    ] = None,
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
    layout: Annotated[
        str,
        typer.Option(help="bids, sailor, lumiere or npy, of a folder."),
    ] = "auto",
    treatments: Annotated[
        str,
        typer.Option(help="SAILOR: table, or published (4 sessions CRT, then TMZ)."),
    ] = "table",
    skip_incomplete: Annotated[
        bool,
        typer.Option(
            "--skip-incomplete", help="SAILOR, LUMIERE: leave out sessions that lack an image."
        ),
    ] = False,
    leave_out: Annotated[
        list[str] | None,
        typer.Option("--leave-out", help="SAILOR, LUMIERE: a session to ignore; may be repeated."),
    ] = None,
    lumiere_images: Annotated[
        str,
        typer.Option(help="LUMIERE: raw, registered or atlas images."),
    ] = "auto",
    npy_grid: Annotated[
        str,
        typer.Option(help="npy: how the axes run and the voxel edge in mm, as PLI:1."),
    ] = "",
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
        volume_ci=volume_ci,
        max_samples=max_samples,
        steps=steps,
        solver=solver,
        grid=grid,
        round_times=round_times,
        coherence=coherence,
        latin=latin,
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
        layout=layout,
        treatments=treatments,
        skip_incomplete=skip_incomplete,
        leave_out=tuple(leave_out or ()),
        lumiere_images=lumiere_images,
        npy_grid=npy_grid,
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
            workers=workers,
            work=work,
            progress=progress,
        )
    if not quiet:
        for line in forecast.report["model"]["backend_choice"]:
            say(printable(line))
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


@app.command()
def certify(
    bundle: Annotated[str, typer.Argument(help="Engine bundle, a folder NAME.tadiff.")],
    steps: Annotated[str, typer.Option(help="As for predict.")] = "auto",
    solver: Annotated[str, typer.Option(help="As for predict.")] = "auto",
    grid: Annotated[str, typer.Option(help="As for predict.")] = "auto",
    round_times: Annotated[
        bool, typer.Option("--round-times", help="Whole timesteps only, as trained.")
    ] = False,
    case: Annotated[
        list[Path] | None,
        typer.Option(help="Case to measure on, repeatable; default: the bundled one, if it fits."),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            min=2, max=64, help="Members of each ensemble measured; default 8, 4 to optimise."
        ),
    ] = None,
    seed: Annotated[str, typer.Option(help="Of the noise.")] = "0",
    optimise: Annotated[
        bool,
        typer.Option("--optimise", help="Find levels for 5 to 12 steps; keep them in the bundle."),
    ] = False,
    analytic: Annotated[
        bool, typer.Option("--analytic", help="Without the network: seconds, no case.")
    ] = False,
    teacher: Annotated[
        str | None,
        typer.Option(help="Bundle that a distilled one was made from, to measure it against."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The certificate as JSON.")] = False,
    threads: Threads = None,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress.")] = False,
) -> None:
    """Test a sampler's settings on a bundle: order, spread, modes, masks, distance to a dense run.

    Ends with exit code 6 where a setting fails. Example: tadiff-rt certify demo.tadiff --steps 10
    """
    from tadiff_rt.certify import command
    from tadiff_rt.errors import raise_findings
    from tadiff_rt.forecast import Forecaster
    from tadiff_rt.sampling import SamplingRequest

    request = SamplingRequest(
        steps=steps, solver=solver, grid=grid, round_times=round_times, seed=seed
    )
    raise_findings(request.findings())
    if optimise:
        command.check_search(request, analytic=analytic)
    heard = (lambda message: None) if quiet else say
    forecaster = Forecaster.load(bundle, threads=threads)
    other = None if teacher is None else Forecaster.load(teacher, threads=threads)
    cases = [] if analytic else command.read_cases(forecaster, case or [], heard)
    if optimise:
        levels = command.optimise(forecaster, request, cases, samples=samples or 4, say=heard)
        command.store(forecaster.bundle, levels)
        found = levels.model_dump()
        tell(json.dumps(found, indent=2) if as_json else _optimised(found))
        return
    with progress_bar("certify", quiet) as progress:
        certificate = command.certify(
            forecaster, request, cases, samples=samples or 8, progress=progress, teacher=other
        )
    tell(json.dumps(certificate.as_dict(), indent=2) if as_json else certificate.as_text())
    command.require(certificate)


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


def _optimised(levels: dict[str, Any]) -> str:
    """What was found by `certify --optimise`."""
    times = ", ".join(f"{t:.1f}" for t in levels["times"])
    lines = [f"times: {times}", "distance from a dense run, that of other noise being 1:"]
    lines += [f"  {name}: {value:.4f}" for name, value in levels["distance"].items()]
    lines += ["spread on Gaussians, sampled / true:"]
    lines += [f"  std {std}: {ratio:.3f}" for std, ratio in levels["spread"].items()]
    steps = len(levels["times"])
    return "\n".join(
        [*lines, f"stored; next: tadiff-rt predict --grid optimised --steps {steps} ..."]
    )


def _written(out: Path, start: str) -> str:
    return printable(f"written to {out}; start with {out / start}")


def main() -> None:
    """Entry point of `tadiff-rt`."""
    run_app(app, "tadiff-rt")
