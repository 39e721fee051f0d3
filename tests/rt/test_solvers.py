"""Solver tables, checked against written-out published loops and the exact flow of a Gaussian.

For data x0 ~ N(mu, s²) the ideal denoiser is affine, E[x0 | x] = mu + alpha s² / k² (x − alpha mu)
with k² = alpha² s² + sigma², and so is the probability-flow solution x_t = alpha mu + k z. A whole
sampling run is then an affine map of its noise. `run_gaussian` carries the coefficients of that
map through `solve` in place of an image: bias and spread come out as exact numbers, without
drawing anything.
"""

import itertools
import math

import numpy as np
import pytest
import scipy.special
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tadiff_rt.errors import NumericsError, UsageError
from tadiff_rt.schedule import NoiseSchedule
from tadiff_rt.solvers import COLUMNS, SOLVERS, SolverPlan, make_plan, noised, solve

SCHEDULE = NoiseSchedule.linear()
BETAS = np.linspace(1e-4, 2e-2, 1000)
TABLE = np.cumprod(1 - BETAS)
MEAN = 0.4


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20250701)


def level(t: float) -> tuple[float, float]:
    """alpha and sigma that training used at one-based t; not read from the plan under test."""
    log_a = np.interp(t, np.arange(1, 1001), np.log(TABLE))
    return math.exp(log_a / 2), math.sqrt(-math.expm1(log_a))


def curved(x, t, i):
    """A denoiser that is nonlinear in x and depends on t; logits likewise."""
    return np.tanh(1.5 * x + t / 700), np.sin(x) + t / 300


def run_gaussian(plan: SolverPlan, std: float) -> tuple[float, float]:
    """(bias, spread ratio) of the plan with the ideal denoiser of N(MEAN, std²)."""
    basis = np.eye(plan.num_steps + 2)  # x_T, the constant 1, then the noise of every step

    def denoise(x, t, i):
        alpha, sigma = level(t)
        gain = alpha * std**2 / (alpha**2 * std**2 + sigma**2)
        x0 = MEAN * basis[1] + gain * (x - alpha * MEAN * basis[1])
        return (x - alpha * x0) / sigma, None

    x, _ = solve(denoise, basis[0], plan, lambda i: basis[2 + i])
    return x[1] - MEAN, math.hypot(x[0], *x[2:]) / std


ALL_RUNS = [
    (solver, n, grid)
    for solver in SOLVERS
    for grid in ("logsnr", "trailing")
    for n in (1, 2, 3, 5, 10, 20, 50)
] + [("ddpm", 1000, "all")]


@pytest.mark.parametrize(("solver", "num_steps", "grid"), ALL_RUNS)
def test_exact_noise_estimate_returns_the_image_and_the_logit(solver, num_steps, grid, rng):
    x0 = rng.random((2, 3))

    def oracle(x, t, i):
        alpha, sigma = level(t)
        return (x - alpha * x0) / sigma, np.full((2, 2), 3.0)

    plan = make_plan(SCHEDULE, solver, num_steps, grid)
    image, logits = solve(oracle, rng.standard_normal((2, 3)), plan, lambda i: rng.random((2, 3)))
    np.testing.assert_allclose(image, x0, atol=1e-6)
    np.testing.assert_allclose(logits, 3.0, atol=1e-12)


@pytest.mark.parametrize("std", [0.05, 0.1, 0.2, 0.5])
def test_default_plan_keeps_mean_and_spread_of_a_gaussian(std):
    bias, ratio = run_gaussian(make_plan(SCHEDULE), std)
    assert abs(bias) < 0.005
    assert 0.95 <= ratio <= 1.08


@pytest.mark.parametrize(("std", "expected"), [(0.05, 0.28), (0.1, 0.50), (0.5, 0.96)])
def test_trailing_grid_loses_narrow_spread(std, expected):
    """Why it is no default. The figures come from an independent implementation."""
    _, ratio = run_gaussian(make_plan(SCHEDULE, num_steps=20, grid="trailing"), std)
    assert ratio == pytest.approx(expected, abs=0.006)


