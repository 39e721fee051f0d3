"""The spread of what a few steps return: of Gaussian data, and over the modes of a mixture.

A sampler that loses spread looks well in its mean and under-reports uncertainty. Ratios of the
sampled standard deviation to that of the data are exact numbers (`analytic.spread`); the figures
for other grids come from an independent implementation. The last evaluation is at t = 1, where the
ideal denoiser itself keeps the factor std² / (std² + 0.01²) of the spread of its x: 0.96 at 0.05.
"""

import math

import numpy as np
import pytest
import scipy.special

from tadiff_rt.noise import normal
from tadiff_rt.solvers import make_plan, noised, plan_at, solve
from tests.rt.analytic import BETAS, MEAN, SCHEDULE, TABLE, gaussian, mixture, spread


@pytest.mark.parametrize("std", [0.05, 0.1, 0.2, 0.5])
@pytest.mark.parametrize("num_steps", [10, 20])
@pytest.mark.parametrize("start_lam", [None, -2.0])
@pytest.mark.parametrize("round_times", [False, True])
def test_default_plan_keeps_mean_and_spread(std, num_steps, start_lam, round_times):
    plan = make_plan(SCHEDULE, num_steps=num_steps, start_lam=start_lam, round_times=round_times)
    bias, ratio = spread(plan, std, informed=start_lam is not None)
    assert abs(bias) < 0.005
    assert 0.95 <= ratio <= 1.08


@pytest.mark.parametrize("std", [0.05, 0.1, 0.5])
@pytest.mark.parametrize("solver", ["dpmpp_3m", "dpmpp_3m_parity", "unipc_2", "unipc_3"])
def test_higher_orders_keep_the_spread_in_20_steps(solver, std):
    _, ratio = spread(make_plan(SCHEDULE, solver), std)
    assert 0.95 <= ratio <= 1.08


COLUMNS = [(0.5, 20), (0.1, 10), (0.1, 20), *[(0.05, n) for n in (5, 10, 20, 50)]]
COLUMNS += [(0.02, 10), (0.02, 20)]
"""(std, evaluations) of the columns of `ENDS_CLEAN` and `ENDS_AT_T_1`."""

ENDS_CLEAN = {
    "linspace": (0.95, 0.28, 0.49, 0.07, 0.14, 0.27, 0.53, 0.06, 0.11),
    "trailing": (0.96, 0.28, 0.50, 0.07, 0.15, 0.28, 0.54, 0.06, 0.12),
    "karras": (1.05, 0.96, 1.04, 0.36, 0.85, 0.99, 0.99, 0.67, 0.85),
}
"""Second order, final step to clean data, as here."""

ENDS_AT_T_1 = {
    "uniform": (1.23, 0.70, 1.00, 0.36, 0.52, 0.72, 1.00, 0.63, 0.72),
    "quadratic": (1.02, 1.08, 1.05, 0.72, 1.01, 1.04, 1.03, 0.97, 1.09),
    "logsnr": (1.01, 1.01, 1.02, 0.84, 1.00, 1.03, 1.02, 1.05, 1.11),
}
"""The same, but what is left at t = 1 is the result: one evaluation less, noise of 0.01 more."""

TIMES = {
    "uniform": lambda n: np.linspace(1000, 1, n),
    # Even in the root of a zero-based time; the grid "quadratic" here is one-based.
    "quadratic": lambda n: 1 + np.linspace(math.sqrt(999), 0, n) ** 2,
    "logsnr": lambda n: SCHEDULE.levels(n).t,
}


def cells(table):
    return [
        pytest.param(name, *column, value, id=f"{name}-{column[0]}-{column[1]}")
        for name, row in table.items()
        for column, value in zip(COLUMNS, row, strict=True)
    ]


@pytest.mark.parametrize(("grid", "std", "n", "expected"), cells(ENDS_CLEAN))
def test_spread_of_grids_that_end_clean(grid, std, n, expected):
    """Why "linspace" and "trailing" are no default: 20 steps keep 0.27 of a spread of 0.05."""
    _, ratio = spread(make_plan(SCHEDULE, num_steps=n, grid=grid), std)
    assert ratio == pytest.approx(expected, abs=0.006)


@pytest.mark.parametrize(("times", "std", "n", "expected"), cells(ENDS_AT_T_1))
def test_spread_of_runs_that_end_at_t_1(times, std, n, expected):
    """Our last evaluation turns that x into x0: by the factor std²/(std² + sigma_1²/alpha_1²)."""
    _, ratio = spread(plan_at(SCHEDULE, "dpmpp_2m", TIMES[times](n + 1)), std)
    last_step = std**2 / (std**2 + (1 - TABLE[0]) / TABLE[0])
    assert ratio == pytest.approx(expected * last_step, abs=0.006)


@pytest.mark.parametrize("std", [0.05, 0.1, 0.5])
@pytest.mark.parametrize("grid", ["logsnr", "linspace", "trailing"])
def test_first_order_loses_spread_in_20_steps_on_every_grid(grid, std):
    _, ratio = spread(make_plan(SCHEDULE, "ddim", grid=grid), std)
    assert 0.26 < ratio < 0.92


