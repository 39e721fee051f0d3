"""An evaluation as JSON: every patient, every comparison, every curve."""

import dataclasses
import json
import math
from typing import Any

import numpy as np

from tadiff_train.evaluation.compare import BASELINES, METRICS, compare, groups
from tadiff_train.evaluation.plans import order_found, treated_is_less
from tadiff_train.evaluation.pooled import METHODS, coverage, pooled
from tadiff_train.evaluation.results import Evaluation

FORMAT = 2
"""Raised when a reader of the file has to change."""


def results_json(evaluation: Evaluation) -> str:
    """The results as JSON, which a table and its figures could be made from again.

    What is undefined or infinite (the PSNR of equal images) is null.
    """
    results, seed = evaluation.results, evaluation.seed
    baselines = tuple(BASELINES) if evaluation.with_growth else ("copy",)
    content = {
        "format": FORMAT,
        "population": evaluation.population,
        "settings": dict(evaluation.settings),
        "left_out": dict(evaluation.left_out),
        "level": 0.95,
        "bootstrap_seed": seed,
        "growth": "run" if evaluation.with_growth else "not run",
        "groups": {
            name: [compare(members, m, b, seed) for m in METRICS for b in baselines]
            for name, members in groups(results)
        },
        "calibration": _calibration(evaluation) if results else None,
        "plans": {method: _plans(evaluation, method) for method in (*METHODS, "rule")},
        "patients": results,
    }
    return json.dumps(plain(content), indent=2, allow_nan=False) + "\n"


def _calibration(evaluation: Evaluation) -> dict[str, Any]:
    found = pooled(evaluation)
    return {
        "tumour": {"ece": found.tumour.ece, "curve": found.tumour, "brier": found.brier},
        "ranks": found.ranks,
        "rank_flatness": found.flatness,
        "coverage": {
            method: [
                {"level": level, **dataclasses.asdict(part)}
                for level, part in coverage(evaluation.results, method).items()
            ]
            for method in METHODS
        },
    }


def _plans(evaluation: Evaluation, method: str) -> dict[str, Any]:
    orders = [order for r in evaluation.results for order in order_found(r, method)]
    return {
        "treated_is_less": treated_is_less(evaluation.results, method),
        "right_side": sum(orders),
        "pairs": len(orders),
    }


def plain(value: object) -> object:
    """Dataclasses, arrays and tuples as JSON has them; what is not finite as None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