@pytest.mark.parametrize("std", [0.05, 0.1, 0.2, 0.5])
def test_published_ddpm_spread(std):
    """The variance of the published loop with the ideal denoiser, by its scalar recursion."""
    variance, alpha_bar_prev = 1.0, np.append(1.0, TABLE[:-1])
    for t in range(1000, 0, -1):
        a, beta = TABLE[t - 1], BETAS[t - 1]
        eps_per_x = math.sqrt(1 - a) / (a * std**2 + 1 - a)
        factor = (1 - beta / math.sqrt(1 - a) * eps_per_x) / math.sqrt(1 - beta)
        variance = factor**2 * variance + beta * (1 - alpha_bar_prev[t - 1]) / (1 - a)
    bias, ratio = run_gaussian(make_plan(SCHEDULE, "ddpm", 1000, "all"), std)
    assert ratio == pytest.approx(math.sqrt(variance) / std, rel=1e-9)
    assert 0.92 < ratio < 1
    assert abs(bias) < 0.005


@pytest.mark.parametrize(("solver", "order"), [("ddim", 1), ("dpmpp_2m", 2)])
def test_converges_to_the_exact_flow_at_its_order(solver, order):
    """The limit of the run is the ideal denoiser applied to the exact flow at t = 1."""
    std, z = 0.3, np.linspace(-2, 2, 9)

    def denoise(x, t, i):
        alpha, sigma = level(t)
        gain = alpha * std**2 / (alpha**2 * std**2 + sigma**2)
        x0 = MEAN + gain * (x - alpha * MEAN)
        return (x - alpha * x0) / sigma, None

    (a_T, s_T), (a_1, s_1) = level(1000), level(1)
    start = a_T * MEAN + math.hypot(a_T * std, s_T) * z
    exact = MEAN + a_1 * std**2 / math.hypot(a_1 * std, s_1) * z
    errors = []
    for num_steps in (65, 129, 257, 513):  # the interval T … 1 is cut into num_steps - 1
        image, _ = solve(denoise, start, make_plan(SCHEDULE, solver, num_steps))
        errors.append(np.abs(image - exact).max())
    slopes = [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]
    assert slopes[-1] == pytest.approx(order, abs=0.1), f"errors {errors}, slopes {slopes}"


def test_bimodal_data_keep_the_weights_of_their_modes():
    """In one dimension the exact flow is monotone: a mode's weight is a fraction of quantiles."""
    means, weights, std = np.array([[0.2], [0.8]]), np.array([[0.3], [0.7]]), 0.05

    def denoise(x, t, i):
        alpha, sigma = level(t)
        k2 = alpha**2 * std**2 + sigma**2
        log_p = np.log(weights) - (x - alpha * means) ** 2 / (2 * k2)
        p = np.exp(log_p - log_p.max(0))
        x0 = (p * (means + alpha * std**2 / k2 * (x - alpha * means))).sum(0) / p.sum(0)
        return (x - alpha * x0) / sigma, None

    x_T = scipy.special.ndtri((np.arange(2000) + 0.5) / 2000)
    image, _ = solve(denoise, x_T, make_plan(SCHEDULE))
    assert (image > 0.5).mean() == pytest.approx(0.7, abs=0.01)


def test_ddpm_on_the_full_grid_is_the_published_loop(rng):
    """Ho et al. 2020, Algorithm 2 with TaDiff's variance and mask fusion, zero-based arrays."""
    start, noise = rng.standard_normal(6), rng.standard_normal((1000, 6))
    x, window = start, TABLE[:10] / TABLE[:10].sum()
    fused = np.zeros(6)
    for t in range(1000, 0, -1):
        eps, logits = curved(x, float(t), None)
        variance = BETAS[t - 1] * (1 - TABLE[t - 2]) / (1 - TABLE[t - 1]) if t > 1 else 0.0
        x = (x - BETAS[t - 1] / np.sqrt(1 - TABLE[t - 1]) * eps) / np.sqrt(1 - BETAS[t - 1])
        x = x + math.sqrt(variance) * noise[1000 - t]
        if t <= 10:
            fused = fused + window[t - 1] * logits
    plan = make_plan(SCHEDULE, "ddpm", 1000, "all")
    image, mask = solve(curved, start, plan, lambda i: noise[i])
    np.testing.assert_allclose(image, x, rtol=1e-9)
    np.testing.assert_allclose(mask, fused, rtol=1e-9)


