"""Where should a forecast start?  `python -m benchmarks.informed_start BUNDLE COHORT`

For the first patients of a simulated cohort: the error of the forecast image inside the brain, in
the slice with most tumour, starting from pure noise and from the noised last scan.
"""

import dataclasses
import json
import statistics
import sys
from pathlib import Path

import numpy as np

from benchmarks.harness import append
from benchmarks.solver_distance import known_part
from tadiff_rt import Forecaster
from tadiff_train.evaluation import on_network_grid

PATIENTS = 6
STARTS = (None, -3.0, -2.5, -2.0, -1.5, -1.0)
SAMPLES = 4


def rmse(forecaster: Forecaster, subject: Path) -> tuple[float, float]:
    """(root mean square error of the ensemble mean, mean spread) against the last session."""
    known, target, at = known_part(subject)
    forecast = forecaster.predict(
        known,
        day=target.day,
        treatment=target.treatment,
        samples=SAMPLES,
        slices=str(at),
        extrapolate=True,
    )
    contract = forecaster.bundle.manifest.card.data
    truth, _ = on_network_grid(target, forecast.prepared.window, contract)
    brain = (forecast.prepared.sources[at] > 0).any(axis=0)
    error = forecast.ensemble.mean[:, at] - truth[:, at]
    spread = forecast.ensemble.std
    assert spread is not None
    return float(np.sqrt((error[:, brain] ** 2).mean())), float(spread[:, at][:, brain].mean())


def starting_at(forecaster: Forecaster, start_lam: float | None) -> Forecaster:
    """The same network under a card with another start."""
    manifest = forecaster.bundle.manifest
    card = manifest.card.model_copy(update={"start_lam": start_lam})
    bundle = dataclasses.replace(
        forecaster.bundle, manifest=manifest.model_copy(update={"card": card})
    )
    return Forecaster(bundle, forecaster.backend, 0.0)


def main(bundle: str, cohort: str) -> None:
    """Writes rows to results/quality.jsonl."""
    forecaster = Forecaster.load(bundle)
    subjects = sorted(Path(cohort).glob("sub-*"))[:PATIENTS]
    rows = []
    for start in STARTS:
        found = [rmse(starting_at(forecaster, start), subject) for subject in subjects]
        errors, spreads = zip(*found, strict=True)
        rows.append(
            {
                "case": "informed start",
                "contestant": "pure noise" if start is None else f"half log-SNR {start:g}",
                "rmse": round(statistics.mean(errors), 4),
                "spread": round(statistics.mean(spreads), 4),
                "patients": len(subjects),
                "samples": SAMPLES,
                "weights": forecaster.bundle.manifest.weights_sha256[:12],
            }
        )
    append("quality", rows)


if __name__ == "__main__":
    main(*sys.argv[1:])
    print(json.dumps({"done": True}))  # noqa: T201
