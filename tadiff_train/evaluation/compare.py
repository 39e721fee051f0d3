"""The model beside each baseline, by every metric: paired over patients."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tadiff_rt.case import MODALITIES, TREATMENTS
from tadiff_train.evaluation.results import PatientResult
from tadiff_train.evaluation.scores import Score
from tadiff_train.metrics import Interval, bootstrap_interval

HORIZON_DAYS = (60, 120)
"""Where results are split into near, middle and far forecasts."""
MIN_PATIENTS = 6
"""Below, no difference is called one: with 5 patients, all lie on one side by chance in 1 of 16
cohorts (two-sided sign test)."""
BASELINES = {"copy": "copy of the last scan", "growth": "fitted growth"}
NO_DIFFERENCE = "no difference shown"
TITLES = {"t1": "T1", "t1c": "T1c", "flair": "FLAIR"}


@dataclass(frozen=True)
class Metric:
    """A number of a `Score`."""

    name: str
    of: Callable[[Score], float | None]
    better: int
    """1 if more is better, -1 if less is, 0 if neither."""
    digits: int = 3


def _image_metrics(name: str, attribute: str, better: int, digits: int) -> list[Metric]:
    def values(score: Score) -> dict[str, float] | None:
        return None if score.images is None else getattr(score.images, attribute)

    def of(modality: str) -> Callable[[Score], float | None]:
        return lambda score: (values(score) or {}).get(modality)

    def mean(score: Score) -> float | None:
        known = values(score)
        return None if known is None else sum(known.values()) / len(known)

    single = [Metric(f"{name}, {TITLES[m]}", of(m), better, digits) for m in MODALITIES]
    return [Metric(name, mean, better, digits), *single]


METRICS = (
    Metric("future-tumour Dice", lambda score: score.dice, 1),
    Metric("HD95 (mm)", lambda score: score.hd95_mm, -1, 2),
    Metric("Dice of tumour change", lambda score: score.change_dice, 1),
    Metric("changed voxels right", lambda score: score.change_recall, 1),
    Metric("absolute volume error (ml)", lambda score: score.absolute_error_ml, -1, 2),
    Metric("signed volume error (ml)", lambda score: score.signed_error_ml, 0, 2),
    Metric("CRPS of volume (ml)", lambda score: score.crps_ml, -1, 2),
    Metric("Brier score of tumour", lambda score: score.brier, -1, 4),
    Metric("ECE of tumour", lambda score: score.ece, -1, 4),
    *_image_metrics("SSIM", "ssim", 1, 3),
    *_image_metrics("PSNR (dB)", "psnr", 1, 2),
    *_image_metrics("MAE", "mae", -1, 4),
)
"""An image metric without a modality is its mean over the three."""
IN_GROUPS = (
    "future-tumour Dice",
    "HD95 (mm)",
    "absolute volume error (ml)",
    "CRPS of volume (ml)",
    "SSIM",
    "PSNR (dB)",
    "MAE",
)
GROUP_METRICS = tuple(metric for metric in METRICS if metric.name in IN_GROUPS)


@dataclass(frozen=True)
class Comparison:
    """Model and baseline by one metric, over the patients for whom it is defined for both."""

    metric: str
    baseline: str
    """A key of BASELINES."""
    model: Interval | None
    other: Interval | None
    difference: Interval | None
    """Model minus baseline, patient by patient."""
    verdict: str
    """Of the model: "better", "worse", "no difference shown", or "" where neither is better."""
    left_out: int
    """Patients for whom it is undefined for either."""


def compare(
    results: Sequence[PatientResult], metric: Metric, baseline: str = "copy", seed: int = 0
) -> Comparison:
    """Paired comparison with a baseline; a difference is shown if its interval leaves out 0."""
    pairs = []
    for result in results:
        a, b = (_value(result, metric, method) for method in ("model", baseline))
        if a is not None and b is not None:
            pairs.append((a, b))
    model, other, difference = (
        bootstrap_interval(values, seed=seed)
        for values in ([a for a, _ in pairs], [b for _, b in pairs], [a - b for a, b in pairs])
    )
    verdict = _verdict(difference, metric.better)
    left_out = len(results) - len(pairs)
    return Comparison(metric.name, baseline, model, other, difference, verdict, left_out)


def _value(result: PatientResult, metric: Metric, method: str) -> float | None:
    """None where undefined or infinite, as the PSNR of equal images is."""
    score = result.score_of(method)
    value = None if score is None else metric.of(score)
    return value if value is not None and math.isfinite(value) else None


def _verdict(difference: Interval | None, better: int) -> str:
    if not better:
        return ""
    if difference is None or difference.count < MIN_PATIENTS:
        return NO_DIFFERENCE
    if difference.low <= 0 <= difference.high:
        return NO_DIFFERENCE
    return "better" if difference.mean * better > 0 else "worse"


def groups(results: Sequence[PatientResult]) -> Iterator[tuple[str, list[PatientResult]]]:
    """All patients, then by horizon, then by treatment; groups without patients left out."""
    near, far = HORIZON_DAYS
    found = {
        "all": list(results),
        f"horizon < {near} days": [r for r in results if r.horizon_days < near],
        f"horizon {near} to {far - 1} days": [r for r in results if near <= r.horizon_days < far],
        f"horizon >= {far} days": [r for r in results if r.horizon_days >= far],
        **{f"under {t}": [r for r in results if r.treatment == t] for t in TREATMENTS},
    }
    return ((name, members) for name, members in found.items() if members)