@pytest.mark.parametrize("grid", ["logsnr", "trailing"])
def test_ddpm_draws_from_the_posterior_between_distant_levels(grid, rng):
    """Bayes written out: prior q(x'|x0) times likelihood q(x|x') as two Gaussians in x'."""
    x, x0 = 0.7, -0.3
    plan = make_plan(SCHEDULE, "ddpm", 5, grid)
    for i in range(4):
        (a, s), (a_next, s_next) = level(plan.t[i]), level(plan.t[i + 1])
        step = a / a_next
        noise_var = s**2 - step**2 * s_next**2
        precision = 1 / s_next**2 + step**2 / noise_var
        mean = (a_next * x0 / s_next**2 + step * x / noise_var) / precision
        assert plan.coef_x[i] * x + plan.coef_x0[i] * x0 == pytest.approx(mean, rel=1e-8)
        assert plan.coef_noise[i] == pytest.approx(precision**-0.5, rel=1e-8)


@pytest.mark.parametrize("grid", ["logsnr", "trailing"])
@pytest.mark.parametrize("num_steps", [1, 2, 9])
def test_ddim_is_the_published_step(grid, num_steps, rng):
    """Song et al. 2021, Eq. (12), sigma = 0: the noise estimate is carried on, none is drawn."""
    x = start = rng.standard_normal(5)
    times = SCHEDULE.levels(num_steps, grid).t
    for t, t_next in itertools.zip_longest(times, times[1:]):
        (a, s), (a_next, s_next) = level(t), level(t_next) if t_next else (1.0, 0.0)
        eps, _ = curved(x, t, None)
        x = a_next * (x - s * eps) / a + s_next * eps
    image, _ = solve(curved, start, make_plan(SCHEDULE, "ddim", num_steps, grid))
    np.testing.assert_allclose(image, x, rtol=1e-8)


@pytest.mark.parametrize("grid", ["logsnr", "trailing"])  # trailing: h changes from step to step
def test_dpmpp_2m_is_the_published_algorithm(grid, rng):
    """Lu et al. 2022b, Algorithm 2, first step and step to clean data of first order."""
    x = start = rng.standard_normal(5)
    times = SCHEDULE.levels(8, grid).t
    lam = [math.log(level(t)[0] / level(t)[1]) for t in times]
    estimates = []
    for i, t in enumerate(times):
        a, s = level(t)
        estimates.append((x - s * curved(x, t, None)[0]) / a)
        if i == 7:
            x = estimates[-1]
            break
        h, (a_next, s_next) = lam[i + 1] - lam[i], level(times[i + 1])
        if i == 0:
            d = estimates[0]
        else:
            r = (lam[i] - lam[i - 1]) / h
            d = (1 + 1 / (2 * r)) * estimates[i] - 1 / (2 * r) * estimates[i - 1]
        x = s_next / s * x - a_next * (math.exp(-h) - 1) * d
    image, _ = solve(curved, start, make_plan(SCHEDULE, "dpmpp_2m", 8, grid))
    np.testing.assert_allclose(image, x, rtol=1e-8)


@pytest.mark.parametrize("grid", ["logsnr", "trailing"])
def test_dpmpp_2m_without_its_history_is_ddim(grid):
    """The exponential integrator of first order and DDIM are one formula."""
    second, first = (
        make_plan(SCHEDULE, "dpmpp_2m", 12, grid),
        make_plan(SCHEDULE, "ddim", 12, grid),
    )
    np.testing.assert_allclose(second.coef_x, first.coef_x, rtol=1e-12)
    np.testing.assert_allclose(second.coef_x0 + second.coef_x0_prev, first.coef_x0, rtol=1e-9)
    assert second.coef_x0_prev[[0, -1]].tolist() == [0, 0]
    assert (second.coef_x0_prev[1:-1] < 0).all()


@settings(max_examples=40)
@given(
    st.sampled_from(SOLVERS),
    st.sampled_from([1, 2, 7, 60, 1000]),
    st.data(),
    st.sampled_from(["logsnr", "trailing"]),
)
def test_every_plan_is_finite_ends_clean_and_averages_the_mask(solver, T, data, grid):
    num_steps = data.draw(st.integers(1, min(T, 60)))
    plan = make_plan(NoiseSchedule.linear(T), solver, num_steps, grid)
    assert plan.table.shape == (num_steps, len(COLUMNS))
    assert np.isfinite(plan.table).all()
    assert (plan.coef_x[-1], plan.coef_x0[-1], plan.coef_x0_prev[-1]) == (0, 1, 0)
    assert plan.coef_noise[-1] == 0
    assert plan.mask_weight.min() >= 0
    assert plan.mask_weight.sum() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("T", [1, 4, 10, 1000])  # shorter than the window, equal, longer
