"""`tadiff-rt predict`: from the words of a command line to what `tadiff_rt.commands` does."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from tadiff_rt.cli.options import Engine, Threads
from tadiff_rt.cli.words import one_of, summary, written
from tadiff_rt.console import progress_bar, say, tell
from tadiff_rt.errors import UsageError, printable
from tadiff_rt.presets import DEFAULT, PRESETS


def predict(
    engine: Engine,
    case: Annotated[
        Path,
        typer.Option(
            "--case",
            help="Folder of a subject (BIDS, SAILOR, LUMIERE, npy arrays), or a manifest.csv.",
        ),
    ],
    day: Annotated[
        list[str],
        typer.Option(
            "--day", help="+N days after the last session, or day N; several: --day +30 +90."
        ),
    ],
    treatment: Annotated[
        list[str],
        typer.Option(
            "--treatment",
            help="CRT, TMZ or none, until then; several are compared with the last of them.",
            autocompletion=one_of("CRT", "TMZ", "none"),
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Folder for the result; must be new.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Check everything, say what is understood, and stop.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="As --check; also say what it will take, and stop.")
    ] = False,
    report: Annotated[
        bool, typer.Option("--report", help="Also write report.html, a page to look at.")
    ] = False,
    subject: Annotated[
        str,
        typer.Option(help="Label of the patient in file names; default: of a folder sub-LABEL."),
    ] = "",
    fast: Annotated[bool, typer.Option("--fast", help=f"{PRESETS['fast']}.")] = False,
    reference: Annotated[
        bool, typer.Option("--reference", help=f"{PRESETS['reference']}.")
    ] = False,
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
        str,
        typer.Option(
            help=f"Network evaluations a sample; auto: of {PRESETS[DEFAULT]}; or as distilled."
        ),
    ] = "auto",
    solver: Annotated[
        str,
        typer.Option(
            help="dpmpp_2m, unipc_2, sde_dpmpp_2m, ddim, ddpm, ...; auto: the first (second with "
            "--fast), or as distilled.",
            autocompletion=one_of("auto", "dpmpp_2m", "unipc_2", "sde_dpmpp_2m", "ddim", "ddpm"),
        ),
    ] = "auto",
    grid: Annotated[
        str,
        typer.Option(
            help="logsnr; optimised (see certify); trailing, ... to compare only; auto: the "
            "first, or as distilled.",
            autocompletion=one_of("auto", "logsnr", "optimised", "distilled"),
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
        typer.Option(
            help="brain, tumour (needs masks), all, k, a:b or a list (top to bottom).",
            autocompletion=one_of("brain", "tumour", "all"),
        ),
    ] = "brain",
    backend: Annotated[
        str,
        typer.Option(
            help="auto: the fastest here; or NAME[:PRECISION], as onnxruntime, torch.",
            autocompletion=one_of("auto", "onnxruntime", "openvino", "torch", "tensorrt"),
        ),
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
    resample: Annotated[
        bool,
        typer.Option("--resample", help="Bring images onto the network's grid, results back."),
    ] = False,
    labels: Annotated[
        str,
        typer.Option(
            help="What the labels of masks mean: published, brats2021, brats2023, brats2024, "
            "hdglio or binary.",
            autocompletion=one_of(
                "published", "brats2021", "brats2023", "brats2024", "hdglio", "binary"
            ),
        ),
    ] = "",
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
        typer.Option(
            help="bids, sailor, lumiere or npy, of a folder.",
            autocompletion=one_of("auto", "bids", "sailor", "lumiere", "npy"),
        ),
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
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the run report (or the estimate) as JSON.")
    ] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress, no notes.")] = False,
) -> None:
    """Forecast scan and tumour of a case on future days under several treatments.

    Example: tadiff-rt predict --engine demo.tadiff --case sub-17 --day +90 --treatment TMZ -o out
    """
    from tadiff_rt.case import ReadOptions
    from tadiff_rt.commands import Running, check_case, estimate_request, predict_to_folder
    from tadiff_rt.request import PredictRequest

    request = PredictRequest(
        days=day,
        treatments=treatment,
        preset=_preset(fast, reference),
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
        resample=resample,
    )
    options = ReadOptions(
        allow_same=allow_same,
        nonfinite=nonfinite,
        rebase_days=rebase_days,
        sort=sort,
        affine=affine,
        assume_ras=assume_ras,
        max_voxels=max_voxels,
        labels=labels,
        layout=layout,
        treatments=treatments,
        skip_incomplete=skip_incomplete,
        leave_out=tuple(leave_out or ()),
        lumiere_images=lumiere_images,
        npy_grid=npy_grid,
    )
    running = Running(backend=backend, threads=threads, workers=workers, work=work)
    if check or dry_run:
        ready = check_case(
            engine,
            case,
            out,
            request,
            options,
            running=running,
            overwrite=overwrite,
            subject=subject,
        )
        costs = None
        if dry_run:
            costs = estimate_request(engine, ready, request, running, report=report)
        _tell_ready(ready, costs, as_json)
        return
    if out is None:
        raise UsageError("TD3000", "Missing option '-o' / '--out'.", fix="see `predict --help`")
    with progress_bar("forecast", quiet) as progress:
        comparison = predict_to_folder(
            engine,
            case,
            out,
            request,
            options=options,
            running=running,
            overwrite=overwrite,
            report=report,
            subject=subject,
            progress=progress,
        )
    _tell_result(comparison.report, out, report_page=report, as_json=as_json, quiet=quiet)


def _preset(fast: bool, reference: bool) -> str:
    if fast and reference:
        raise UsageError("TD3068", "--fast and --reference exclude each other", where="--fast")
    return "fast" if fast else "reference" if reference else DEFAULT


def _tell_ready(ready: Any, costs: Any, as_json: bool) -> None:
    """What `--check` and `--dry-run` end with."""
    from tadiff_rt.preview import as_report, understood

    if as_json:
        found = as_report(ready)
        tell(json.dumps(found if costs is None else {**found, "estimate": costs.as_dict()}))
        return
    for line in understood(ready):
        tell(line)
    for line in costs.lines() if costs else ():
        tell(line)
    tell("checked: this can be forecast; nothing was written")


def _tell_result(
    report: dict[str, Any], out: Path, *, report_page: bool, as_json: bool, quiet: bool
) -> None:
    """What a forecast ends with: notes on stderr, the result on stdout."""
    if not quiet:
        for line in report["model"]["backend_choice"]:
            say(printable(line))
        for note in report["notes"]:
            say(f"note: {printable(note)}")
    if as_json:
        tell(json.dumps(report))
        return
    for line in summary(report):
        tell(line)
    tell(written(out, "report.html" if report_page else "overview.png"))
