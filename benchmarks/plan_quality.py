"""What a way of sampling is worth, in closed form: columns for the rows that time it."""

from collections.abc import Sequence

import numpy as np

from tadiff_rt.certify import analytic
from tadiff_rt.certify.report import SPREAD_RATIO, analytic_checks
from tadiff_rt.schedule import NoiseSchedule
from tadiff_rt.solvers import SolverPlan

STDS = analytic.STANDARD_DEVIATIONS
"""Of the data: of what a model is nearly sure, and of what it is not."""


def plan_quality(plan: SolverPlan, *, informed: bool = False) -> dict[str, object]:
    """Spread kept and bias left by `plan` with the ideal denoiser of Gaussian data.

    Returns:
        "spread": smallest and largest ratio of sampled and true standard deviation over STDS;
        "bias": the largest error of the mean, in units of the data range; "keeps_spread":
        whether the certificate accepts the ratios. It asks for more: see `plan_verdict`.
    """
    runs = [analytic.gaussian_run(plan, std, informed=informed) for std in STDS]
    return spread_columns([run.spread_ratio for run in runs], [run.bias for run in runs])


def plan_verdict(plan: SolverPlan, schedule: NoiseSchedule) -> dict[str, object]:
    """`plan_quality` from pure noise, and whether the certificate of a plan passes whole.

    Returns:
        The columns, and "certificate": "passes", or the checks that fail.
    """
    failed = [c.what for c in analytic_checks(plan, schedule, informed=False) if not c.passed]
    return {**plan_quality(plan), "certificate": "; ".join(failed) or "passes"}


def spread_columns(ratios: Sequence[float], biases: Sequence[float]) -> dict[str, object]:
    """The columns of `plan_quality` from what was found for each of STDS."""
    low, high = SPREAD_RATIO
    return {
        "spread": [round(float(min(ratios)), 4), round(float(max(ratios)), 4)],
        "bias": round(float(max(abs(bias) for bias in biases)), 5),
        "keeps_spread": bool(low <= min(ratios) and max(ratios) <= high),
    }


def published_quality(steps: int = 600) -> dict[str, object]:
    """Columns of `plan_quality` for the published loop.

    It rebuilds the schedule of training for fewer steps and gives the network its own step number
    as time. The network is the ideal one of the schedule it was trained on, so every step is an
    affine map of x plus noise, and mean and variance are carried in closed form.
    """
    beta = np.linspace(1e-4, 0.02, steps)
    alpha, alpha_bar = 1 - beta, np.cumprod(1 - beta)
    before = np.append(1.0, alpha_bar[:-1])
    trained = NoiseSchedule.linear().alphas_cumprod
    ratios, biases = [], []
    for std in STDS:
        mean, variance = 0.0, 1.0
        for k in range(steps - 1, -1, -1):
            signal = trained[k] ** 0.5
            gain = signal * std**2 / (trained[k] * std**2 + 1 - trained[k])
            # eps(x) = slope x + constant
            slope = (1 - signal * gain) / (1 - trained[k]) ** 0.5
            constant = -slope * signal * analytic.MEAN
            removed = beta[k] / (1 - alpha_bar[k]) ** 0.5
            drawn = beta[k] * (1 - before[k]) / (1 - alpha_bar[k])
            mean = (mean - removed * (slope * mean + constant)) / alpha[k] ** 0.5
            variance = (1 - removed * slope) ** 2 * variance / alpha[k] + drawn
        ratios.append(variance**0.5 / std)
        biases.append(mean - analytic.MEAN)
    return spread_columns(ratios, biases)