def test_full_grid_has_the_published_mask_weights(T):
    schedule = NoiseSchedule.linear(T)
    table = np.cumprod(1 - np.linspace(1e-4, 2e-2, T))[:10]
    published = np.append((table / table.sum())[::-1], np.zeros(max(0, T - 10)))
    weights = make_plan(schedule, "ddim", T, "all").mask_weight
    np.testing.assert_allclose(weights[::-1][:10], published[:10][::-1], rtol=1e-12)
    assert (weights[:-10] == 0).all()


@pytest.mark.parametrize("num_steps", [1, 10, 20, 50])
def test_run_that_visits_no_time_of_the_window_uses_its_cleanest_logits(num_steps):
    """The published few-step run has an empty window here: probability 0.5 everywhere."""
    weights = make_plan(SCHEDULE, num_steps=num_steps, grid="trailing").mask_weight
    assert weights[:-1].tolist() == [0.0] * (num_steps - 1)
    assert weights[-1] == pytest.approx(1, abs=1e-12)


def test_mask_weights_by_hand():
    """Times 3, 1 of T = 3: t = 2 lies between and splits its weight by its place in λ."""
    alpha_bar = np.array([0.9, 0.72, 0.36])
    lam = 0.5 * np.log(alpha_bar / (1 - alpha_bar))
    to_noisy = (lam[0] - lam[1]) / (lam[0] - lam[2])
    noisy = (0.36 + 0.72 * to_noisy) / 1.98
    plan = make_plan(NoiseSchedule(alpha_bar), "ddim", 2, "logsnr")
    np.testing.assert_allclose(plan.mask_weight, [noisy, 1 - noisy], rtol=1e-12)


def test_mask_converges_to_the_published_one():
    """Second order in the spacing, for logits that vary smoothly with λ."""
    times = np.arange(1, 11)
    published = TABLE[:10] / TABLE[:10].sum()

    def logits(t):
        alpha, sigma = level(t)
        return math.sin(1.3 * math.log(alpha / sigma))

    exact = sum(w * logits(t) for w, t in zip(published, times, strict=True))
    errors = []
    for num_steps in (11, 41, 161):
        _, fused = solve(
            lambda x, t, i: (x, logits(t)), np.zeros(1), make_plan(SCHEDULE, num_steps=num_steps)
        )
        errors.append(abs(fused - exact))
    assert errors[1] < errors[0] / 8
    assert errors[2] < errors[1] / 8


def test_plan_refuses_mask_weights_that_are_no_average():
    plan = make_plan(SCHEDULE, num_steps=2)
    columns = {name: getattr(plan, name) for name in COLUMNS} | {"mask_weight": np.zeros(2)}
    with pytest.raises(NumericsError, match="TD6004: mask weights must be >= 0 and sum to 1"):
        SolverPlan(**columns, solver="ddim", grid="logsnr")


def test_plan_is_read_only():
    with pytest.raises(ValueError, match="read-only"):
        make_plan(SCHEDULE).coef_x[0] = 1.0


def test_table_columns_are_in_the_named_order():
    plan = make_plan(SCHEDULE, "ddpm", 6)
    assert COLUMNS[:3] == ("t", "alpha", "sigma")
    for k, name in enumerate(COLUMNS):
        np.testing.assert_array_equal(plan.table[:, k], getattr(plan, name))


def test_defaults_are_2m_in_20_evaluations_even_in_log_snr():
    plan = make_plan(SCHEDULE)
    assert (plan.solver, plan.nfe, plan.num_steps, plan.grid) == ("dpmpp_2m", 20, 20, "logsnr")


def test_rejects_an_unknown_solver():
    with pytest.raises(
        UsageError, match="TD3042: solver must be one of dpmpp_2m, ddim, ddpm, got"
    ):
        make_plan(SCHEDULE, "euler")


@pytest.mark.parametrize(
    ("num_steps", "grid", "code"), [(0, "logsnr", "TD3010"), (9, "x", "TD3041")]
)
def test_rejects_impossible_levels(num_steps, grid, code):
    with pytest.raises(UsageError) as error:
        make_plan(SCHEDULE, num_steps=num_steps, grid=grid)
    assert error.value.code == code


def test_ddpm_needs_noise():
    with pytest.raises(UsageError, match="TD3043: solver 'ddpm' draws noise"):
        solve(curved, np.zeros(2), make_plan(SCHEDULE, "ddpm", 4))


def test_noise_is_drawn_for_every_step_but_the_last(rng):
    drawn = []
    noise = lambda i: drawn.append(i) or rng.standard_normal(2)  # noqa: E731
    solve(curved, np.zeros(2), make_plan(SCHEDULE, "ddpm", 4), noise)
    assert drawn == [
        0,
        1,
        2,
    ]


