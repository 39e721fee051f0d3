"""Faults that samplers in wide use have, or had, each with the test that would show it here.

A number in brackets is an issue of huggingface/diffusers, or of the repository named. Two known
faults have nothing here to be tested on: the first-order adaptive solver and the K of its step
plan (dpm-solver 44), because no run is adaptive and a table has one row an evaluation; and a
sampler object handed over where a network is expected (dpm-solver 22, 23), because `denoise` is a
plain function of x and t. What such a mix-up has in common with passing mean and variance, an
output of another shape, is tested.
"""

import math

import numpy as np
import pytest
import scipy.special
import torch

from tadiff_rt.schedule import GRIDS, NoiseSchedule
from tadiff_rt.solvers import SOLVERS, make_plan, noised, solve
from tests.rt.analytic import MEAN, SCHEDULE, TABLE, gaussian, level, one_image, spread

SHORT_GRIDS = tuple(grid for grid in GRIDS if grid != "all")
DETERMINISTIC = tuple(s for s in SOLVERS if s not in ("ddpm", "sde_dpmpp_2m"))


def cosine(T: int = 1000) -> NoiseSchedule:
    """Nichol and Dhariwal 2021, Eq. (17); λ falls to −10, the step to t = T is capped at 0.999."""
    f = np.cos((np.arange(T + 1) / T + 0.008) / 1.008 * np.pi / 2) ** 2
    return NoiseSchedule.from_betas(np.minimum(1 - f[1:] / f[:-1], 0.999))


def called_times(plan) -> list[float]:
    """The times the network is fed in a run."""
    times = []

    def denoise(x, t, i):
        times.append(t)
        return 0.5 * x, None

    solve(denoise, np.ones(1), plan, lambda i: np.ones(1))
    return times


@pytest.mark.parametrize("grid", SHORT_GRIDS)
@pytest.mark.parametrize("T", [600, 1000, 4000])
def test_01_network_times_are_those_of_its_own_schedule(grid, T):
    """A wrapper maps continuous time by (t − 1/N)·1000 whatever N is: at N = 600 all are wrong."""
    schedule = NoiseSchedule.linear(T)
    table = np.cumprod(1 - np.linspace(1e-4, 2e-2, T))
    plan = make_plan(schedule, num_steps=20, grid=grid)
    times = called_times(plan)
    assert times[0] == T
    for i, t in enumerate(times):
        np.testing.assert_allclose((plan.alpha[i], plan.sigma[i]), level(t, table), rtol=1e-9)


def test_01_mean_at_600_timesteps():
    """With the wrong times it was 0.6 to 0.8 of the true mean."""
    table = np.cumprod(1 - np.linspace(1e-4, 2e-2, 600))
    bias, ratio = spread(make_plan(NoiseSchedule.linear(600)), 0.1, table=table)
    assert abs(bias) < 0.01
    assert 0.95 <= ratio <= 1.08


@pytest.mark.parametrize("grid", ["trailing", "linspace"])
def test_02_times_are_one_based(grid):
    """t = 1 is the first entry of the table and t = T the last."""
    plan = make_plan(SCHEDULE, num_steps=20, grid=grid)
    expected = TABLE[plan.t.astype(int) - 1]
    np.testing.assert_allclose(plan.alpha, np.sqrt(expected), rtol=1e-12)
    np.testing.assert_allclose(plan.sigma, np.sqrt(1 - expected), rtol=1e-12)
    assert SCHEDULE.alpha_bar(1) == pytest.approx(1 - 1e-4, rel=1e-12)
    assert make_plan(SCHEDULE, num_steps=1000, grid="all").t.tolist() == list(range(1000, 0, -1))


