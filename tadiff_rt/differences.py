"""What differs between treatments: forecasts with the same noise, subtracted sample by sample."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from tadiff_rt.assembly import VOLUME_LEVEL, Forecast
from tadiff_rt.case import Session
from tadiff_rt.kept import paired_std
from tadiff_rt.scenarios import Difference, PastVolume, Scenario, VolumeDifference
from tadiff_rt.volume import student_quantile

SHARED = ("model", "sources")
"""Entries of a forecast's report that are the same in every scenario."""


def past_volumes(sources: Sequence[Session]) -> tuple[PastVolume, ...]:
    """Tumour of the source sessions where masks are known, each session once."""
    distinct = {session.day: session for session in sources}
    volumes = []
    for session in distinct.values():
        volume_ml = None
        if session.mask is not None:
            voxel_ml = abs(float(np.linalg.det(session.mask.affine[:3, :3]))) / 1000
            volume_ml = int(np.count_nonzero(session.mask.data > 0)) * voxel_ml
        volumes.append(PastVolume(session.day, session.treatment, volume_ml))
    return tuple(volumes)


def compare_forecasts(forecasts: Mapping[Scenario, Forecast]) -> tuple[Difference, ...]:
    """Every scenario minus that of the same day under the treatment asked for last."""
    reference_of = {scenario.day: scenario for scenario in forecasts}  # the last of a day stays
    return tuple(
        subtract(scenario, forecasts[scenario], reference, forecasts[reference])
        for scenario in forecasts
        if (reference := reference_of[scenario.day]) != scenario
    )


def subtract(
    scenario: Scenario, forecast: Forecast, reference: Scenario, other: Forecast
) -> Difference:
    """`forecast` minus `other`, drawn with the same noise, with the probabilities kept.

    Where one has more samples, those without a partner are left out.
    """
    one, two = forecast.ensemble, other.ensemble
    shape = one.probability.shape[1:]
    mean = one.probability - two.probability
    equally_many = len(one.tumour_voxels) == len(two.tumour_voxels)
    std = np.zeros_like(mean)
    for at in forecast.slices:
        of_pairs, spread = paired_std(one.kept[at], two.kept[at], shape)
        if not equally_many:
            mean[at] = of_pairs
        if spread is not None:
            std[at] = spread
    volume = difference_of_volumes(forecast.volume_ml.samples_ml, other.volume_ml.samples_ml)
    mapped = partial(forecast.prepared.to_patient_grid, slices=forecast.slices)
    return Difference(
        scenario,
        reference,
        mapped(mean),
        mapped(std) if len(volume.samples_ml) > 1 else None,
        volume,
    )


def difference_of_volumes(
    volumes_ml: Sequence[float], reference_ml: Sequence[float]
) -> VolumeDifference:
    """The paired difference of two ensembles drawn with the same noise.

    The intervals are those of `volume.volume_interval` and `volume.mean_interval`, of the
    differences and not cut off at 0. Samples without a partner are left out.
    """
    apart = tuple(a - b for a, b in zip(volumes_ml, reference_ml, strict=False))
    n, mean = len(apart), float(np.mean(apart))
    if n < 2:
        return VolumeDifference(mean, None, None, VOLUME_LEVEL, apart)
    reach = student_quantile(VOLUME_LEVEL, n - 1) * float(np.std(apart, ddof=1))
    further, of_mean = reach * math.sqrt(1 + 1 / n), reach / math.sqrt(n)
    interval_of_mean = (mean - of_mean, mean + of_mean)
    return VolumeDifference(
        mean, mean - further, mean + further, VOLUME_LEVEL, apart, interval_of_mean
    )


def comparison_report(
    forecasts: Mapping[Scenario, Forecast],
    differences: Sequence[Difference],
    past: Sequence[PastVolume],
) -> dict[str, Any]:
    """What all scenarios share, then each scenario, then what differs; no identifiers."""
    reports = {scenario: forecast.report for scenario, forecast in forecasts.items()}
    first = next(iter(reports.values()))
    notes = [note for report in reports.values() for note in report["notes"]]
    return {
        **{name: first[name] for name in SHARED},
        "notes": list(dict.fromkeys(notes)),
        "past": [{"day": p.day, "treatment": p.treatment, "volume_ml": p.volume_ml} for p in past],
        "scenarios": {
            scenario.name: {
                name: value for name, value in report.items() if name not in (*SHARED, "notes")
            }
            for scenario, report in reports.items()
        },
        "differences": [_difference_report(difference) for difference in differences],
    }


def _difference_report(difference: Difference) -> dict[str, Any]:
    volume = difference.volume_ml
    return {
        "scenario": difference.scenario.name,
        "reference": difference.reference.name,
        "volume_ml": {
            "mean": volume.mean_ml,
            "interval": [volume.low_ml, volume.high_ml],
            "level": volume.level,
            "samples": list(volume.samples_ml),
            "interval_of_the_mean": volume.mean_interval_ml,
        },
    }
