"""`tadiff-rt certify`."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from tadiff_rt.cli.options import Threads
from tadiff_rt.console import progress_bar, say, tell


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
