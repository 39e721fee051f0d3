"""What an evaluation found: results of patients, their comparison, and the table of it."""

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tadiff_rt.case import MODALITIES, TREATMENTS
from tadiff_rt.forecast import VOLUME_LEVEL
from tadiff_train.metrics import (
    Interval,
    bootstrap_interval,
)

HORIZON_DAYS = 60
"""Where results are split into near and far forecasts."""
MIN_PATIENTS = 6
"""Below, no difference is called one: with 5 patients, all lie on one side by chance in 1 of 16
cohorts (two-sided sign test)."""
MIN_PLAN_DIFFERENCE_ML = 0.5
"""Two plans whose true volumes are closer have no sign to be right about."""
POPULATION = "simulated patients, never seen in training"

Float32Array = NDArray[np.float32]


@dataclass(frozen=True)
class Score:
    """One method on one patient, over the evaluated slices."""

    dice: float | None
    """Of the tumour, over all evaluated slices as one volume; None without any tumour."""
    volume_ml: float
    signed_error_ml: float
    absolute_error_ml: float
    ssim: dict[str, float]
    """By modality, the mean over slices of the mean over the brain."""
    psnr: dict[str, float]
    """By modality, from the mean squared error over all brain voxels; inf for equal images."""
    mae: dict[str, float]


@dataclass(frozen=True)
class CounterfactualScore:
    """The same patient under another treatment of the last interval."""

    treatment: str
    dice: float | None
    true_difference_ml: float
    """Volume under this treatment minus volume under the one given."""
    predicted_difference_ml: float
    """The same, of the mean volumes of two ensembles with one seed."""
    sign_agrees: bool | None
    """None where the truth differs by less than MIN_PLAN_DIFFERENCE_ML."""


@dataclass(frozen=True)
class PatientResult:
    """The forecast of one patient's last session, and how far it was off."""

    name: str
    treatment: str
    target_day: int
    horizon_days: int
    """From the last source to the target."""
    num_sources: int
    """Sessions before the target; the network sees the last three."""
    extrapolated: bool
    """The target lies beyond the days or the horizons seen in training."""
    slices: tuple[int, ...]
    """Evaluated slices of the canonical grid, the same for every method."""
    true_ml: float
    """Tumour of the target in the evaluated slices."""
    unforecast_ml: float
    """Tumour of the target outside every slice that the choice of slices covers."""
    model: Score
    copy: Score
    change_dice: float | None
    """Dice of the voxels said to differ from the last mask and those that do; a copy has 0."""
    change_recall: float | None
    """Share of the voxels which differ from the last mask that the forecast has right."""
    interval_ml: tuple[float, float] | None
    """Prediction interval of the volume; None for a single sample."""
    covered: bool | None
    """The true volume lies inside it."""
    counterfactuals: tuple[CounterfactualScore, ...] = ()


def _mean_of(values: Mapping[str, float]) -> float:
    return sum(values.values()) / len(values)


@dataclass(frozen=True)
class _Metric:
    name: str
    of: Callable[[Score], float | None]
    better: int
    """1 if more is better, -1 if less is, 0 if neither."""
    digits: int = 3


def _image_metrics(name: str, attribute: str, better: int, digits: int) -> list[_Metric]:
    def of(modality: str) -> Callable[[Score], float]:
        return lambda score: getattr(score, attribute)[modality]

    titles = zip(MODALITIES, ("T1", "T1c", "FLAIR"), strict=True)
    mean = _Metric(name, lambda score: _mean_of(getattr(score, attribute)), better, digits)
    return [mean, *(_Metric(f"{name}, {title}", of(m), better, digits) for m, title in titles)]


METRICS = (
    _Metric("future-tumour Dice", lambda score: score.dice, 1),
    *_image_metrics("SSIM", "ssim", 1, 3),
    *_image_metrics("PSNR (dB)", "psnr", 1, 2),
    *_image_metrics("MAE", "mae", -1, 4),
    _Metric("absolute volume error (ml)", lambda score: score.absolute_error_ml, -1, 2),
    _Metric("signed volume error (ml)", lambda score: score.signed_error_ml, 0, 2),
)
"""An image metric without a modality is its mean over the three."""
GROUP_METRICS = tuple(m for m in METRICS if "," not in m.name and m.better)


