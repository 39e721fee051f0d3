"""What a way of sampling is worth, in closed form: columns for the rows that time it."""

from collections.abc import Sequence

from tadiff_rt.certify import analytic
from tadiff_rt.certify.report import SPREAD_RATIO
from tadiff_rt.solvers import SolverPlan

STDS = (0.05, 0.1, 0.5)
"""Standard deviations of the data: of what a model is nearly sure, and of what it is not."""


def plan_quality(plan: SolverPlan, *, informed: bool = False) -> dict[str, object]:
    """Spread kept and bias left by `plan` with the ideal denoiser of Gaussian data.

    Returns:
        "spread": smallest and largest ratio of sampled and true standard deviation over STDS;
        "bias": the largest error of the mean, in units of the data range; "keeps_spread":
        whether the certificate accepts the ratios.
    """
    runs = [analytic.gaussian_run(plan, std, informed=informed) for std in STDS]
    return spread_columns([run.spread_ratio for run in runs], [run.bias for run in runs])


def spread_columns(ratios: Sequence[float], biases: Sequence[float]) -> dict[str, object]:
    """The columns of `plan_quality` from what was found for each of STDS."""
    low, high = SPREAD_RATIO
    return {
        "spread": [round(min(ratios), 4), round(max(ratios), 4)],
        "bias": round(max(abs(bias) for bias in biases), 5),
        "keeps_spread": low <= min(ratios) and max(ratios) <= high,
    }
