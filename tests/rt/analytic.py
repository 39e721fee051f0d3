"""Data whose ideal denoiser has a closed form, and the levels of training written out once more.

For data x0 ~ N(mean, std²) the ideal denoiser is affine, E[x0 | x] = mean + alpha std² / k²
(x − alpha mean) with k² = alpha² std² + sigma², and so is the probability-flow solution
x_t = alpha mean + k z. A whole sampling run is then an affine map of its noise. `spread` carries
the coefficients of that map through `solve` in place of an image: bias and spread come out as
exact numbers, without drawing anything.
"""

import math

import numpy as np

from tadiff_rt.schedule import NoiseSchedule
from tadiff_rt.solvers import SolverPlan, noised, solve

SCHEDULE = NoiseSchedule.linear()
BETAS = np.linspace(1e-4, 2e-2, 1000)
TABLE = np.cumprod(1 - BETAS)
MEAN = 0.4


def level(t, table=TABLE):
    """alpha and sigma that training used at one-based t; not read from the plan under test."""
    log_a = np.interp(t, np.arange(1, len(table) + 1), np.log(table))
    return math.exp(log_a / 2), math.sqrt(-math.expm1(log_a))


def lam(t):
    """Half the log-SNR of training at one-based t."""
    alpha, sigma = level(t)
    return math.log(alpha / sigma)


def curved(x, t, i):
    """A denoiser that is nonlinear in x and depends on t; logits likewise."""
    return np.tanh(1.5 * x + t / 700), np.sin(x) + t / 300


def one_image(x0, table=TABLE):
    """The exact denoiser of data that are always `x0`; its noise estimate is the true noise."""

    def denoise(x, t, i):
        alpha, sigma = level(t, table)
        return (x - alpha * x0) / sigma, None

    return denoise


def gaussian(mean, std, table=TABLE):
    """The ideal denoiser of N(mean, std²), independent elements."""

    def denoise(x, t, i):
        alpha, sigma = level(t, table)
        gain = alpha * std**2 / (alpha**2 * std**2 + sigma**2)
        x0 = mean + gain * (x - alpha * mean)
        return (x - alpha * x0) / sigma, None

    return denoise


def flow(t, std, z):
    """Where the probability flow of N(MEAN, std²) takes the quantile z at time t."""
    alpha, sigma = level(t)
    return alpha * MEAN + math.hypot(alpha * std, sigma) * z


def flow_x0(t, std, z):
    """The ideal estimate of x0 on that flow; at t = 1 it is what a perfect solver returns."""
    alpha, sigma = level(t)
    return MEAN + alpha * std**2 / math.hypot(alpha * std, sigma) * z


def spread(
    plan: SolverPlan, std: float, informed: bool = False, table=TABLE
) -> tuple[float, float]:
    """(bias, standard deviation over std) of the plan with the ideal denoiser of N(MEAN, std²).

    The start is pure noise, or where `informed` is set the true distribution of its level.
    """
    noise, one, *rest = np.eye(plan.num_steps + 3)
    start = noise
    if informed:
        start = noised(MEAN * one + std * rest.pop(), noise, plan)
    x, _ = solve(gaussian(MEAN * one, std, table), start, plan, lambda i: rest[i])
    return float(x[1] - MEAN), math.hypot(x[0], *x[2:]) / std


def mixture(means, weights, std):
    """The ideal denoiser of Σ_k weights_k N(means_k, std² I), means (k, ...), x (b, ...)."""
    means = np.asarray(means)
    centres = means.reshape(len(means), -1)

    def denoise(x, t, i):
        alpha, sigma = level(t)
        k2 = alpha**2 * std**2 + sigma**2
        flat = x.reshape(len(x), -1)
        distance = ((flat[:, None] - alpha * centres) ** 2).sum(-1)
        log_p = np.log(weights) - distance / (2 * k2)
        p = np.exp(log_p - log_p.max(1, keepdims=True))
        centre = p @ centres / p.sum(1, keepdims=True)
        x0 = centre + alpha * std**2 / k2 * (flat - alpha * centre)
        return (x - alpha * x0.reshape(x.shape)) / sigma, None

    return denoise