@dataclass(frozen=True)
class Comparison:
    """Model and copy by one metric, over the patients for whom it is defined for both."""

    metric: str
    model: Interval | None
    copy: Interval | None
    difference: Interval | None
    """Model minus copy, patient by patient."""
    verdict: str
    """Of the model: "better", "worse", "no difference shown", or "" where neither is better."""


def compare(results: Sequence[PatientResult], metric: _Metric, seed: int = 0) -> Comparison:
    """Paired comparison of model and copy; a difference is shown if its interval leaves out 0."""
    pairs = [(metric.of(result.model), metric.of(result.copy)) for result in results]
    known = [(a, b) for a, b in pairs if _finite(a) and _finite(b)]
    model, copy, difference = (
        bootstrap_interval(values, seed=seed)
        for values in ([a for a, _ in known], [b for _, b in known], [a - b for a, b in known])
    )
    return Comparison(metric.name, model, copy, difference, _verdict(difference, metric.better))


def _verdict(difference: Interval | None, better: int) -> str:
    if not better:
        return ""
    if difference is None or difference.count < MIN_PATIENTS:
        return "no difference shown"
    if difference.low <= 0 <= difference.high:
        return "no difference shown"
    return "better" if difference.mean * better > 0 else "worse"


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _groups(results: Sequence[PatientResult]) -> Iterator[tuple[str, list[PatientResult]]]:
    """All patients, then by horizon, then by treatment; groups without patients left out."""
    groups = {
        "all": list(results),
        f"horizon < {HORIZON_DAYS} days": [r for r in results if r.horizon_days < HORIZON_DAYS],
        f"horizon >= {HORIZON_DAYS} days": [r for r in results if r.horizon_days >= HORIZON_DAYS],
        **{f"under {t}": [r for r in results if r.treatment == t] for t in TREATMENTS},
    }
    return ((name, members) for name, members in groups.items() if members)


def _cell(interval: Interval | None, digits: int, sign: str = "") -> str:
    if interval is None:
        return "undefined"
    mean, low, high = (
        f"{value:{sign}.{digits}f}" for value in (interval.mean, interval.low, interval.high)
    )
    return f"{mean} ({low} to {high})"


def results_table(
    results: Sequence[PatientResult],
    *,
    population: str = POPULATION,
    settings: Mapping[str, object] | None = None,
    seed: int = 0,
) -> str:
    """The results in Markdown, with what they do and do not show.

    Args:
        population: who the patients are.
        settings: what else to say of the run, such as the model, samples and steps.
        seed: of the bootstrap.
    """
    if not results:
        return f"No patient was evaluated ({population}).\n"
    lines = [
        f"Forecasts of the last session of {len(results)} {population}.",
        "",
        *_describe(results, settings or {}),
        "",
        "| metric | model | copy of the last scan | model - copy | the model is |",
        "|---|---|---|---|---|",
    ]
    for metric in METRICS:
        c = compare(results, metric, seed)
        cells = [_cell(c.model, metric.digits), _cell(c.copy, metric.digits)]
        cells.append(_cell(c.difference, metric.digits, "+"))
        left_out = len(results) - (c.difference.count if c.difference else 0)
        name = f"{metric.name} [{left_out} undefined]" if left_out else metric.name
        lines.append(f"| {name} | {' | '.join(cells)} | {c.verdict or '-'} |")
    lines += ["", EXPLANATION, "", *_model_only(results, seed), "", *_split(results, seed)]
    return "\n".join(lines) + "\n"


def _describe(results: Sequence[PatientResult], settings: Mapping[str, object]) -> list[str]:
    horizons = [r.horizon_days for r in results]
    outside = [r.unforecast_ml for r in results]
    lines = [
        f"- Horizon: median {np.median(horizons):g} days, {min(horizons)} to {max(horizons)}.",
        f"- Slices: {sum(len(r.slices) for r in results)} in all, {_range_of_slices(results)} a "
        "patient, with tumour in the target or the last source; volumes are of these slices only.",
        f"- Future tumour outside the slices that a forecast covers, hence not scored: mean "
        f"{np.mean(outside):.2f} ml, at most {max(outside):.2f} ml.",
    ]
    beyond = sum(r.extrapolated for r in results)
    if beyond:
        lines.append(f"- {beyond} targets lie beyond the days or horizons seen in training.")
    if settings:
        lines.append(f"- {', '.join(f'{name} {value}' for name, value in settings.items())}.")
    return lines


