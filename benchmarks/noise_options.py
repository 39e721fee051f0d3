"""What coherent and stratified noise do to an ensemble.

    python -m benchmarks.noise_options BUNDLE COHORT

Coherence: single samples on neighbouring slices; how rough they are across slices, how wide the
ensemble is inside a slice, and how wide the tumour volume is. Latin hypercube: the error of the
mean, the spread and the tumour probability of 8 samples against 64 independent ones. Rows go to
results/quality.jsonl.
"""

import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import append
from benchmarks.solver_distance import known_part
from tadiff_rt import Forecaster
from tadiff_rt.assembly import Forecast

PATIENTS = 4
NEIGHBOURS = 5
"""Slices above and below the one of most tumour."""
COHERENCES = (0.0, 0.5, 0.9)
SEEDS = 6
MANY = 64
REPEATS = 6


def forecast(forecaster: Forecaster, subject: Path, slices: range, **options: Any) -> Forecast:
    """A forecast of the subject's last session on some slices."""
    known, target, _ = known_part(subject)
    return forecaster.predict(
        known,
        day=target.day,
        treatment=target.treatment,
        slices=f"{slices.start}:{slices.stop}",
        extrapolate=True,
        **options,
    )


def around(subject: Path, reach: int) -> range:
    """Slices around the one with most tumour."""
    at = known_part(subject)[2]
    return range(at - reach, at + reach + 1)


def coherence_row(forecaster: Forecaster, subjects: list[Path], rho: float) -> dict[str, Any]:
    """Means over subjects for one coherence."""
    found = []
    for subject in subjects:
        slices = around(subject, NEIGHBOURS)
        at = list(slices)
        singles = [
            forecast(forecaster, subject, slices, samples=1, seed=seed, coherence=rho)
            for seed in range(SEEDS)
        ]
        volumes = np.stack([single.ensemble.mean[:, at] for single in singles])
        brain = (singles[0].prepared.sources[at] > 0).any(axis=1)
        both = brain[1:] & brain[:-1]
        last = singles[0].prepared.sources[at, -3:].transpose(1, 0, 2, 3)
        voxels = np.array([single.ensemble.tumour_voxels[0] for single in singles], float)
        found.append(
            (
                _roughness(volumes, both),
                _roughness(volumes.mean(axis=0, keepdims=True), both),
                _roughness(last[None], both),
                float(volumes.std(axis=0, ddof=1)[:, brain].mean()),
                float(voxels.std(ddof=1) / voxels.mean()),
            )
        )
    names = (
        "roughness",
        "roughness_of_mean",
        "roughness_of_last_scan",
        "spread_in_slice",
        "volume_spread",
    )
    means = dict(zip(names, np.mean(found, axis=0).round(5).tolist(), strict=True))
    return {
        "case": "coherent noise",
        "contestant": f"rho {rho:g}",
        **means,
        "patients": len(subjects),
        "slices": 2 * NEIGHBOURS + 1,
        "samples": SEEDS,
    }


def _roughness(volumes: NDArray[np.float32], both: NDArray[np.bool_]) -> float:
    """Mean absolute difference of neighbouring slices where both hold brain."""
    return float(np.abs(np.diff(volumes, axis=2))[:, :, both].mean())


def latin_rows(forecaster: Forecaster, subjects: list[Path]) -> list[dict[str, Any]]:
    """Root mean square errors of ensembles of 8 against one of MANY with other noise."""
    squares: dict[bool, list[list[float]]] = {False: [], True: []}
    for subject in subjects:
        slices = around(subject, 0)
        at = slices.start
        many = forecast(forecaster, subject, slices, samples=MANY, seed=1000)
        brain = (many.prepared.sources[at] > 0).any(axis=0)
        for latin, seed in itertools.product(squares, range(REPEATS)):
            few = forecast(forecaster, subject, slices, samples=8, seed=seed, latin=latin)
            assert few.ensemble.std is not None
            assert many.ensemble.std is not None
            mean = (few.ensemble.mean - many.ensemble.mean)[:, at][:, brain]
            std = (few.ensemble.std - many.ensemble.std)[:, at][:, brain]
            probability = (few.ensemble.probability - many.ensemble.probability)[at][brain]
            volume = few.ensemble.tumour_voxels.mean() / many.ensemble.tumour_voxels.mean() - 1
            errors = (mean, std, probability, volume)
            squares[latin].append([float(np.square(error).mean()) for error in errors])
    names = ("mean_rmse", "std_rmse", "probability_rmse", "volume_rmse")
    return [
        {
            "case": "stratified noise",
            "contestant": "latin" if latin else "independent",
            **dict(zip(names, np.sqrt(np.mean(found, axis=0)).round(5).tolist(), strict=True)),
            "patients": len(subjects),
            "samples": 8,
            "against": MANY,
            "repeats": REPEATS,
        }
        for latin, found in squares.items()
    ]


def main(bundle: str, cohort: str) -> None:
    """Writes rows to results/quality.jsonl."""
    forecaster = Forecaster.load(bundle, threads=1)
    subjects = sorted(Path(cohort).glob("sub-*"))[:PATIENTS]
    weights = {"weights": forecaster.bundle.manifest.weights_sha256[:12]}
    rows = [coherence_row(forecaster, subjects, rho) | weights for rho in COHERENCES]
    rows += [row | weights for row in latin_rows(forecaster, subjects)]
    append("quality", rows)


if __name__ == "__main__":
    main(*sys.argv[1:])
