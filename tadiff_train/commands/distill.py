"""`tadiff-train distill`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tadiff_rt.console import progress_bar, say, tell
from tadiff_train.commands.options import Quiet

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tadiff_rt.card import ModelCard
    from tadiff_rt.certify.report import Check
    from tadiff_train.distill import Measured

REPORT = "distillation.json"


def distill(
    run: Annotated[Path, typer.Argument(help="Run folder of the teacher, from `fit`.")],
    data: Annotated[Path, typer.Option("--data", help="Data set with tumour masks, as for fit.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Run folder of the student; new.")],
    evaluations: Annotated[int, typer.Option(help="Of the student; 2 to 4 are of use.")] = 4,
    substeps: Annotated[
        int, typer.Option(help="Steps of the teacher for one of the student.")
    ] = 5,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 2000,
    batch_size: Annotated[int, typer.Option(min=1)] = 4,
    learning_rate: Annotated[float, typer.Option(min=1e-8)] = 1e-4,
    mask_weight: Annotated[
        float, typer.Option(min=0, help="Of the teacher's masks beside its images.")
    ] = 0.05,
    precision: Annotated[str, typer.Option(help="fp32, or bf16.")] = "fp32",
    windows: Annotated[int, typer.Option(min=1, help="Of held-out patients, to measure on.")] = 16,
    samples: Annotated[int, typer.Option(min=2, help="Of each ensemble measured.")] = 8,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    name: Annotated[
        str | None, typer.Option(help="Name of the student; default NAME-EVALUATIONS.")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Folder for prepared images; default OUT/cache.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default all.")] = None,
    quiet: Quiet = False,
) -> None:
    """Turn a network into one that forecasts in 2 to 4 evaluations, and measure what that costs.

    Ends with exit code 6 where the student is no closer to its teacher, in mean and in spread,
    than the teacher itself in as few evaluations; the student is kept, and says so.
    """
    import torch

    from tadiff_rt.certify.distilled import recorded_checks
    from tadiff_train.checkpoint import load_checkpoint
    from tadiff_train.data import cache_cases
    from tadiff_train.distill import (
        DistillConfig,
        distill,
        held_out,
        measure,
        require_teachable,
        student_card,
    )
    from tadiff_train.fit import patients_trained_on, require_new_run, write_checkpoint

    if threads:
        torch.set_num_threads(threads)
    config = DistillConfig(
        evaluations=evaluations,
        substeps=substeps,
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        mask_weight=mask_weight,
        precision=precision,  # type: ignore[arg-type]  # checked there
        seed=seed,
    )
    where = device_called(device)
    teacher, sidecar = load_checkpoint(run)
    card = sidecar.card
    require_teachable(card)
    own = student_card(card, sidecar.weights_sha256, config, {}, name=name)  # before hours
    require_new_run(out)
    with progress_bar("reading", quiet) as progress:
        cases = cache_cases(data, card.data, cache or out / "cache", progress)
    learnt, others = held_out(cases, patients_trained_on(run))
    teacher = teacher.to(where)
    with progress_bar("distilling", quiet) as progress:

        def show(step: int, terms: dict[str, float]) -> None:
            progress(step, steps)
            if not quiet and step % max(steps // 50, 1) == 0:
                say(f"step {step}: " + ", ".join(f"{k} {v:.5f}" for k, v in terms.items()))

        student = distill(teacher, card, learnt, config, show)
    training = {**vars(config), "step": steps}
    write_checkpoint(out, student, own, training)  # measuring may fail, after hours
    with progress_bar("measuring", quiet) as progress:
        measured = measure(
            teacher,
            student,
            card,
            others,
            config,
            windows=windows,
            samples=samples,
            progress=progress,
        )
    checks = recorded_checks(measured.flat())
    own = student_card(card, sidecar.weights_sha256, config, measured.flat(), name=name)
    write_checkpoint(out, student.cpu(), own, training)
    measured_on = {"windows": windows, "samples": samples, "patients": len(others)}
    write_report(out, own, measured, measured_on, checks)
    tell(table(measured, checks))
    require_closer(checks, out)
    tell(f"student in {out}; next: tadiff-export {out} -o {own.name}.tadiff")


def device_called(name: str) -> Any:
    """The torch device; UsageError TD3098 where there is none of that name."""
    import torch

    from tadiff_rt.errors import UsageError

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda") or (name == "cuda" and not torch.cuda.is_available()):
        what = f"there is no device {name!r} here"
        raise UsageError("TD3098", what, where="--device", fix="use auto, cpu, or cuda on a GPU")
    return torch.device(name)


def write_report(
    out: Path,
    card: "ModelCard",
    measured: "Measured",
    measured_on: dict[str, int],
    checks: "Sequence[Check]",
) -> None:
    """What was measured, with the verdict, beside the student."""
    from tadiff_rt.write import write_json

    assert card.sampler is not None
    content = {
        "student": card.name,
        "sampler": card.sampler.model_dump(mode="json", exclude={"measured"}),
        "measured_on": measured_on,
        "distance_from_teacher": vars(measured),
        "checks": [vars(check) for check in checks],
        "passed": all(check.passed for check in checks),
    }
    write_json(out / REPORT, content)


def table(measured: "Measured", checks: "Sequence[Check]") -> str:
    """Distances from the teacher, for people."""
    columns = ("student", "untrained", "other_noise")
    width = max(len(name) for name in measured.student)
    lines = [" " * width + "".join(f"{title.replace('_', ' '):>13}" for title in columns)]
    lines += [
        f"{name:{width}}" + "".join(f"{getattr(measured, c)[name]:13.4f}" for c in columns)
        for name in measured.student
    ]
    failed = [
        f"FAIL  {c.what} {c.value:.4g}, demanded {c.demanded}" for c in checks if not c.passed
    ]
    return "\n".join([*lines, *failed])


def require_closer(checks: "Sequence[Check]", out: Path) -> None:
    """NumericsError TD6007 for a student that is of no use, naming every failed check."""
    from tadiff_rt.errors import NumericsError

    failed = [c for c in checks if not c.passed]
    if failed:
        named = "; ".join(f"{c.what} {c.value:.4g}, demanded {c.demanded}" for c in failed)
        raise NumericsError(
            "TD6007",
            f"the student does not repeat its teacher: {named}",
            where=str(out),
            fix="distil for more --steps or to more --evaluations; until then use the teacher",
        )