@pytest.mark.parametrize("solver", SOLVERS)
def test_network_is_called_once_a_step_with_one_based_times(solver):
    calls, steps = [], []

    def denoise(x, t, i):
        assert type(t) is float
        calls.append((t, i))
        return x, None

    plan = make_plan(SCHEDULE, solver, 4, "trailing")
    _, mask = solve(denoise, np.ones(1), plan, lambda i: np.ones(1), steps.append)
    assert calls == [(1000.0, 0), (750.0, 1), (500.0, 2), (250.0, 3)]
    assert steps == [0, 1, 2, 3]
    assert mask is None


def test_logits_without_weight_are_not_touched():
    plan = make_plan(SCHEDULE)

    def denoise(x, t, i):
        return x, np.float64(3.0) if plan.mask_weight[i] else object()

    assert solve(denoise, np.ones(1), plan)[1] == pytest.approx(3.0)


def test_logits_missing_at_a_weighted_step_are_an_error():
    plan = make_plan(SCHEDULE)
    with pytest.raises(NumericsError, match="TD6004: mask logits came for a weight of"):
        solve(lambda x, t, i: (x, x if i == 19 else None), np.ones(1), plan)


@pytest.mark.parametrize("solver", SOLVERS)
def test_float32_stays_float32_and_the_input_is_not_modified(solver, rng):
    x_T = rng.standard_normal((2, 3)).astype(np.float32)
    before = x_T.copy()
    plan = make_plan(SCHEDULE, solver, 6)
    image, mask = solve(lambda x, t, i: (0.5 * x, x), x_T, plan, lambda i: np.ones_like(x_T))
    assert image.dtype == mask.dtype == np.float32
    np.testing.assert_array_equal(x_T, before)
    assert not np.shares_memory(image, x_T)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("solver", SOLVERS)
def test_torch_gives_what_numpy_gives(solver, dtype, rng):
    x_T, z = rng.standard_normal((2, 3, 4)), rng.standard_normal((9, 3, 4))
    plan = make_plan(SCHEDULE, solver, 9)

    def curved_torch(x, t, i):
        return torch.tanh(1.5 * x + t / 700), torch.sin(x) + t / 300

    expected = solve(curved, x_T[0], plan, lambda i: z[i])
    start = torch.tensor(x_T[0], dtype=dtype)
    got = solve(curved_torch, start, plan, lambda i: torch.tensor(z[i], dtype=dtype))
    tolerance = 1e-4 if dtype is torch.float32 else 1e-12
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == dtype
        np.testing.assert_allclose(a.numpy(), b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("solver", SOLVERS)
def test_no_step_reads_a_value_from_the_device(solver):
    """A meta tensor has no values: any transfer to the host raises."""
    x_T = torch.empty(2, 3, device="meta")
    plan = make_plan(SCHEDULE, solver, 6)
    image, mask = solve(lambda x, t, i: (x, x), x_T, plan, lambda i: torch.empty_like(x_T))
    assert image.is_meta
    assert mask.is_meta


@pytest.mark.parametrize("solver", SOLVERS)
def test_network_may_return_the_same_buffers_at_every_step(solver, rng):
    """As a captured CUDA graph does; whatever the loop kept of them would be overwritten."""
    x_T, z = rng.standard_normal(4), rng.standard_normal((9, 4))
    plan = make_plan(SCHEDULE, solver, 9)
    buffers = np.empty(4), np.empty(4)

    def denoise(x, t, i):
        for buffer, value in zip(buffers, curved(x, t, i), strict=True):
            buffer[:] = value
        return buffers

    expected = solve(curved, x_T, plan, lambda i: z[i])
    got = solve(denoise, x_T, plan, lambda i: z[i])
    np.testing.assert_array_equal(got, expected)


def two_images(x, t, i):
    """The exact denoiser of data that are one of two images of values in [0, 1], evenly likely."""
    images = np.array([[0.0, 0.2, 1.0, 0.5], [1.0, 0.9, 0.0, 0.5]])
    alpha, sigma = level(t)
    distance = ((x[None] - alpha * images) ** 2).sum(-1) / (2 * sigma**2)
    x0 = scipy.special.softmax(-distance) @ images
    return (x - alpha * x0) / sigma, None


def test_clipping_does_not_change_an_exact_denoiser(rng):
    """Its x0 is a mean of images of the range, up to rounding at the edges of the range."""
    x_T = rng.standard_normal(4)
    free, _ = solve(two_images, x_T, make_plan(SCHEDULE))
    clipped, _ = solve(two_images, x_T, make_plan(SCHEDULE), x0_range=(0.0, 1.0))
    np.testing.assert_allclose(clipped, free, rtol=0, atol=1e-9)


def test_clipping_bounds_what_a_wrong_denoiser_makes_of_high_noise(rng):
    """An offset of 0.05 in eps is one of 8 in x0 at t = 1000."""

    def off(x, t, i):
        eps, _ = two_images(x, t, i)
        return eps + 0.05 * (t > 900), None

    x_T = rng.standard_normal(4)
    seen = {}
    for name, x0_range in (("free", None), ("clipped", (0.0, 1.0))):
        estimates = []

        def watched(x, t, i, estimates=estimates):
            eps, logits = off(x, t, i)
            estimates.append((x - level(t)[1] * eps) / level(t)[0])
            return eps, logits

        seen[name], _ = solve(watched, x_T, make_plan(SCHEDULE), x0_range=x0_range)
        assert np.abs(estimates[0]).max() > 5
    assert ((seen["clipped"] >= 0) & (seen["clipped"] <= 1)).all()


def test_clipping_works_alike_on_torch_tensors(rng):
    def wild(x, t, i):
        return 0.3 * x, None

    x_T = rng.standard_normal((2, 3))
    expected, _ = solve(wild, x_T, make_plan(SCHEDULE), x0_range=(-0.5, 0.25))
    got, _ = solve(wild, torch.from_numpy(x_T), make_plan(SCHEDULE), x0_range=(-0.5, 0.25))
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-12)
    assert expected.max() == 0.25