@pytest.mark.parametrize("num_steps", [10, 50, 600])
@pytest.mark.parametrize("grid", SHORT_GRIDS)
def test_03_fewer_steps_do_not_rebuild_the_schedule(grid, num_steps):
    """50 betas from 1e-4 to 0.02 end at ᾱ = 0.60: mostly image where pure noise is fed."""
    plan = make_plan(SCHEDULE, num_steps=num_steps, grid=grid)
    assert (plan.t[0], plan.alpha[0] ** 2) == (1000, pytest.approx(TABLE[-1], rel=1e-12))
    trained = [level(t) for t in plan.t]
    np.testing.assert_allclose(np.stack([plan.alpha, plan.sigma], 1), trained, rtol=1e-9)


@pytest.mark.parametrize("grid", SHORT_GRIDS)
def test_04_levels_below_half_log_snr_minus_5_are_visited(grid):
    """Cutting λ at −5.1 shortens the table, and with it the map from time to level."""
    schedule = cosine()
    lam = 0.5 * scipy.special.logit(schedule.alphas_cumprod)
    assert lam[-1] < -8
    plan = make_plan(schedule, num_steps=20, grid=grid, round_times=True)
    np.testing.assert_allclose(np.log(plan.alpha / plan.sigma), lam[plan.t.astype(int) - 1])
    assert plan.t[0] == 1000
    np.testing.assert_allclose(schedule.t_of_lam(lam), np.arange(1, 1001), rtol=1e-9)
    even = make_plan(schedule, num_steps=20)
    expected = np.linspace(lam[-1], lam[0], 20)
    np.testing.assert_allclose(np.log(even.alpha / even.sigma), expected, rtol=1e-6)


@pytest.mark.parametrize("n", [4, 9, 10, 14, 15, 16, 40])
@pytest.mark.parametrize("solver", ["dpmpp_3m", "dpmpp_3m_parity"])
def test_05_the_order_near_the_end_does_not_depend_on_the_number_of_steps(solver, n):
    """It falls below 10 steps in one library, below 15 in another; here where it is asked to."""

    def orders(**options):
        plan = make_plan(SCHEDULE, solver, n, **options)
        used = (plan.coef_x0, plan.coef_x0_prev, plan.coef_x0_prev2)
        return sum((column != 0).astype(int) for column in used).tolist()

    growing = [min(3, i + 1) for i in range(n - 1)]
    assert orders() == [*growing, 1]
    assert orders(ramp_down=True) == [*(min(k, n - i) for i, k in enumerate(growing)), 1]


