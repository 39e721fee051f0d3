"""What a plan does to distributions whose exact sampler is known; no network, no image.

For data x0 ~ N(mu, s²) the ideal denoiser is affine, E[x0 | x] = mu + alpha s² / k² (x − alpha mu)
with k² = alpha² s² + sigma². A whole run is then an affine map of its noise, and carrying the
coefficients of that map through `solve` in place of an image gives bias and spread as exact
numbers, for any solver, without drawing anything.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tadiff_rt.noise import normal
from tadiff_rt.schedule import NoiseSchedule
from tadiff_rt.solvers import Array, SolverPlan, make_plan, noised, solve

STANDARD_DEVIATIONS = (0.05, 0.1, 0.2, 0.5)
"""Of the Gaussians, in units of the data range [0, 1]: from what a network is nearly sure of to
tissue that may be there or not."""

MEAN = 0.4

MODES = (0.2, 0.8)
MODE_WEIGHTS = (0.3, 0.7)
MODE_STD = 0.05
CHAINS = 10_000
"""Of the two-mode test: the weight of a mode has a standard error of 0.0046."""


ORDER_STEPS = (129, 257)
"""Whose intervals are halves of each other."""


@dataclass(frozen=True)
class GaussianRun:
    """The exact outcome of a plan on N(MEAN, std²)."""

    bias: float
    """Mean of the samples minus MEAN."""
    spread_ratio: float
    """Their standard deviation over the true one."""


def gaussian_run(plan: SolverPlan, std: float, *, informed: bool = False) -> GaussianRun:
    """Bias and spread of `plan` with the ideal denoiser of N(MEAN, std²).

    Args:
        informed: starts from the noised MEAN as a plan with `start_lam` does; else x_T ~ N(0, 1).
    """
    basis = np.eye(plan.num_steps + 2)  # x_T, the constant 1, then the noise of every row
    one = MEAN * basis[1]

    def denoise(x: Array, t: float, i: int) -> tuple[Array, None]:
        alpha, sigma = plan.alpha[i], plan.sigma[i]
        gain = alpha * std**2 / (alpha**2 * std**2 + sigma**2)
        x0 = one + gain * (x - alpha * one)
        return (x - alpha * x0) / sigma, None

    start = noised(one, basis[0], plan) if informed else basis[0]
    x, _ = solve(denoise, start, plan, lambda i: basis[2 + i])
    return GaussianRun(float(x[1]) - MEAN, math.hypot(x[0], *x[2:]) / std)


def mode_weight(plan: SolverPlan, seed: int = 0, *, informed: bool = False) -> float:
    """Share of CHAINS that end in the upper of two modes; exact: MODE_WEIGHTS[1].

    The data are a mixture of N(MODES[k], MODE_STD²). Informed runs start from its mean, the guess
    that favours neither mode.
    """
    means = np.array(MODES)[:, None]
    weights = np.array(MODE_WEIGHTS)[:, None]

    def denoise(x: Array, t: float, i: int) -> tuple[Array, None]:
        alpha, sigma = plan.alpha[i], plan.sigma[i]
        k2 = alpha**2 * MODE_STD**2 + sigma**2
        log_p = np.log(weights) - (x - alpha * means) ** 2 / (2 * k2)
        p = np.exp(log_p - log_p.max(axis=0))
        each = means + alpha * MODE_STD**2 / k2 * (x - alpha * means)
        x0 = (p * each).sum(axis=0) / p.sum(axis=0)
        return (x - alpha * x0) / sigma, None

    def draw(step: int) -> NDArray[np.float64]:
        return normal(seed, 0, 0, step, (CHAINS,)).astype(np.float64)

    start = draw(0)
    if informed:
        start = noised(np.full(CHAINS, float((means * weights).sum())), start, plan)
    x, _ = solve(denoise, start, plan, lambda i: draw(i + 1))
    return float((x > np.mean(MODES)).mean())


def mask_error(plan: SolverPlan, schedule: NoiseSchedule) -> float:
    """Largest error of the fused probability of a voxel that the network makes up its mind about.

    Its logit runs from −4 to 4 as 4·tanh(λ − c), the exact fused logit is the sum over the ten
    published times; c is tried all along the window.
    """
    t = np.arange(1.0, min(10, schedule.num_train_timesteps) + 1)
    weights = schedule.alpha_bar(t) / schedule.alpha_bar(t).sum()
    window = schedule.lam(t)
    levels = np.log(plan.alpha / plan.sigma)
    centres = np.linspace(window.min(), window.max(), 101)[:, None]
    exact = 4 * np.tanh(window - centres) @ weights
    fused = 4 * np.tanh(levels - centres) @ plan.mask_weight
    probability = 1 / (1 + np.exp(-np.stack([exact, fused])))
    return float(np.abs(probability[0] - probability[1]).max())


def level_error(plan: SolverPlan, schedule: NoiseSchedule) -> float:
    """Largest difference of alpha and sigma from those of training at the network's times."""
    alpha_bar = schedule.alpha_bar(plan.t)
    errors = (plan.alpha - np.sqrt(alpha_bar), plan.sigma - np.sqrt(1 - alpha_bar))
    return float(np.abs(errors).max())


def consistency_error(plan: SolverPlan) -> float:
    """How far any row leads away from its next level, for an image that is known exactly.

    If x = alpha x0 + sigma eps with standard normal eps, and every estimate is that x0, the next x
    must have the mean alpha' x0 and the variance sigma'²: what adds up in a row is given, whatever
    the method. After the last row alpha' = 1 and sigma' = 0.
    """
    following = np.append(plan.alpha[1:], 1.0), np.append(plan.sigma[1:], 0.0)
    of_x0 = plan.coef_x0 + plan.coef_x0_prev + plan.coef_x0_prev2 + plan.coef_x0_prev3
    mean = plan.coef_x * plan.alpha + of_x0 - following[0]
    variance = (plan.coef_x * plan.sigma) ** 2 + plan.coef_noise**2 - following[1] ** 2
    return float(max(np.abs(mean).max(), np.abs(variance).max()))


def observed_order(
    schedule: NoiseSchedule, solver: str, grid: str = "logsnr", std: float = 0.3
) -> float:
    """Slope of log(error) over log(1/steps) on N(MEAN, std²), between 129 and 257 levels.

    The error is that of the spread against its exact limit: what the final step leaves of a
    sample of the marginal at the last level.

    Raises:
        UsageError: the schedule has fewer than 257 timesteps (TD3010).
    """
    errors = []
    for num_steps in ORDER_STEPS:
        plan = make_plan(schedule, solver, num_steps, grid)
        alpha, sigma = plan.alpha[-1], plan.sigma[-1]
        limit = alpha * std / math.hypot(alpha * std, sigma)
        # The start N(0, 1) differs from the marginal at T by this factor, which the flow keeps.
        exact = limit / math.hypot(plan.alpha[0] * std, plan.sigma[0])
        if plan.coef_noise.any():
            exact = limit
        errors.append(abs(gaussian_run(plan, std).spread_ratio - exact))
    return math.log2(errors[0] / errors[1])
