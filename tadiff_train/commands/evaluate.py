"""`tadiff-train evaluate`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tadiff_rt.console import progress_bar
from tadiff_train.commands.fit_request import fractions_of
from tadiff_train.commands.options import Quiet
from tadiff_train.commands.reading import Labels

if TYPE_CHECKING:
    from tadiff_rt.sampling import SamplingRequest
    from tadiff_train.data import Subject
    from tadiff_train.evaluation import PatientResult


def evaluate(
    engine: Annotated[Path, typer.Option("--engine", help="Engine bundle, NAME.tadiff.")],
    data: Annotated[
        Path, typer.Option("--data", help="Cohort with tumour masks, not trained on.")
    ],
    out: Annotated[
        Path, typer.Option("-o", "--out", help="Markdown table; .json and .png beside it.")
    ],
    population: Annotated[
        str, typer.Option(help="Whom the data are of, in words; heads the table.")
    ] = "patients",
    split: Annotated[
        str | None,
        typer.Option(help="Only patients of this part, train, val or test, as `fit` splits them."),
    ] = None,
    val_fraction: Annotated[
        float, typer.Option(min=0, max=0.9, help="With --split: as it was given to `fit`.")
    ] = 0.1,
    test_fraction: Annotated[
        float, typer.Option(min=0, max=0.9, help="With --split: as it was given to `fit`.")
    ] = 0.1,
    salt: Annotated[str, typer.Option(help="With --split: as it was given to `fit`.")] = "tadiff",
    samples: Annotated[int, typer.Option(min=1)] = 5,
    steps: Annotated[
        str, typer.Option(help="Network evaluations a sample; auto: 20, or as distilled.")
    ] = "auto",
    seed: Annotated[int, typer.Option(min=0)] = 0,
    coherence: Annotated[
        float,
        typer.Option(min=0, max=0.99, help="Correlation of the noise of neighbouring slices."),
    ] = 0.0,
    max_slices: Annotated[
        int | None, typer.Option(min=1, help="At most so many slices a patient, evenly spaced.")
    ] = None,
    counterfactuals: Annotated[
        bool,
        typer.Option(
            "--counterfactuals", help="Also other treatments, where the data hold their outcome."
        ),
    ] = False,
    no_growth: Annotated[
        bool,
        typer.Option("--no-growth", help="Without the fitted growth model, which takes long."),
    ] = False,
    labels: Labels = "",
    skip_bad: Annotated[
        bool,
        typer.Option("--skip-bad", help="Leave out patients that cannot be used, and say so."),
    ] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Processes that fit growth models.")] = 1,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default all.")] = None,
    quiet: Quiet = False,
) -> None:
    """Forecast every patient's last session; compare with the truth, a copy and fitted growth."""
    from tadiff_rt.errors import raise_findings
    from tadiff_rt.forecast import Forecaster
    from tadiff_rt.overview import check_drawing
    from tadiff_rt.sampling import SamplingRequest
    from tadiff_train.evaluation import (
        Draw,
        Evaluation,
        Scope,
        evaluate,
        results_table,
        usable_subjects,
    )
    from tadiff_train.evaluation.growth import grow_subject
    from tadiff_train.evaluation.output import require_writable, write_evaluation

    request = SamplingRequest(samples=samples, steps=steps, seed=seed, coherence=coherence)
    raise_findings(request.findings())
    require_writable(out)
    check_drawing()
    draw, scope = (
        Draw(samples, steps, seed, coherence),
        Scope(max_slices=max_slices, labels=labels),
    )
    fractions = fractions_of({"val_fraction": val_fraction, "test_fraction": test_fraction})
    found = subjects_of(data, split, fractions, salt)
    forecaster = Forecaster.load(engine, threads=threads)
    manifest = forecaster.bundle.manifest
    settled = request.settled(manifest.card.sampler)
    usable, bad = usable_subjects(found, manifest.card, scope, counterfactuals=counterfactuals)
    if not (skip_bad and usable):
        raise_findings(list(bad.values()))
    with progress_bar("patients", quiet) as progress:
        results = evaluate(
            forecaster,
            usable,
            draw=draw,
            scope=scope,
            counterfactuals=counterfactuals,
            grow=None if no_growth else grow_subject,
            jobs=jobs,
            progress=progress,
        )
    settings = {
        "model": manifest.card.name,
        "weights": manifest.weights_sha256[:12],
        **settings_of(settled),
        **({"slices a patient at most": max_slices} if max_slices else {}),
        **({"part": split, "salt": salt} if split else {}),
        **({"other plans known": known_plans(results)} if counterfactuals else {}),
        "trained on": manifest.card.trained_on,
    }
    left_out = {name: f"{error.code}, {error.message}" for name, error in bad.items()}
    evaluation = Evaluation(tuple(results), population, settings, left_out=left_out)
    write_evaluation(evaluation, out)
    typer.echo(results_table(evaluation))


def settings_of(settled: "SamplingRequest") -> dict[str, object]:
    """How the ensembles were drawn."""
    return {
        "samples": settled.samples,
        "steps": int(settled.steps),
        "solver": settled.solver,
        "seed": settled.seed,
        "coherence": settled.coherence,
    }


def known_plans(results: "Sequence[PatientResult]") -> str:
    """Of how many patients the data hold the outcome of another treatment; perhaps of none."""
    return f"of {sum(bool(result.plans) for result in results)} of {len(results)} patients"


def subjects_of(
    data: Path,
    part: str | None,
    fractions: Mapping[str, float] | None = None,
    salt: str = "tadiff",
) -> "list[Subject]":
    """The subjects of a cohort, or of one part of it as `fit` makes it of fractions and salt.

    Raises:
        UsageError: TD3030 no subject, TD3077 there is no such part or nobody in it.
    """
    from tadiff_rt.errors import UsageError
    from tadiff_train.data import find_subjects, split_by_patient
    from tadiff_train.data.split import FRACTIONS

    found = find_subjects(data)
    if part is None:
        return found
    parts = split_by_patient(found, fractions or FRACTIONS, salt)
    if not parts.get(part):
        sizes = ", ".join(f"{name} with {len(members)}" for name, members in parts.items())
        what = f"--split {part} holds no patient; the parts are {sizes}"
        raise UsageError("TD3077", what, fix="leave it out to evaluate all patients")
    return parts[part]