@pytest.mark.parametrize("n", [1, 2, 5, 20])
@pytest.mark.parametrize("grid", SHORT_GRIDS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_06_no_noise_is_left_and_no_step_is_a_dummy(solver, grid, n):
    """A last sigma above 0 leaves grain (5689, 6068); one level twice is a lost call (6295)."""
    plan = make_plan(SCHEDULE, solver, n, grid)
    last = [plan.coef_x[-1], plan.coef_x0[-1], plan.coef_noise[-1]]
    assert last == [0, 1, 0]
    levels = np.append(plan.sigma / plan.alpha, 0.0)
    assert (np.diff(levels) < 0).all()
    assert (np.diff(levels)[:-1] < -1e-3 * levels[1:-1]).all()


@pytest.mark.parametrize("round_times", [False, True])
def test_07_single_step_runs_exist_for_every_number_of_steps(round_times):
    """A last step of the wrong length takes log 0 at 3n − 1 steps (9007)."""
    x0 = np.array([0.3, 0.9])
    for n in range(1, 61):
        plan = make_plan(SCHEDULE, "dpmpp_2s", n, round_times=round_times)
        assert plan.nfe == n
        image, _ = solve(one_image(x0), np.array([1.0, -2.0]), plan)
        np.testing.assert_allclose(image, x0, atol=1e-6)


@pytest.mark.parametrize("n", [20, 60, 100, 300])
@pytest.mark.parametrize("grid", ["karras", "logsnr"])
def test_08_rounded_times_are_distinct_where_levels_crowd(grid, n):
    """Karras levels of a cosine schedule share whole times: an IndexError there (12771)."""
    crowded = cosine().levels(n, grid).t
    assert len(set(np.round(crowded))) < n
    plan = make_plan(cosine(), num_steps=n, grid=grid, round_times=True)
    assert len(set(plan.t)) == n
    assert (plan.t == np.round(plan.t)).all()
    assert (plan.t[0], plan.t[-1]) == (1000, 1)


def test_09_a_run_has_as_many_evaluations_as_asked_for():
    """95 came instead of 100 (4122); arange(T, 0, −T/n) has 62 entries at n = 61."""
    for n in range(1, 1001):
        for grid in ("trailing", "linspace", "quadratic"):
            assert len(SCHEDULE.levels(n, grid).t) == n
    for n in (61, 95, 99, 100, 103):
        for solver in SOLVERS:
            assert len(called_times(make_plan(SCHEDULE, solver, n, "trailing"))) == n


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("n", [2, 3, 5, 8])
def test_10_the_step_to_clean_data_extrapolates_nothing(solver, n):
    """High order on the last, infinite step in λ makes artefacts in short runs (5541)."""
    plan = make_plan(SCHEDULE, solver, n)
    assert plan.table[-1, 3:9].tolist() == [0, 1, 0, 0, 0, 0]


@pytest.mark.parametrize("n", [5, 10])
def test_10_short_runs_stay_in_the_range_of_the_data(n):
    """x0 in [0, 1] exactly: every method ends on an estimate of x0, not on a combination."""
    images = np.array([[0.0, 0.2, 1.0, 0.5], [1.0, 0.9, 0.0, 0.5]])
    for solver in DETERMINISTIC:
        for seed in range(20):
            x_T = np.random.default_rng(seed).standard_normal(4)
            image, _ = solve(one_of(images), x_T, make_plan(SCHEDULE, solver, n))
            assert ((image >= -1e-9) & (image <= 1 + 1e-9)).all()


@pytest.mark.filterwarnings("ignore:An output with one or more elements was resized")
@pytest.mark.parametrize("ones", [np.ones, torch.ones])
def test_12_mean_and_variance_in_place_of_noise_are_refused(ones):
    """A network that learned variances has twice the channels (dpm-solver 22, MedSegDiff 134)."""
    plan = make_plan(SCHEDULE, num_steps=3)
    with pytest.raises((ValueError, RuntimeError), match=r"shape|size"):
        solve(lambda x, t, i: (ones((2, 6, 4)), None), ones((2, 3, 4)), plan)


@pytest.mark.parametrize("solver", SOLVERS)
def test_13_values_beyond_1_are_not_rescaled(solver):
    """Dynamic thresholding divides an image by its large quantile: intensities would move."""
    x0 = np.array([0.2, 0.5, 0.8, 9.0])
    plan = make_plan(SCHEDULE, solver, 12)
    noise = np.random.default_rng(3).standard_normal((12, 4))
    free, _ = solve(one_image(x0), noise[0], plan, lambda i: noise[i])
    np.testing.assert_allclose(free, x0, atol=1e-6)
    clipped, _ = solve(one_image(x0), noise[0], plan, lambda i: noise[i], x0_range=(0.0, 1.0))
    np.testing.assert_allclose(clipped[:3], x0[:3], atol=1e-6)
    assert clipped[3] == 1


def one_of(images):
    """The exact denoiser of data that are one of `images` (k, n) in [0, 1], evenly likely."""

    def denoise(x, t, i):
        alpha, sigma = level(t)
        distance = ((x[None] - alpha * images) ** 2).sum(-1) / (2 * sigma**2)
        x0 = scipy.special.softmax(-distance) @ images
        return (x - alpha * x0) / sigma, None

    return denoise


TWO_IMAGES = one_of(np.array([[0.0, 0.2, 1.0, 0.5], [1.0, 0.9, 0.0, 0.5]]))


@pytest.mark.parametrize("seed", range(5))
def test_13_clipping_does_not_change_an_exact_denoiser(seed):
    """Its x0 is a mean of images of the range, up to rounding at the edges of the range."""
    x_T = np.random.default_rng(seed).standard_normal(4)
    free, _ = solve(TWO_IMAGES, x_T, make_plan(SCHEDULE))
    clipped, _ = solve(TWO_IMAGES, x_T, make_plan(SCHEDULE), x0_range=(0.0, 1.0))
    np.testing.assert_allclose(clipped, free, rtol=0, atol=1e-9)


def test_13_clipping_bounds_what_a_wrong_denoiser_makes_of_high_noise():
    """An offset of 0.05 in eps is one of 8 in x0 at t = 1000."""
    estimates = []

    def off(x, t, i):
        eps = TWO_IMAGES(x, t, i)[0] + 0.05 * (t > 900)
        estimates.append((x - level(t)[1] * eps) / level(t)[0])
        return eps, None

    x_T = np.random.default_rng(20250701).standard_normal(4)
    image, _ = solve(off, x_T, make_plan(SCHEDULE), x0_range=(0.0, 1.0))
    assert np.abs(estimates[0]).max() > 5
    assert ((image >= 0) & (image <= 1)).all()


def test_14_pure_noise_at_t_600_of_600_costs_narrow_data_nothing():
    """ᾱ_T = 0.0023 says that 4.8 % of the amplitude of the data is there; the flow forgets it."""
    schedule = NoiseSchedule.linear(600)
    table = np.cumprod(1 - np.linspace(1e-4, 2e-2, 600))
    assert math.sqrt(schedule.alpha_bar(600)) == pytest.approx(0.048, abs=5e-4)
    for std in (0.02, 0.05, 0.1):
        (a_T, s_T), (a_1, s_1) = level(600, table), level(1, table)
        on_flow = a_T * MEAN * a_1 * std**2 / math.hypot(a_T * std, s_T) / math.hypot(std, s_1)
        bias, _ = spread(make_plan(schedule), std, table=table)
        assert -bias == pytest.approx(on_flow, rel=0.05)
        assert abs(bias) < 0.005 * MEAN


@pytest.mark.parametrize("start_lam", [-4.0, -2.0, 0.0])
@pytest.mark.parametrize("solver", SOLVERS)
def test_14_an_informed_start_has_the_amplitude_of_its_level(solver, start_lam):
    """alpha x0 + sigma z: the mean comes out exactly where the guess is right."""
    plan = make_plan(SCHEDULE, solver, start_lam=start_lam)
    assert math.log(plan.alpha[0] / plan.sigma[0]) == pytest.approx(start_lam, abs=1e-9)
    guess, no_noise = np.full(3, MEAN), np.zeros(3)
    image, _ = solve(gaussian(MEAN, 0.1), noised(guess, no_noise, plan), plan, lambda i: no_noise)
    np.testing.assert_allclose(image, MEAN, rtol=0, atol=1e-12)


@pytest.mark.parametrize("start_lam", [None, -2.0])
@pytest.mark.parametrize("grid", SHORT_GRIDS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_15_round_times_feeds_trained_times_only(solver, grid, start_lam):
    """A network trained on 1 … T has never seen t = 31.1."""
    plan = make_plan(SCHEDULE, solver, 20, grid, start_lam, round_times=True)
    times = np.array(called_times(plan))
    assert set(times) <= set(range(1, 1001))
    assert len(set(times)) == 20
    # The level is that of the whole time, not of the time before rounding.
    np.testing.assert_allclose(plan.alpha, np.sqrt(TABLE[times.astype(int) - 1]), rtol=1e-12)


def test_15_without_it_times_are_fractional():
    times = called_times(make_plan(SCHEDULE, num_steps=20))
    assert sum(t != round(t) for t in times) == 18
