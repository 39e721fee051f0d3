"""Solver tables against written-out published loops, and the one loop that runs them.

Orders of convergence, parity with another library and the spread of results have files of their
own; so have the known faults of other samplers.
"""

import itertools
import math
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tadiff_rt import solvers
from tadiff_rt.errors import NumericsError, UsageError
from tadiff_rt.schedule import GRIDS, NoiseSchedule
from tadiff_rt.solvers import COLUMNS, SOLVERS, SolverPlan, make_plan, noised, plan_at, solve
from tests.rt.analytic import BETAS, SCHEDULE, TABLE, curved, level, one_image

NOISY = ("ddpm", "sde_dpmpp_2m")
X0_COLUMNS = ("coef_x0", "coef_x0_prev", "coef_x0_prev2", "coef_x0_prev3")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20250701)


@st.composite
def runs(draw):
    """(schedule, its table, arguments of make_plan) of a run that exists."""
    solver, grid = draw(st.sampled_from(SOLVERS)), draw(st.sampled_from(GRIDS))
    T = draw(st.sampled_from([1, 2, 7, 60] if grid == "all" else [1, 2, 7, 60, 1000]))
    schedule = NoiseSchedule.linear(T)
    start_lam, first = None, T
    if T > 1 and draw(st.booleans()):
        low, high = schedule.lam(float(T)), schedule.lam(1.0)
        start_lam = low + draw(st.floats(0, 0.9)) * (high - low)
        first = int(schedule.t_of_lam(start_lam))
    if grid == "all":
        solver = "ddim" if solver == "dpmpp_2s" else solver  # its middles lie between levels
        num_steps = first
    else:
        num_steps = draw(st.integers(1, min(first, 60)))
    options = {
        "round_times": draw(st.booleans()),
        "ramp_down": draw(st.booleans()),
        "eta": draw(st.sampled_from([0.0, 0.3, 1.0])) if solver == "ddim" else 0.0,
    }
    table = np.cumprod(1 - np.linspace(1e-4, 2e-2, T))
    return schedule, table, (solver, num_steps, grid, start_lam), options


@settings(max_examples=400, deadline=None, derandomize=True)
@given(runs())
def test_every_plan_keeps_its_promises(run):
    schedule, table, (solver, num_steps, grid, start_lam), options = run
    plan = make_plan(schedule, solver, num_steps, grid, start_lam, **options)
    assert plan.table.shape == (num_steps, len(COLUMNS))
    assert np.isfinite(plan.table).all()
    assert plan.table[-1, 3:9].tolist() == [0, 1, 0, 0, 0, 0]
    assert (np.diff(plan.t) < 0).all()
    assert 1 <= plan.t[-1] <= plan.t[0] <= len(table)
    assert not options["round_times"] or set(plan.t) <= set(range(1, len(table) + 1))
    assert plan.mask_weight.min() >= 0
    assert plan.mask_weight.sum() == pytest.approx(1, abs=1e-12)
    assert plan.history <= min(3, num_steps - 1)
    assert plan.coef_noise.any() == (num_steps > 1 and (solver in NOISY or options["eta"] > 0))

    x0, z = np.array([0.0, 0.3, 1.0]), np.random.default_rng(0).standard_normal((num_steps, 3))
    image, _ = solve(one_image(x0, table), z[0], plan, lambda i: z[i])
    np.testing.assert_allclose(image, x0, rtol=0, atol=1e-6)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(runs())
