"""An evaluation in Markdown: the comparison with both baselines, and what it does not show."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from tadiff_train.evaluation.compare import (
    BASELINES,
    GROUP_METRICS,
    METRICS,
    MIN_PATIENTS,
    Comparison,
    Metric,
    compare,
    groups,
)
from tadiff_train.evaluation.results import Evaluation, PatientResult
from tadiff_train.evaluation.table_calibration import calibration_lines, plan_lines
from tadiff_train.metrics import Interval

EXPLANATION = f"""\
Means over patients, in brackets 95 % bootstrap intervals over patients. All methods are scored on
the same slices and, for images, the same brain voxels; masks are those of the target session
alone. The baselines are given the true masks of past scans; the model sees images only. The copy
also carries the noise of its own scan, which the mean of an ensemble does not: part of a gain in
PSNR, MAE and SSIM is that. A copy has 0 of change by construction. HD95 is undefined where one
tumour is empty, which leaves out the patients whose tumour was missed. CRPS of a method that gives
one volume is its absolute error; Brier score and ECE of a method that gives a mask are its share
of wrong voxels. "Better" and "worse" mean that the interval of the paired difference leaves out 0,
with at least {MIN_PATIENTS} patients; of so many comparisons one in twenty does so by chance,
more where the values of few patients are skewed.
"[n of N]" says for how many patients both methods are defined, where not for all."""

GROWTH_EXPLANATION = """\
Fitted growth is a reaction-diffusion equation fitted to each patient's past, all sessions and
their true masks, then run to the target's day under its treatment. It makes no image. Its mask is
that of the most probable parameters; where the model has several samples, its CRPS and intervals
are of as many draws of the parameters, whose spread holds no error of the equation. On simulated
patients it knows the equation that made them, which no one knows of a real patient: there it shows
what a forecast could reach."""

NO_GROWTH = """\
The fitted reaction-diffusion baseline was not run: the copy alone says little of forecasts under
treatments that change growth."""


def results_table(evaluation: Evaluation) -> str:
    """The results in Markdown, with what they do and do not show."""
    results = evaluation.results
    if not results:
        return f"No patient was evaluated ({evaluation.population}).\n"
    baselines = tuple(BASELINES) if evaluation.with_growth else ("copy",)
    lines = [
        f"Forecasts of the last session of {len(results)} {evaluation.population}.",
        "",
        *_describe(evaluation),
        "",
        *_main_table(evaluation, baselines),
        "",
        EXPLANATION,
        "",
        GROWTH_EXPLANATION if evaluation.with_growth else NO_GROWTH,
        "",
        *calibration_lines(evaluation),
        *plan_lines(evaluation),
    ]
    for baseline in baselines:
        lines += _group_table(evaluation, baseline)
    return "\n".join(lines).rstrip("\n") + "\n"


def cell(interval: Interval | None, digits: int, sign: str = "") -> str:
    """A mean with its interval."""
    if interval is None:
        return "undefined"
    mean, low, high = (
        f"{value:{sign}.{digits}f}" for value in (interval.mean, interval.low, interval.high)
    )
    return f"{mean} ({low} to {high})"


def _describe(evaluation: Evaluation) -> list[str]:
    results = evaluation.results
    horizons = [r.horizon_days for r in results]
    outside = [r.unforecast_ml for r in results]
    counts = [len(r.slices) for r in results]
    lines = [
        f"- Horizon: median {np.median(horizons):g} days, {min(horizons)} to {max(horizons)}.",
        f"- Slices: {sum(counts)} in all, {min(counts)} to {max(counts)} a patient, chosen by the "
        "tumour of the sources and not by that of the target; volumes are of the tumour there.",
        f"- Future tumour outside the slices that a forecast covers, hence not scored: mean "
        f"{np.mean(outside):.2f} ml, at most {max(outside):.2f} ml.",
    ]
    steps = [r.slice_step for r in results]
    if max(steps) > 1:
        lines.append(
            f"- One in {min(steps)} to {max(steps)} slices was evaluated: volumes are estimated "
            "from those, and HD95 is coarse, as surfaces are looked for in them only."
        )
    beyond = sum(r.extrapolated for r in results)
    if beyond:
        lines.append(f"- {beyond} targets lie beyond the days or horizons seen in training.")
    lines += _missed(evaluation)
    lines += _failures(results)
    if evaluation.left_out:
        said = "; ".join(f"{name} ({why})" for name, why in sorted(evaluation.left_out.items()))
        lines.append(f"- Left out, as they could not be used: {said}.")
    if evaluation.settings:
        said = ", ".join(f"{name} {value}" for name, value in evaluation.settings.items())
        lines.append(f"- {said}.")
    lines.append(
        "- Whether the model was trained on any of these patients is not checked: a model file "
        "does not name them."
    )
    return lines


def _missed(evaluation: Evaluation) -> list[str]:
    """Tumours that a method missed altogether, which have no HD95, and false alarms."""
    counts = []
    for method in ("model", *BASELINES):
        pairs = [(r.true_ml, s.volume_ml) for r in evaluation.results if (s := r.score_of(method))]
        if pairs:
            missed = sum(true > 0 and said == 0 for true, said in pairs)
            alarms = sum(true == 0 and said > 0 for true, said in pairs)
            counts.append(f"{BASELINES.get(method, method)} {missed} and {alarms}")
    return [f"- Patients whose tumour was missed, and with a false alarm: {', '.join(counts)}."]


def _failures(results: Sequence[PatientResult]) -> list[str]:
    """For how many patients the growth baseline gave no forecast, and why."""
    reasons = Counter(r.growth.failure for r in results if r.growth and r.growth.failure)
    if not reasons:
        return []
    said = "; ".join(f"{reason} ({count})" for reason, count in sorted(reasons.items()))
    failed = sum(reasons.values())
    return [f"- Fitted growth failed for {failed} of {len(results)} patients: {said}."]


def _main_table(evaluation: Evaluation, baselines: Sequence[str]) -> list[str]:
    heads = ["metric", "model", *(BASELINES[b] for b in baselines)]
    heads += [f"model - {b}: the model is" for b in baselines]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for metric in METRICS:
        found = [compare(evaluation.results, metric, b, evaluation.seed) for b in baselines]
        cells = [metric.name, _or_dash(found[0], found[0].model, metric)]
        cells += [_or_dash(c, c.other, metric) for c in found]
        cells += [_difference(c, metric, len(evaluation.results)) for c in found]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _or_dash(comparison: Comparison, interval: Interval | None, metric: Metric) -> str:
    no_images = comparison.baseline == "growth" and _is_of_images(metric)
    return "-" if no_images else cell(interval, metric.digits)


def _is_of_images(metric: Metric) -> bool:
    return metric.name.startswith(("SSIM", "PSNR", "MAE"))


def _difference(comparison: Comparison, metric: Metric, patients: int) -> str:
    if comparison.baseline == "growth" and _is_of_images(metric):
        return "-"
    text = cell(comparison.difference, metric.digits, "+")
    if comparison.verdict and comparison.difference:
        text += f": {comparison.verdict}"
    if comparison.left_out:
        text += f" [{patients - comparison.left_out} of {patients}]"
    return text


def _group_table(evaluation: Evaluation, baseline: str) -> list[str]:
    """Each group as one row: model / baseline, and the verdict."""
    metrics = [m for m in GROUP_METRICS if baseline == "copy" or not _is_of_images(m)]
    heads = [f"model / {BASELINES[baseline]}", "patients", "median horizon (days)"]
    heads += [metric.name for metric in metrics]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, members in groups(evaluation.results):
        cells = [name, str(len(members)), f"{np.median([r.horizon_days for r in members]):g}"]
        for metric in metrics:
            c = compare(members, metric, baseline, evaluation.seed)
            if c.model is None or c.other is None:
                cells.append("undefined")
                continue
            values = f"{c.model.mean:.{metric.digits}f} / {c.other.mean:.{metric.digits}f}"
            few = f" [{len(members) - c.left_out}]" if c.left_out else ""
            cells.append(f"{values}: {c.verdict}{few}")
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]
