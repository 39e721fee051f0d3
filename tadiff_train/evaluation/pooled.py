"""Whether spread says how far forecasts are off: over all patients of an evaluation.

Patients are the independent cases. What is pooled over voxels of all patients is so called.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tadiff_train.evaluation.calibration import LEVELS, Calibration, VolumeInterval
from tadiff_train.evaluation.plans import Share, share
from tadiff_train.evaluation.results import Evaluation, PatientResult
from tadiff_train.metrics import (
    BrierScore,
    Reliability,
    SpreadSkill,
    brier_from_reliability,
    merge,
    rank_flatness,
    rank_histogram,
)

METHODS = {"model": "the model", "growth": "fitted growth"}
"""That have a spread, or say something of other plans."""


@dataclass(frozen=True, eq=False)
class Pooled:
    """Calibration over all patients."""

    tumour: Reliability
    """Of the voxels of all patients together."""
    brier: BrierScore
    ranks: np.ndarray | None
    """(k + 1,) patients by the rank of the true volume among k samples; None of one sample."""
    flatness: float | None
    """p value of a flat rank histogram; None for too few patients."""


def pooled(evaluation: Evaluation) -> Pooled:
    """Pools the patients of an evaluation; its seed breaks ties of the ranks."""
    calibrations = [result.calibration for result in evaluation.results]
    tumour = merge([c.tumour for c in calibrations])
    samples = np.array([c.samples_ml for c in calibrations]).T
    ranks = flatness = None
    if len(samples) >= 2:
        true_ml = np.array([result.true_ml for result in evaluation.results])
        ranks = rank_histogram(samples, true_ml, np.random.default_rng(evaluation.seed))
        flatness = rank_flatness(ranks)
    return Pooled(tumour, brier_from_reliability(tumour), ranks, flatness)


def coverage(results: Sequence[PatientResult], method: str) -> dict[float, Share]:
    """For how many patients the true volume lies in the interval of each level."""
    found = {}
    for level in LEVELS:
        inside = [i.covered for r in results for i in intervals(r, method) if i.level == level]
        found[level] = share(sum(inside), len(inside))
    return found


def intervals(result: PatientResult, method: str) -> tuple[VolumeInterval, ...]:
    """Of the volume, by "model" or "growth"."""
    if method == "growth":
        return result.growth.intervals if result.growth else ()
    return result.calibration.intervals


def reachable_level(num_samples: int) -> float:
    """Probability with which the range of k exchangeable samples holds a further draw.

    (k - 1) / (k + 1), whatever the distribution (Hahn and Meeker 1991, chapter 5). Intervals of a
    higher level rest on the assumption that volumes are normal.
    """
    return (num_samples - 1) / (num_samples + 1)


def mean_curve(
    calibrations: Sequence[Calibration], modality: str, of: Callable[[SpreadSkill], np.ndarray]
) -> np.ndarray:
    """Root mean square over patients of a column of the spread-skill curve, bin by bin."""
    rows = [of(c.images[modality].spread_skill) for c in calibrations]
    return np.asarray(np.sqrt(np.mean(np.square(rows), axis=0)))