def test_informed_run_starts_at_its_level():
    plan = make_plan(SCHEDULE, num_steps=20, start_lam=-2.0)
    assert math.log(plan.alpha[0] / plan.sigma[0]) == pytest.approx(-2.0, abs=1e-9)
    lam = np.log(plan.alpha / plan.sigma)
    np.testing.assert_allclose(np.diff(lam), (lam[-1] + 2) / 19, rtol=1e-9)
    assert (plan.nfe, plan.t[-1]) == (20, 1.0)


def test_informed_start_is_a_noised_guess(rng):
    """With an exact noise oracle any start on the level of x0 returns x0."""
    plan = make_plan(SCHEDULE, num_steps=5, start_lam=-1.0)
    x0, z = rng.random((3, 4)), rng.standard_normal((3, 4))

    def oracle(x, t, i):
        alpha, sigma = level(t)
        return (x - alpha * x0) / sigma, None

    start = noised(x0, z, plan)
    alpha, sigma = level(plan.t[0])
    np.testing.assert_allclose(start, alpha * x0 + sigma * z, atol=1e-12)
    np.testing.assert_allclose(solve(oracle, start, plan)[0], x0, atol=1e-9)


@pytest.mark.parametrize(("std", "largest"), [(0.05, 0.005), (0.1, 0.02), (0.2, 0.05)])
def test_informed_start_pulls_little_towards_a_wrong_guess(std, largest):
    """A guess off by 0.4, in a Gaussian posterior of spread `std`, from half log-SNR -2.

    The run is affine: coefficients of noise, of the constant 1 and of the error of the guess.
    """
    plan = make_plan(SCHEDULE, num_steps=20, start_lam=-2.0)
    noise, one, error = np.eye(3)

    def denoise(x, t, i):
        alpha, sigma = level(t)
        gain = alpha * std**2 / (alpha**2 * std**2 + sigma**2)
        x0 = MEAN * one + gain * (x - alpha * MEAN * one)
        return (x - alpha * x0) / sigma, None

    x, _ = solve(denoise, noised(MEAN * one + error, noise, plan), plan)
    assert abs(0.4 * x[2]) < largest
    assert abs(x[1] - MEAN) < 0.005
    assert 0.95 < abs(x[0]) / std < 1.08


@pytest.mark.parametrize(("grid", "start_lam"), [("trailing", -2.0), ("logsnr", -9.0), ("all", 0)])
def test_rejects_starts_that_are_no_levels(grid, start_lam):
    with pytest.raises(UsageError) as e:
        make_plan(SCHEDULE, "ddim", 1000 if grid == "all" else 20, grid, start_lam)
    assert e.value.code == "TD3047"