@pytest.mark.parametrize("std", [0.05, 0.1, 0.2, 0.5])
def test_published_ddpm_spread(std):
    """The variance of the published loop with the ideal denoiser, by its scalar recursion."""
    variance, alpha_bar_prev = 1.0, np.append(1.0, TABLE[:-1])
    for t in range(1000, 0, -1):
        a, beta = TABLE[t - 1], BETAS[t - 1]
        eps_per_x = math.sqrt(1 - a) / (a * std**2 + 1 - a)
        factor = (1 - beta / math.sqrt(1 - a) * eps_per_x) / math.sqrt(1 - beta)
        variance = factor**2 * variance + beta * (1 - alpha_bar_prev[t - 1]) / (1 - a)
    bias, ratio = spread(make_plan(SCHEDULE, "ddpm", 1000, "all"), std)
    assert ratio == pytest.approx(math.sqrt(variance) / std, rel=1e-9)
    assert 0.92 < ratio < 1
    assert abs(bias) < 0.005


@pytest.mark.parametrize(("std", "largest"), [(0.05, 0.005), (0.1, 0.02), (0.2, 0.05)])
def test_informed_start_pulls_little_towards_a_wrong_guess(std, largest):
    """A guess off by 0.4, in a Gaussian posterior of spread `std`, from half log-SNR -2.

    The run is affine: coefficients of noise, of the constant 1 and of the error of the guess.
    """
    plan = make_plan(SCHEDULE, num_steps=20, start_lam=-2.0)
    noise, one, error = np.eye(3)
    x, _ = solve(gaussian(MEAN * one, std), noised(MEAN * one + error, noise, plan), plan)
    assert abs(0.4 * x[2]) < largest
    assert abs(x[1] - MEAN) < 0.005
    assert 0.95 < abs(x[0]) / std < 1.08


WEIGHT = 0.7
STD = 0.05
CHAINS = 40_000
IMAGES = np.stack([0.2 + 0.6 * np.tri(4), 0.8 - 0.6 * np.tri(4)])
"""Two images of 4 x 4 pixels, as far from each other as 48 standard deviations."""


def modes(solver, means, num_steps=20):
    """(share of chains in the second mode, spread ratio in each) from our own noise, seed 11."""
    shape = (CHAINS, *means.shape[1:])
    x, _ = solve(
        mixture(means, np.array([1 - WEIGHT, WEIGHT]), STD),
        normal(11, 0, 0, 0, shape).astype(np.float64),
        make_plan(SCHEDULE, solver, num_steps),
        lambda i: normal(11, 0, 0, i + 1, shape).astype(np.float64),
    )
    axes = tuple(range(1, x.ndim))
    second = ((x - means.mean(0)) * (means[1] - means[0])).sum(axes) > 0
    errors = [x[~second] - means[0], x[second] - means[1]]
    ratios = [math.sqrt((error**2).mean()) / STD for error in errors]
    return second.mean(), ratios


PIXEL = np.array([[0.2], [0.8]])
KEEPS_SPREAD = ["dpmpp_2m", "dpmpp_3m", "dpmpp_3m_parity", "unipc_2", "unipc_3", "sde_dpmpp_2m"]


@pytest.mark.parametrize("solver", [*KEEPS_SPREAD, "dpmpp_1", "dpmpp_2s", "ddim"])
@pytest.mark.parametrize("means", [PIXEL, IMAGES], ids=["one pixel", "4 x 4 pixels"])
def test_20_steps_keep_the_weights_of_two_modes(solver, means):
    """0.7 within 0.02 from 40,000 independent chains: the standard error is 0.0023.

    The bias of the solvers, from 10⁶ chains, is at most 0.003 for those of second and higher
    order, 0.005 for "dpmpp_2s", 0.010 for "sde_dpmpp_2m" and 0.012 for first order. Another seed
    would fail with a probability below 1e-9, 1e-9, 2e-5 and 1e-3. The spread within the smaller
    mode of one pixel has a standard error of 0.007; chains that end between modes raise it to
    1.07.
    """
    share, ratios = modes(solver, means)
    assert share == pytest.approx(WEIGHT, abs=0.02)
    if solver in KEEPS_SPREAD:
        assert 0.95 <= min(ratios) <= max(ratios) <= 1.10


def test_ddpm_needs_more_than_20_steps_for_the_weights():
    """Strided ancestral sampling is of first order: 20 steps move 3 % into the larger mode."""
    few, _ = modes("ddpm", PIXEL)
    assert few - WEIGHT == pytest.approx(0.033, abs=0.01)
    many, _ = modes("ddpm", PIXEL, num_steps=100)
    assert many == pytest.approx(WEIGHT, abs=0.02)


def test_bimodal_data_keep_the_weights_of_their_modes():
    """In one dimension the exact flow is monotone: a mode's weight is a fraction of quantiles."""
    x_T = scipy.special.ndtri((np.arange(2000) + 0.5) / 2000)[:, None]
    denoise = mixture(PIXEL, np.array([1 - WEIGHT, WEIGHT]), STD)
    image, _ = solve(denoise, x_T, make_plan(SCHEDULE))
    assert (image > 0.5).mean() == pytest.approx(WEIGHT, abs=0.01)