def _range_of_slices(results: Sequence[PatientResult]) -> str:
    counts = [len(r.slices) for r in results]
    return f"{min(counts)} to {max(counts)}"


EXPLANATION = f"""\
Means over patients, in brackets 95 % bootstrap intervals over patients. Both methods are scored
on the same slices and, for images, the same brain voxels. The copy is given the true mask of the
last scan; the model sees images only. The copy also carries the noise of its own scan, which the
mean of an ensemble does not: part of a gain in PSNR and MAE is that. "Better" and "worse" mean
that the interval of the paired difference leaves out 0, with at least {MIN_PATIENTS} patients; of
so many comparisons, one in twenty does so by chance."""


def _model_only(results: Sequence[PatientResult], seed: int) -> list[str]:
    """What a copy cannot be asked: change, spread, and other plans."""

    def interval(values: Sequence[float | None]) -> str:
        known = [float(value) for value in values if value is not None]
        cell = _cell(bootstrap_interval(known, seed=seed), 3)
        return f"{cell}, {len(known)} patients"

    lines = [
        f"- Tumour change (new or vanished voxels): Dice "
        f"{interval([r.change_dice for r in results])}; share of changed voxels forecast right "
        f"{interval([r.change_recall for r in results])}. A copy has 0 of both."
    ]
    covered = [r.covered for r in results if r.covered is not None]
    if covered:
        lines.append(
            f"- Spread: the true volume lies in the {VOLUME_LEVEL:.0%} interval of the forecast "
            f"for {sum(covered)} of {len(covered)} patients ({sum(covered) / len(covered):.0%})."
        )
    plans = [plan for r in results for plan in r.counterfactuals]
    if plans:
        decided = [plan.sign_agrees for plan in plans if plan.sign_agrees is not None]
        by_patient = [_average([p.sign_agrees for p in r.counterfactuals]) for r in results]
        dices = [_average([p.dice for p in r.counterfactuals]) for r in results]
        lines.append(
            f"- Other treatment plans: which of two plans leaves more tumour is forecast "
            f"right for {sum(decided)} of {len(decided)} pairs whose true volumes differ by at "
            f"least {MIN_PLAN_DIFFERENCE_ML:g} ml (guessing: half); mean over patients "
            f"{interval(by_patient)}. Dice under the other plan {interval(dices)}."
        )
    return lines


def _average(values: Sequence[float | bool | None]) -> float | None:
    """Mean of the defined values of one patient; plans of one patient are not independent."""
    known = [float(value) for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _split(results: Sequence[PatientResult], seed: int) -> list[str]:
    """Each group as one row: model / copy, and the verdict."""
    names = [metric.name for metric in GROUP_METRICS]
    lines = [
        f"| model / copy | patients | median horizon (days) | {' | '.join(names)} |",
        "|---" * (len(names) + 3) + "|",
    ]
    for name, members in _groups(results):
        cells = [name, str(len(members)), f"{np.median([r.horizon_days for r in members]):g}"]
        for metric in GROUP_METRICS:
            c = compare(members, metric, seed)
            if c.model is None or c.copy is None:
                cells.append("undefined")
                continue
            values = f"{c.model.mean:.{metric.digits}f} / {c.copy.mean:.{metric.digits}f}"
            cells.append(f"{values}: {c.verdict}")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def results_json(
    results: Sequence[PatientResult],
    *,
    population: str = POPULATION,
    settings: Mapping[str, object] | None = None,
    seed: int = 0,
) -> str:
    """The results as JSON: every patient, and the comparisons of every group.

    What is undefined or infinite (the PSNR of equal images) is null.
    """
    content = {
        "population": population,
        "settings": dict(settings or {}),
        "level": 0.95,
        "bootstrap_seed": seed,
        "groups": {
            name: [dataclasses.asdict(compare(members, metric, seed)) for metric in METRICS]
            for name, members in _groups(results)
        },
        "patients": [dataclasses.asdict(result) for result in results],
    }
    return json.dumps(_without_infinities(content), indent=2, allow_nan=False) + "\n"


def _without_infinities(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_infinities(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_infinities(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