def test_exact_noise_estimates_stay_on_the_levels(run):
    """x = alpha x0 + sigma eps at every row, middles of "dpmpp_2s" too, if the start is so.

    Where noise is drawn, sigma² of the next level is what is kept plus what is added.
    """
    schedule, _, arguments, options = run
    plan = make_plan(schedule, *arguments, **options)
    x0, eps = np.array([0.0, 0.3, 1.0]), np.array([1.2, -0.7, 0.1])
    seen = []

    def denoise(x, t, i):
        seen.append(x.copy())
        return eps, None

    start = plan.alpha[0] * x0 + plan.sigma[0] * eps
    solve(denoise, start, plan, lambda i: np.zeros(3))
    to_x0 = sum(getattr(plan, name) for name in X0_COLUMNS)
    kept = plan.coef_x[:-1] * plan.sigma[:-1]
    np.testing.assert_allclose(
        plan.coef_x[:-1] * plan.alpha[:-1] + to_x0[:-1], plan.alpha[1:], rtol=1e-9
    )
    np.testing.assert_allclose(np.hypot(kept, plan.coef_noise[:-1]), plan.sigma[1:], rtol=1e-9)
    if not plan.coef_noise.any():
        expected = np.outer(plan.alpha, x0) + np.outer(plan.sigma, eps)
        np.testing.assert_allclose(seen, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("solver", SOLVERS)
def test_logits_that_never_change_are_the_fused_logits(solver, rng):
    plan = make_plan(SCHEDULE, solver, 20)
    _, logits = solve(lambda x, t, i: (x, np.full(2, 3.0)), np.ones(2), plan, lambda i: np.ones(2))
    np.testing.assert_allclose(logits, 3.0, rtol=1e-12)


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
def test_ddpm_draws_from_the_posterior_between_distant_levels(grid):
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
@pytest.mark.parametrize("eta", [0.0, 0.6])
def test_ddim_is_the_published_step(grid, num_steps, eta, rng):
    """Song et al. 2021, Eqs. (12) and (16), ᾱ here is α there; nothing is added at the end."""
    x = start = rng.standard_normal(5)
    z = rng.standard_normal((num_steps, 5))
    times = SCHEDULE.levels(num_steps, grid).t
    for i, (t, t_next) in enumerate(itertools.zip_longest(times, times[1:])):
        (a, s), (a_next, s_next) = level(t), level(t_next) if t_next else (1.0, 0.0)
        eps, _ = curved(x, t, None)
        std = eta * s_next / s * math.sqrt(1 - (a / a_next) ** 2)
        x = a_next * (x - s * eps) / a + math.sqrt(s_next**2 - std**2) * eps + std * z[i]
    plan = make_plan(SCHEDULE, "ddim", num_steps, grid, eta=eta)
    image, _ = solve(curved, start, plan, lambda i: z[i])
    np.testing.assert_allclose(image, x, rtol=1e-8)


@pytest.mark.parametrize("grid", ["logsnr", "trailing", "karras"])
@pytest.mark.parametrize(("eta", "same"), [(0.0, "dpmpp_1"), (1.0, "ddpm")])
def test_ddim_is_another_solver_at_the_ends_of_eta(grid, eta, same):
    """The exponential integrator of first order is DDIM without noise; DDPM is DDIM with all."""
    a = make_plan(SCHEDULE, "ddim", 12, grid, eta=eta).table
    np.testing.assert_allclose(a, make_plan(SCHEDULE, same, 12, grid).table, rtol=1e-9, atol=1e-12)


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
@pytest.mark.parametrize(("solver", "first"), [("dpmpp_2m", "ddim"), ("sde_dpmpp_2m", "ddpm")])
def test_second_order_without_its_history_is_first_order(solver, first, grid):
    """With noise, too: the first order of the reverse process is ancestral sampling."""
    second, first = make_plan(SCHEDULE, solver, 12, grid), make_plan(SCHEDULE, first, 12, grid)
    np.testing.assert_allclose(second.coef_x, first.coef_x, rtol=1e-12)
    np.testing.assert_allclose(second.coef_noise, first.coef_noise, rtol=1e-9)
    np.testing.assert_allclose(second.coef_x0 + second.coef_x0_prev, first.coef_x0, rtol=1e-9)
    assert second.coef_x0_prev[[0, -1]].tolist() == [0, 0]
    assert (second.coef_x0_prev[1:-1] < 0).all()


@pytest.mark.parametrize("num_steps", [1, 2, 3, 8, 9, 20])
def test_middles_of_2s_halve_its_steps_in_lambda(num_steps):
    """Ends of steps are the levels of the grid; an even number leaves the last without middle."""
    plan = make_plan(SCHEDULE, "dpmpp_2s", num_steps, "trailing")
    ends = SCHEDULE.levels(num_steps // 2 + 1, "trailing").t
    paired = 2 * ((num_steps - 1) // 2)
    lam = np.log(plan.alpha / plan.sigma)
    np.testing.assert_array_equal(plan.t[: paired + 1 : 2], ends[: paired // 2 + 1])
    np.testing.assert_array_equal(plan.t[paired:], ends[paired // 2 :])
    np.testing.assert_allclose(
        lam[1:paired:2], (lam[: paired - 1 : 2] + lam[2 : paired + 1 : 2]) / 2, atol=1e-9
    )


@pytest.mark.parametrize("solver", SOLVERS)
def test_plan_at_given_times_is_that_of_the_grid(solver):
    plan = make_plan(SCHEDULE, solver, 9, "karras", ramp_down=True)
    given = plan_at(SCHEDULE, solver, plan.t, ramp_down=True)
    np.testing.assert_array_equal(given.table, plan.table)
    assert (given.grid, given.solver) == ("given", solver)


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
        plan = make_plan(SCHEDULE, num_steps=num_steps)
        _, fused = solve(lambda x, t, i: (x, np.array([logits(t)])), np.zeros(1), plan)
        errors.append(abs(fused[0] - exact))
    assert errors[1] < errors[0] / 8
    assert errors[2] < errors[1] / 8


def test_plan_refuses_mask_weights_that_are_no_average():
    plan = make_plan(SCHEDULE, num_steps=2)
    columns = {name: getattr(plan, name) for name in COLUMNS} | {"mask_weight": np.zeros(2)}
    with pytest.raises(NumericsError, match="TD6004: mask weights must be >= 0 and sum to 1"):
        SolverPlan(**columns, solver="ddim", grid="logsnr")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_plan_refuses_coefficients_that_are_not_finite(value):
    plan = make_plan(SCHEDULE, num_steps=2)
    columns = {name: getattr(plan, name) for name in COLUMNS} | {"coef_x": np.full(2, value)}
    with pytest.raises(NumericsError, match="TD6004: a plan holds a coefficient"):
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


@pytest.mark.parametrize("make", [make_plan, lambda s, name: plan_at(s, name, [5.0, 1.0])])
def test_rejects_an_unknown_solver(make):
    with pytest.raises(UsageError, match=r"TD3042: solver must be one of dpmpp_2m, .*got 'euler'"):
        make(SCHEDULE, "euler")


@pytest.mark.parametrize(
    ("solver", "eta"), [("ddim", 1.1), ("ddim", -0.1), ("ddim", math.nan), ("ddpm", 0.5)]
)
def test_rejects_impossible_shares_of_noise(solver, eta):
    with pytest.raises(UsageError, match=r"TD3042: eta must be in 0 to 1 for 'ddim'"):
        make_plan(SCHEDULE, solver, eta=eta)


@pytest.mark.parametrize("solver", ["dpmpp_2m", "dpmpp_2s"])
@pytest.mark.parametrize("num_steps", [0, -1, 1001, 2.5, 20.0, "20"])
def test_rejects_impossible_numbers_of_steps(solver, num_steps):
    with pytest.raises(UsageError, match="num_steps must be an integer in 1 to 1000") as error:
        make_plan(SCHEDULE, solver, num_steps)
    assert error.value.code == "TD3010"
    assert f"got {num_steps!r}" in error.value.message


@pytest.mark.parametrize("solver", SOLVERS)
def test_as_many_rounded_times_as_there_are_is_all_of_them(solver):
    plan = make_plan(NoiseSchedule.linear(7), solver, 7, round_times=True)
    assert plan.t.tolist() == [7, 6, 5, 4, 3, 2, 1]


@pytest.mark.parametrize("start_lam", [-9.0, 5.0, math.nan])
def test_rejects_starts_that_are_no_levels(start_lam):
    with pytest.raises(UsageError, match="TD3047: start_lam must be in"):
        make_plan(SCHEDULE, start_lam=start_lam)


def test_rejects_an_unknown_grid():
    with pytest.raises(UsageError, match="TD3041: grid must be one of"):
        make_plan(SCHEDULE, grid="x")


def test_2s_has_no_full_grid():
    with pytest.raises(UsageError, match="TD3041: dpmpp_2s puts middles between levels"):
        make_plan(SCHEDULE, "dpmpp_2s", 1000, "all")


def test_informed_run_starts_at_its_level():
    plan = make_plan(SCHEDULE, num_steps=20, start_lam=-2.0)
    assert math.log(plan.alpha[0] / plan.sigma[0]) == pytest.approx(-2.0, abs=1e-9)
    lam = np.log(plan.alpha / plan.sigma)
    np.testing.assert_allclose(np.diff(lam), (lam[-1] + 2) / 19, rtol=1e-9)
    assert (plan.nfe, plan.t[-1]) == (20, 1.0)


@pytest.mark.parametrize("solver", SOLVERS)
def test_informed_start_is_a_noised_guess(solver, rng):
    """With an exact noise oracle any start on the level of x0 returns x0."""
    plan = make_plan(SCHEDULE, solver, 5, start_lam=-1.0)
    x0, z = rng.random((3, 4)), rng.standard_normal((3, 4))
    start = noised(x0, z, plan)
    alpha, sigma = level(plan.t[0])
    np.testing.assert_allclose(start, alpha * x0 + sigma * z, atol=1e-12)
    np.testing.assert_allclose(solve(one_image(x0), start, plan, lambda i: z)[0], x0, atol=1e-9)


def test_ddpm_needs_noise():
    with pytest.raises(UsageError, match="TD3043: solver 'ddpm' draws noise"):
        solve(curved, np.zeros(2), make_plan(SCHEDULE, "ddpm", 4))


@pytest.mark.parametrize(("solver", "eta"), [("ddpm", 0), ("sde_dpmpp_2m", 0), ("ddim", 0.2)])
def test_noise_is_drawn_for_every_step_but_the_last(solver, eta, rng):
    drawn = []
    noise = lambda i: drawn.append(i) or rng.standard_normal(2)  # noqa: E731
    solve(curved, np.zeros(2), make_plan(SCHEDULE, solver, 4, eta=eta), noise)
    assert drawn == [0, 1, 2]


@pytest.mark.parametrize("solver", SOLVERS)
def test_network_is_called_once_a_row_with_one_based_times(solver):
    calls, steps = [], []

    def denoise(x, t, i):
        assert type(t) is float
        calls.append((t, i))
        return x, None

    plan = plan_at(SCHEDULE, solver, [1000, 750, 500, 250])
    _, mask = solve(denoise, np.ones(1), plan, lambda i: np.ones(1), steps.append)
    assert calls == [(1000.0, 0), (750.0, 1), (500.0, 2), (250.0, 3)]
    assert steps == [0, 1, 2, 3]
    assert mask is None


def test_logits_without_weight_are_not_touched():
    plan = make_plan(SCHEDULE)

    def denoise(x, t, i):
        return x, np.full(1, 3.0) if plan.mask_weight[i] else object()

    assert solve(denoise, np.ones(1), plan)[1] == pytest.approx(3.0)


def test_logits_missing_at_a_weighted_step_are_an_error():
    plan = make_plan(SCHEDULE)
    with pytest.raises(NumericsError, match="TD6004: mask logits came for a weight of"):
        solve(lambda x, t, i: (x, x if i == 19 else None), np.ones(1), plan)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy])
def test_float32_stays_float32_and_the_input_is_not_modified(solver, make, rng):
    start = rng.standard_normal((2, 3)).astype(np.float32)
    x_T = make(start.copy())
    plan = make_plan(SCHEDULE, solver, 6)
    image, mask = solve(lambda x, t, i: (0.5 * x, 0.5 * x), x_T, plan, lambda i: x_T)
    assert image.dtype == mask.dtype == x_T.dtype
    np.testing.assert_array_equal(np.asarray(x_T), start)
    assert not np.shares_memory(np.asarray(image), np.asarray(x_T))


@pytest.mark.parametrize("x0_range", [None, (-0.5, 0.25)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("solver", SOLVERS)
def test_torch_gives_what_numpy_gives(solver, dtype, x0_range, rng):
    x_T, z = rng.standard_normal((2, 3, 4)), rng.standard_normal((9, 2, 3, 4))
    x_T, z = x_T.astype(dtype), z.astype(dtype)
    plan = make_plan(SCHEDULE, solver, 9)

    def curved_torch(x, t, i):
        return torch.tanh(1.5 * x + t / 700), torch.sin(x) + t / 300

    expected = solve(curved, x_T, plan, lambda i: z[i], x0_range=x0_range)
    start, noise = torch.from_numpy(x_T), torch.from_numpy(z)
    got = solve(curved_torch, start, plan, lambda i: noise[i], x0_range=x0_range)
    # x reaches 25 and more without a range, and the logits are a sine of it.
    tolerance = 5e-4 if dtype is np.float32 else 1e-12
    for a, b in zip(got, expected, strict=True):
        assert a.numpy().dtype == b.dtype == dtype
        np.testing.assert_allclose(a.numpy(), b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("solver", SOLVERS)
def test_no_step_reads_a_value_from_the_device(solver):
    """A meta tensor has no values: any transfer to the host raises."""
    x_T = torch.empty(2, 3, device="meta")
    plan = make_plan(SCHEDULE, solver, 6)
    image, mask = solve(lambda x, t, i: (x, x), x_T, plan, lambda i: torch.empty_like(x_T))
    assert image.is_meta
    assert mask.is_meta


class Recorder:
    """numpy, every call of which is written down with its scalars and must say where it writes."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        def call(*args, out):
            self.calls.append((name, [a for a in args if not isinstance(a, np.ndarray)]))
            return getattr(np, name)(*args, out=out)

        return call


@pytest.mark.parametrize("x0_range", [None, (0.0, 1.0)])
@pytest.mark.parametrize("solver", SOLVERS)
def test_operations_do_not_depend_on_the_values(solver, x0_range, monkeypatch, rng):
    """So that a recorded CUDA graph of a run holds for every input."""
    plan = make_plan(SCHEDULE, solver, 8)
    sequences = []
    starts = [rng.standard_normal(3), np.zeros(3), np.full(3, 1e30), np.full(3, -np.inf)]
    for x_T in [*starts, np.full(3, np.nan), np.array([0, np.nan, np.inf])]:
        recorder = Recorder()
        monkeypatch.setattr(solvers, "_operations", lambda x, recorder=recorder: recorder)
        with np.errstate(all="ignore"):
            solve(lambda x, t, i: (0.2 * x, x), x_T, plan, lambda i: np.ones(3), None, x0_range)
        sequences.append(recorder.calls)
    assert len(sequences[0]) >= 6 * plan.num_steps
    assert all(sequence == sequences[0] for sequence in sequences)


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("x0_range", [None, (0.0, 1.0)])
@pytest.mark.parametrize("solver", SOLVERS)
def test_loop_allocates_its_buffers_once(solver, x0_range, masks, rng):
    """x, scratch, one x0 and those of the history; with masks, the fused logits and scratch.

    Counted from the row with the first mask weight, or from the first; a MiB an array.
    """
    x_T = rng.standard_normal(2**17)
    eps, logits, z = np.empty_like(x_T), np.ones_like(x_T), np.ones_like(x_T)
    plan = make_plan(SCHEDULE, solver, 20)
    warm = int(np.flatnonzero(plan.mask_weight)[0]) if masks else 0
    assert warm < 19
    live = []

    def denoise(x, t, i):
        np.multiply(x, 0.3, out=eps)
        return eps, logits if masks else None

    def on_step(i):
        if i == warm:
            tracemalloc.reset_peak()
            live.append(tracemalloc.get_traced_memory()[0])

    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        solve(denoise, x_T, plan, lambda i: z, on_step, x0_range)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    buffers = 3 + plan.history + 2 * masks
    assert live[0] - before <= (buffers + 0.1) * x_T.nbytes
    assert peak - live[0] <= 0.1 * x_T.nbytes


def test_history_is_what_the_method_needs():
    histories = {solver: make_plan(SCHEDULE, solver).history for solver in SOLVERS}
    none = dict.fromkeys(("ddim", "ddpm", "dpmpp_1"), 0)
    one = dict.fromkeys(("dpmpp_2m", "dpmpp_2s", "sde_dpmpp_2m"), 1)
    two = dict.fromkeys(("dpmpp_3m", "dpmpp_3m_parity", "unipc_2"), 2)
    assert histories == {**none, **one, **two, "unipc_3": 3}


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
