"""The exact answers of `certify`, which faults of a plan they find, and what passes.

The runs of four methods on Gaussian data are written once more, as recursions of the mean and the
covariance of (x − alpha·MEAN, previous x0 − MEAN), from the papers and on the levels of
`tests.rt.analytic`.
"""

import dataclasses
import itertools
import json
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.optimize
import scipy.stats

from tadiff_rt.certify import analytic, report
from tadiff_rt.certify.analytic import GaussianRun
from tadiff_rt.certify.network import Distance, NetworkCertificate
from tadiff_rt.errors import UsageError
from tadiff_rt.noise import normal
from tadiff_rt.schedule import GRIDS, NoiseSchedule
from tadiff_rt.solvers import COLUMNS, SOLVERS, make_plan, plan_at, solve
from tests.rt.analytic import MEAN, SCHEDULE, TABLE, level, mixture

STDS = (0.05, 0.1, 0.2, 0.5)
RECURSIONS = ("ddim", "dpmpp_2m", "ddpm", "sde_dpmpp_2m")


def step(solver, a, s, h, h_before, gain):
    """(2, 2) of (deviation of x, of the x0 before), and the variance of the noise, of one step.

    Args:
        a, s: alpha and sigma at the beginning and at the end.
        h: of this step in λ; `h_before` of the one before, infinite for the first.
        gain: E[x0 | x] − MEAN over x − a·MEAN.
    """
    eps = (1 - a[0] * gain) / s[0]
    if solver == "ddim":  # Song et al. 2021, Eq. 12 without noise
        return [[a[1] * gain + s[1] * eps, 0], [gain, 0]], 0.0
    if solver == "ddpm":  # Ho et al. 2020, Eq. 11 and the variance of Eq. 7
        ratio = a[0] / a[1]
        beta = 1 - ratio**2
        return [[(1 - beta / s[0] * eps) / ratio, 0], [gain, 0]], (s[1] / s[0]) ** 2 * beta
    # Lu et al. 2022b: D = x0 + h/(2 h_before)·(x0 − x0_before)
    decay = (s[1] / a[1]) / (s[0] / a[0])  # e^−h
    noise = 0.0
    if solver == "sde_dpmpp_2m":
        noise, decay = s[1] ** 2 * (1 - decay**2), decay**2
    extrapolated = h / (2 * h_before)
    from_x0 = a[1] * (1 - decay)
    kept = decay * a[1] / a[0]
    row = [kept + from_x0 * (1 + extrapolated) * gain, -from_x0 * extrapolated]
    return [row, [gain, 0]], noise


def recursion(solver, times, std, informed=False):
    """(bias, spread ratio) of a run through `times` with the ideal denoiser of N(MEAN, std²)."""
    a, s = np.array([level(t) for t in times]).T
    lam = np.log(a / s)
    gain = a * std**2 / (a**2 * std**2 + s**2)
    mean = np.array([0.0 if informed else -a[0] * MEAN, 0.0])
    cov = np.diag([s[0] ** 2 if informed else 1.0, 0.0])
    for i in range(len(a) - 1):
        before = lam[i] - lam[i - 1] if i else math.inf
        matrix, noise = step(
            solver, a[i : i + 2], s[i : i + 2], lam[i + 1] - lam[i], before, gain[i]
        )
        m = np.array(matrix)
        mean, cov = m @ mean, m @ cov @ m.T
        cov[0, 0] += noise
    return gain[-1] * mean[0], gain[-1] * math.sqrt(cov[0, 0]) / std


@pytest.mark.parametrize("std", STDS)
@pytest.mark.parametrize("start_lam", [None, -2.0])
@pytest.mark.parametrize("solver", RECURSIONS)
@pytest.mark.parametrize(("steps", "grid"), [(5, "logsnr"), (20, "logsnr"), (57, "karras")])
def test_gaussian_run_is_the_recursion_of_the_method(solver, steps, grid, start_lam, std):
    plan = make_plan(SCHEDULE, solver, steps, grid, start_lam)
    informed = start_lam is not None
    run = analytic.gaussian_run(plan, std, informed=informed)
    bias, ratio = recursion(solver, plan.t, std, informed)
    assert run.spread_ratio == pytest.approx(ratio, rel=1e-10)
    assert run.bias == pytest.approx(bias, abs=1e-12)


def drawn_by_hand(plan, std, chains, informed):
    """Samples of N(MEAN, std²) by the formula in the docstring of `tadiff_rt.plan`, seed 5."""
    rng = np.random.default_rng(5)
    x = rng.standard_normal(chains)
    if informed:
        x = plan.alpha[0] * MEAN + plan.sigma[0] * x
    estimates = [np.zeros(chains)] * 3
    for row in plan.table:
        t, _, _, of_x, *of_x0, of_noise, _ = row
        alpha, sigma = level(t)
        gain = alpha * std**2 / (alpha**2 * std**2 + sigma**2)
        estimates = [MEAN + gain * (x - alpha * MEAN), *estimates[:3]]
        terms = [c * e for c, e in zip(of_x0, estimates, strict=True)]
        x = of_x * x + sum(terms) + of_noise * rng.standard_normal(chains)
    return x


@pytest.mark.parametrize(
    ("solver", "steps", "start_lam"),
    [("sde_dpmpp_2m", 10, -2.0), ("ddpm", 12, None), ("dpmpp_3m", 10, -2.0)],
)
def test_gaussian_run_is_what_many_chains_show(solver, steps, start_lam):
    """Mean and deviation of 200,000 chains within 5 standard errors: false alarm 6e-7 each."""
    chains, std, informed = 200_000, 0.2, start_lam is not None
    plan = make_plan(SCHEDULE, solver, steps, start_lam=start_lam)
    x = drawn_by_hand(plan, std, chains, informed)
    run = analytic.gaussian_run(plan, std, informed=informed)
    wide = run.spread_ratio * std
    assert x.mean() - MEAN == pytest.approx(run.bias, abs=5 * wide / math.sqrt(chains))
    assert x.std() == pytest.approx(wide, rel=5 / math.sqrt(2 * chains))


def mode_share(t, draws, informed):
    """Share of starts that the exact flow of the two modes takes into the upper one.

    In one dimension the flow is monotone: it keeps quantiles, and the lower mode holds the lowest
    MODE_WEIGHTS[0] of them (a share of 1e-9 lies beyond the middle between the modes).
    """
    alpha, sigma = level(t)
    means, weights = np.array(analytic.MODES), np.array(analytic.MODE_WEIGHTS)
    spread = math.hypot(alpha * analytic.MODE_STD, sigma)

    def below(x):
        return weights @ scipy.stats.norm.cdf((x - alpha * means) / spread) - weights[0]

    start = draws if not informed else alpha * (weights @ means) + sigma * draws
    return float((start > scipy.optimize.brentq(below, -10, 10)).mean())


@pytest.mark.parametrize("start_lam", [None, -2.0])
@pytest.mark.parametrize("seed", [0, 3])
def test_the_weight_of_a_mode_converges_to_that_of_the_exact_flow(seed, start_lam):
    """With the same starts, so that no chance is left: 5 of 10,000 chains."""
    plan = make_plan(SCHEDULE, "dpmpp_2m", 300, start_lam=start_lam)
    informed = start_lam is not None
    draws = normal(seed, 0, 0, 0, (analytic.CHAINS,)).astype(np.float64)
    expected = mode_share(plan.t[0], draws, informed)
    found = analytic.mode_weight(plan, seed, informed=informed)
    assert found == pytest.approx(expected, abs=5e-4)


@pytest.mark.parametrize("start_lam", [None, -1.0])
def test_the_denoiser_of_two_modes_is_that_of_the_mixture(start_lam, monkeypatch):
    """Wide modes and few steps, where every term of it decides where some chains end."""
    monkeypatch.setattr(analytic, "MODE_STD", 0.25)
    plan = make_plan(SCHEDULE, num_steps=4, start_lam=start_lam)
    informed = start_lam is not None
    x = normal(2, 0, 0, 0, (analytic.CHAINS,)).astype(np.float64)
    if informed:
        x = plan.alpha[0] * (0.3 * 0.2 + 0.7 * 0.8) + plan.sigma[0] * x
    means, weights = np.array([[0.2], [0.8]]), np.array([0.3, 0.7])
    x, _ = solve(mixture(means, weights, 0.25), x[:, None], plan)
    share = analytic.mode_weight(plan, 2, informed=informed)
    assert share == pytest.approx(float((x > 0.5).mean()), abs=1.5 / analytic.CHAINS)


def test_the_weight_of_a_mode_has_the_error_of_so_many_chains():
    """0.0046 over 40 seeds, the deviation within its chi-square interval at 1e-6.

    The threshold is then 4.3 standard errors off a bias below 0.0005: a sound plan fails for one
    seed in 60,000.
    """
    plan = make_plan(SCHEDULE)
    weights = np.array([analytic.mode_weight(plan, seed) for seed in range(40)])
    error = math.sqrt(0.3 * 0.7 / analytic.CHAINS)
    assert error == pytest.approx(0.0046, abs=5e-5)
    low, high = scipy.stats.chi2.ppf([5e-7, 1 - 5e-7], 39)
    assert low < ((weights - weights.mean()) ** 2).sum() / error**2 < high
    assert abs(weights.mean() - 0.7) < 5 * error / math.sqrt(40)
    assert abs(weights - 0.7).max() < report.MODE_ERROR
    assert report.MODE_ERROR / error > 4.3


@pytest.mark.parametrize("solver", ["sde_dpmpp_2m", "ddpm"])
def test_the_weight_of_a_mode_under_fresh_noise(solver):
    """0.7 within 0.02, 4.3 standard errors: false alarm 2e-5; noise used twice moves it."""
    plan = make_plan(SCHEDULE, solver, 150)
    assert analytic.mode_weight(plan, 4) == pytest.approx(0.7, abs=0.02)


def mask_error_by_hand(plan, train_steps=1000):
    t = np.arange(1, min(10, train_steps) + 1)
    weights = TABLE[t - 1] / TABLE[t - 1].sum()
    at = np.array([math.log(np.divide(*level(k))) for k in t])
    nodes = np.array([math.log(np.divide(*level(k))) for k in plan.t])
    worst = 0.0
    for c in np.linspace(at[-1], at[0], 101):
        published = sum(w * 4 * math.tanh(v - c) for w, v in zip(weights, at, strict=True))
        fused = sum(w * 4 * math.tanh(v - c) for w, v in zip(plan.mask_weight, nodes, strict=True))
        worst = max(worst, abs(1 / (1 + math.exp(-published)) - 1 / (1 + math.exp(-fused))))
    return worst


@pytest.mark.parametrize(
    ("steps", "grid"), [(6, "logsnr"), (20, "logsnr"), (20, "trailing"), (33, "karras")]
)
def test_the_mask_error_is_that_of_the_fused_logits(steps, grid):
    plan = make_plan(SCHEDULE, num_steps=steps, grid=grid)
    assert analytic.mask_error(plan, SCHEDULE) == pytest.approx(mask_error_by_hand(plan), rel=1e-9)


def test_the_published_run_has_no_mask_error_and_more_steps_have_less():
    """Linear interpolation: second order in the spacing, a factor of 4 where it is fine."""
    full = make_plan(SCHEDULE, num_steps=1000, grid="all")
    assert analytic.mask_error(full, SCHEDULE) < 1e-12
    errors = [
        analytic.mask_error(make_plan(SCHEDULE, num_steps=n), SCHEDULE) for n in (5, 20, 80, 320)
    ]
    ratios = np.divide(errors[:-1], errors[1:])
    assert (ratios > 6).all()
    assert errors[0] > 0.2


def test_the_mask_window_of_a_schedule_shorter_than_it():
    short = NoiseSchedule.linear(6, 0.01, 0.3)
    full = make_plan(short, num_steps=6, grid="all")
    assert analytic.mask_error(full, short) < 1e-12
    assert analytic.mask_error(make_plan(short, num_steps=2), short) > 0.01


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_has_its_order(solver):
    """Not a whole order more either, which a too small entry of ORDERS would look like."""
    observed = analytic.observed_order(SCHEDULE, solver)
    assert report.ORDERS[solver] - 0.2 <= observed < report.ORDERS[solver] + 1


def test_orders_are_those_of_the_solvers_there_are():
    assert set(report.ORDERS) == set(SOLVERS)


@pytest.mark.parametrize("solver", RECURSIONS)
def test_the_observed_order_is_the_slope_of_the_recursion(solver):
    errors = []
    for steps in (129, 257):
        times = SCHEDULE.levels(steps).t
        (first_alpha, first_sigma), (alpha, sigma) = level(times[0]), level(times[-1])
        exact = alpha * 0.3 / math.hypot(alpha * 0.3, sigma)
        if solver in ("ddim", "dpmpp_2m"):  # noise forgets that x_T was N(0, 1), a flow does not
            exact /= math.hypot(first_alpha * 0.3, first_sigma)
        errors.append(abs(recursion(solver, times, 0.3)[1] - exact))
    slope = math.log2(errors[0] / errors[1])
    assert analytic.observed_order(SCHEDULE, solver) == pytest.approx(slope, abs=1e-6)


def test_no_order_is_observed_on_a_schedule_with_too_few_timesteps():
    """257 are needed, and enough; `certify` does not ask below (see test_certify_cli)."""
    assert max(analytic.ORDER_STEPS) == 257
    order = report.order_check(NoiseSchedule.linear(257, 4e-4, 0.08), "dpmpp_2m", "logsnr")
    assert order.passed
    with pytest.raises(UsageError, match="TD3010"):
        report.order_check(NoiseSchedule.linear(256, 4e-4, 0.08), "dpmpp_2m", "logsnr")


# Levels, and what adds up in every row.

ETAS = {"ddim": (0.0, 0.5, 1.0)}
"""Shares of noise that a solver takes; 0 alone for the others."""


def level_error_by_hand(plan):
    worst = 0.0
    for t, alpha, sigma in zip(plan.t, plan.alpha, plan.sigma, strict=True):
        a, s = level(t)
        worst = max(worst, abs(alpha - a), abs(sigma - s))
    return worst


def consistency_error_by_hand(plan):
    """Every row of the table on x = alpha x0 + sigma eps, by the parts of x0 and of its noise."""
    worst = 0.0
    for i, row in enumerate(plan.table):
        _, alpha, sigma, of_x, *of_x0, of_noise, _ = map(float, row)
        last = i + 1 == plan.num_steps
        a, s = (1.0, 0.0) if last else (float(plan.alpha[i + 1]), float(plan.sigma[i + 1]))
        image = of_x * alpha
        for coefficient in of_x0:
            image += coefficient
        worst = max(worst, abs(image - a), abs((of_x * sigma) ** 2 + of_noise**2 - s**2))
    return worst


def plans_of(solver, grid):
    """Every plan on a grid, by steps, start, eta, ramp_down and round_times."""
    if (solver, grid) == ("dpmpp_2s", "all"):
        return  # there is no room for middles
    for start_lam, whole in ((None, 1000), (-2.0, 629)):
        counts = (whole,) if grid == "all" else (1, 2, 3, 4, 7, 20, 57)
        etas = ETAS.get(solver, (0.0,))
        for steps, eta, down, whole in itertools.product(counts, etas, *[(False, True)] * 2):
            how = {"eta": eta, "ramp_down": down, "round_times": whole}
            yield make_plan(SCHEDULE, solver, steps, grid, start_lam, **how)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_every_plan_is_on_its_levels_and_adds_up(solver, grid):
    """To rounding, which `ddpm` has more of: 1 − alpha²/alpha'² is up to 1e-5 for alpha near 1."""
    limit = 5e-12 if solver == "ddpm" else 1e-12
    for plan in plans_of(solver, grid):
        assert analytic.level_error(plan, SCHEDULE) < 1e-12
        assert level_error_by_hand(plan) < 1e-12
        assert analytic.consistency_error(plan) < limit
        assert consistency_error_by_hand(plan) < limit
    assert limit < report.ROUNDING / 100


@pytest.mark.parametrize("solver", SOLVERS)
def test_plans_at_given_times_are_on_their_levels_and_add_up(solver):
    rng = np.random.default_rng(3)
    for steps in (5, 8, 12):
        times = np.sort(rng.uniform(1, 1000, steps))[::-1]
        plan = plan_at(SCHEDULE, solver, times)
        assert analytic.level_error(plan, SCHEDULE) < 1e-12
        assert analytic.consistency_error(plan) < 1e-12


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_errors_of_broken_tables_are_those_of_loops(solver):
    """Every number of the table off by about 1, a thousandth or a millionth."""
    rng = np.random.default_rng(4)
    plan = make_plan(SCHEDULE, solver, 12)
    for size in (1.0, 1e-3, 1e-6):
        table = plan.table + size * rng.uniform(-1, 1, (12, 10))
        table[:, 0] = plan.t + size * rng.uniform(0, 1, 12) * ([-1] * 6 + [1] * 6)
        columns = dict(zip(COLUMNS[:-1], table.T[:-1], strict=True))
        broken = dataclasses.replace(plan, **columns)
        found = analytic.level_error(broken, SCHEDULE), analytic.consistency_error(broken)
        assert found[0] == pytest.approx(level_error_by_hand(broken), rel=1e-6)
        assert found[1] == pytest.approx(consistency_error_by_hand(broken), rel=1e-6)


@pytest.mark.parametrize("which", ["alpha", "sigma", "t"])
@pytest.mark.parametrize("row", [0, 9, 19])
@pytest.mark.parametrize("way", [-1, 1])
def test_a_level_is_compared_in_every_row_either_way(which, row, way):
    """Half a timestep of a thousand, or as little as 1e-6 of a level."""
    values = getattr(SOUND, which).copy()
    values[row] += way * (0.5 if which == "t" else 1e-6)
    if which == "t":
        values = values.clip(1, 1000)
    broken = dataclasses.replace(SOUND, **{which: values})
    moved = not np.array_equal(values, getattr(SOUND, which))
    assert (analytic.level_error(broken, SCHEDULE) > 1e-7) is moved


COEFFICIENTS = (*(name for name in COLUMNS if name.startswith("coef_")),)


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_coefficient_of_every_row_counts(solver):
    """1 % of any of them that is not 0 is noticed, up or down."""
    plan = make_plan(SCHEDULE, solver, 10)
    tried = 0
    for name, row, factor in itertools.product(COEFFICIENTS, range(10), (0.99, 1.01)):
        values = getattr(plan, name).copy()
        values[row] *= factor
        broken = dataclasses.replace(plan, **{name: values})
        if values[row] != 0:
            tried += 1
            assert analytic.consistency_error(broken) > 100 * report.ROUNDING, (name, row)
    assert tried >= 2 * (10 + 9)  # x0 in every row, x in all but the last


# Faults of whole plans.


def failed(checks):
    """Names of the checks that do not pass, without their numbers: "spread", "bias", ..."""
    return {check.what.split(",")[0].split(":")[0] for check in checks if not check.passed}


SOUND = make_plan(SCHEDULE)
DDPM = make_plan(SCHEDULE, "ddpm", 200)
SDE = make_plan(SCHEDULE, "sde_dpmpp_2m", 50)
BACK = np.maximum(SOUND.t - 1, 1)
NO_PREV = np.zeros(20)


def first_order_rows(eps_scaling=False):
    """coef_x and coef_x0 of first order; of ε instead, mistaken for x0, with `eps_scaling`."""
    a, s = SOUND.alpha, SOUND.sigma
    h = np.diff(np.log(a / s))
    if eps_scaling:
        return np.append(a[1:] / a[:-1], 0), np.append(-s[1:] * np.expm1(h), 1)
    return np.append(s[1:] / s[:-1], 0), np.append(-a[1:] * np.expm1(-h), 1)


def planted(fault):
    """A plan with one fault."""
    change = dataclasses.replace
    prev = SOUND.coef_x0_prev
    eps_x, eps_x0 = first_order_rows(eps_scaling=True)
    ends_at_50 = SCHEDULE.t_of_lam(np.linspace(SCHEDULE.lam(1000.0), SCHEDULE.lam(50.0), 20))
    back = np.sqrt(SCHEDULE.alpha_bar(BACK)), np.sqrt(1 - SCHEDULE.alpha_bar(BACK))
    plans = {
        "history of the other sign": lambda: change(
            SOUND, coef_x0=SOUND.coef_x0 + 2 * prev, coef_x0_prev=-prev
        ),
        "history alone of the other sign": lambda: change(SOUND, coef_x0_prev=-prev),
        "no history": lambda: change(SOUND, coef_x0=SOUND.coef_x0 + prev, coef_x0_prev=NO_PREV),
        "history forgotten": lambda: change(SOUND, coef_x0_prev=NO_PREV),
        "history one row too old": lambda: change(SOUND, coef_x0_prev=NO_PREV, coef_x0_prev2=prev),
        "x 1 % up": lambda: change(SOUND, coef_x=1.01 * SOUND.coef_x),
        "x 1 % down": lambda: change(SOUND, coef_x=0.99 * SOUND.coef_x),
        "x0 1 % up": lambda: change(SOUND, coef_x0=1.01 * SOUND.coef_x0),
        "x0 1 % down": lambda: change(SOUND, coef_x0=0.99 * SOUND.coef_x0),
        "history 1 % up": lambda: change(SOUND, coef_x0_prev=1.01 * prev),
        "alpha 1 % up": lambda: change(SOUND, alpha=1.01 * SOUND.alpha),
        "ddpm without noise": lambda: change(DDPM, coef_noise=0 * DDPM.coef_noise),
        "sde with 10 % more noise": lambda: change(SDE, coef_noise=1.1 * SDE.coef_noise),
        "ends at t = 50": lambda: plan_at(SCHEDULE, "dpmpp_2m", ends_at_50),
        "mask of the first row": lambda: change(SOUND, mask_weight=np.eye(20)[0]),
        "mask of the last row": lambda: change(SOUND, mask_weight=np.eye(20)[-1]),
        "mask one row early": lambda: change(SOUND, mask_weight=np.roll(SOUND.mask_weight, -1)),
        "level t - 1": lambda: change(SOUND, alpha=back[0], sigma=back[1]),
        "eps for x0": lambda: change(SOUND, coef_x=eps_x, coef_x0=eps_x0, coef_x0_prev=NO_PREV),
        "alpha for sigma": lambda: change(SOUND, alpha=SOUND.sigma, sigma=SOUND.alpha),
        "times one early": lambda: change(SOUND, t=BACK),
        "times one row late": lambda: change(SOUND, t=np.append(1000.0, SOUND.t[:-1])),
        "sigma 1 % up": lambda: change(SOUND, sigma=1.01 * SOUND.sigma),
        "sigma a millionth up": lambda: change(SOUND, sigma=(1 + 1e-6) * SOUND.sigma),
        "ddpm with 5 % more noise": lambda: change(DDPM, coef_noise=1.05 * DDPM.coef_noise),
        "sde with 5 % more noise": lambda: change(SDE, coef_noise=1.05 * SDE.coef_noise),
        "sde with 5 % less noise": lambda: change(SDE, coef_noise=0.95 * SDE.coef_noise),
        "returns x": lambda: change(
            SOUND, coef_x=np.append(SOUND.coef_x[:-1], 1), coef_x0=np.append(SOUND.coef_x0[:-1], 0)
        ),
        "trailing": lambda: make_plan(SCHEDULE, grid="trailing"),
        "linspace": lambda: make_plan(SCHEDULE, grid="linspace"),
        "a first guess that is not given": lambda: make_plan(SCHEDULE, start_lam=-2.0),
        "ddim": lambda: make_plan(SCHEDULE, "ddim"),
        "5 steps": lambda: make_plan(SCHEDULE, num_steps=5),
        "a schedule rebuilt for 20 steps": lambda: make_plan(NoiseSchedule.linear(20)),
    }
    return plans[fault]()


SPREAD, BIAS, MODES, MASK, LEVELS, ROWS = "spread", "bias", "two modes", "mask", "levels", "rows"

CATCHES = {
    "history of the other sign": {SPREAD, MODES},
    "history alone of the other sign": {SPREAD, BIAS, MODES, ROWS},
    "no history": {SPREAD},
    "history forgotten": {SPREAD, BIAS, MODES, ROWS},
    "history one row too old": {SPREAD},
    "x 1 % up": {SPREAD, BIAS, ROWS},
    "x 1 % down": {SPREAD, BIAS, ROWS},
    "x0 1 % up": {SPREAD, BIAS, ROWS},
    "x0 1 % down": {BIAS, ROWS},
    "history 1 % up": {BIAS, ROWS},
    "alpha 1 % up": {BIAS, LEVELS, ROWS},
    "ddpm without noise": {SPREAD, MODES, ROWS},
    "sde with 10 % more noise": {SPREAD, ROWS},
    "ends at t = 50": {SPREAD, MASK},
    "mask of the first row": {MASK},
    "mask of the last row": {MASK},
    "mask one row early": {MASK},
    "level t - 1": {MASK, LEVELS, ROWS},
    "eps for x0": {SPREAD, BIAS, MODES, ROWS},
    "alpha for sigma": {SPREAD, MODES, MASK, LEVELS, ROWS},
    "times one early": {LEVELS},
    "times one row late": {LEVELS},
    "sigma 1 % up": {LEVELS},
    "sigma a millionth up": {LEVELS},
    "ddpm with 5 % more noise": {ROWS},
    "sde with 5 % more noise": {ROWS},
    "sde with 5 % less noise": {SPREAD, MODES, ROWS},
    "returns x": {ROWS},
    "trailing": {SPREAD, MASK},
    "linspace": {SPREAD, MASK},
    "a first guess that is not given": {BIAS, MODES},
    "ddim": {SPREAD},
    "5 steps": {SPREAD, MODES, MASK},
    "a schedule rebuilt for 20 steps": {SPREAD, BIAS, MODES, MASK, LEVELS},
}
"""Fault -> the checks that it fails, no more and no fewer."""


@pytest.mark.parametrize("fault", CATCHES)
def test_a_faulty_plan_fails_by_name(fault):
    checks = report.analytic_checks(planted(fault), SCHEDULE, informed=False)
    assert failed(checks) == CATCHES[fault]


@pytest.mark.parametrize("factor", [0.99, 1.01])
@pytest.mark.parametrize("name", ["coef_x", "coef_x0", "coef_x0_prev"])
def test_a_fault_in_one_coefficient_of_one_row_fails_by_name(name, factor):
    rows = np.flatnonzero(getattr(SOUND, name))
    assert len(rows) >= 18
    for row in rows:
        values = getattr(SOUND, name).copy()
        values[row] *= factor
        checks = report.analytic_checks(
            dataclasses.replace(SOUND, **{name: values}), SCHEDULE, informed=False
        )
        assert ROWS in failed(checks), row


@pytest.mark.parametrize("row", range(19))
@pytest.mark.parametrize("whole", [True, False])
def test_two_rows_exchanged_fail_by_name(row, whole):
    """With their levels, or their coefficients alone."""
    order = np.arange(20)
    order[[row, row + 1]] = row + 1, row
    names = COLUMNS if whole else COEFFICIENTS
    changed = {name: getattr(SOUND, name)[order] for name in names}
    checks = report.analytic_checks(
        dataclasses.replace(SOUND, **changed), SCHEDULE, informed=False
    )
    assert ROWS in failed(checks)


@pytest.mark.parametrize("steps", [10, 20])
@pytest.mark.parametrize("start_lam", [None, -2.0])
@pytest.mark.parametrize("round_times", [False, True])
def test_the_default_passes(steps, start_lam, round_times):
    plan = make_plan(SCHEDULE, num_steps=steps, start_lam=start_lam, round_times=round_times)
    checks = report.analytic_checks(plan, SCHEDULE, informed=start_lam is not None)
    assert failed(checks) == set()
    assert len(checks) == 12


@pytest.mark.parametrize("plan", [SDE, DDPM], ids=["sde", "ddpm"])
def test_the_other_plans_that_faults_are_planted_in_pass(plan):
    assert failed(report.analytic_checks(plan, SCHEDULE, informed=False)) == set()


def without_history(schedule, solver, steps, grid):
    plan = make_plan(schedule, solver, steps, grid)
    zero = 0 * plan.coef_x0_prev
    return dataclasses.replace(plan, coef_x0=plan.coef_x0 + plan.coef_x0_prev, coef_x0_prev=zero)


@pytest.mark.parametrize("solver", ["dpmpp_2m", "sde_dpmpp_2m", "dpmpp_3m", "unipc_2"])
def test_an_order_that_is_lost_is_noticed(solver, monkeypatch):
    assert report.order_check(SCHEDULE, solver, "logsnr").passed
    monkeypatch.setattr(analytic, "make_plan", without_history)
    check = report.order_check(SCHEDULE, solver, "logsnr")
    assert not check.passed
    assert check.value < report.ORDERS[solver] - 0.5
    assert check.what == "order of convergence"


def test_the_published_3m_would_fail_as_third_order(monkeypatch):
    monkeypatch.setitem(report.ORDERS, "dpmpp_3m_parity", 3)
    assert not report.order_check(SCHEDULE, "dpmpp_3m_parity", "logsnr").passed


# Thresholds, at their edges.


def measured(
    monkeypatch, *, ratio=1.0, bias=0.0, at=0.1, mode=0.0, mask=0.0, levels=0.0, rows=0.0
):
    """Names of the failed checks where the measurements give these, for the Gaussian `at`."""

    def run(plan, std, informed):
        return GaussianRun(bias, ratio) if std == at else GaussianRun(0.0, 1.0)

    replaced = SimpleNamespace(
        gaussian_run=run,
        mode_weight=lambda plan, informed: 0.7 + mode,
        mask_error=lambda plan, schedule: mask,
        level_error=lambda plan, schedule: levels,
        consistency_error=lambda plan: rows,
        STANDARD_DEVIATIONS=analytic.STANDARD_DEVIATIONS,
        MODE_WEIGHTS=analytic.MODE_WEIGHTS,
    )
    monkeypatch.setattr(report, "analytic", replaced)
    checks = report.analytic_checks(SOUND, SCHEDULE, informed=False)
    return [check.what for check in checks if not check.passed]


def up(value):
    return math.nextafter(value, math.inf)


def down(value):
    return math.nextafter(value, -math.inf)


@pytest.mark.parametrize("std", STDS)
@pytest.mark.parametrize(
    ("name", "field", "good", "bad"),
    [
        ("spread", "ratio", 0.95, down(0.95)),
        ("spread", "ratio", 1.08, up(1.08)),
        ("spread", "ratio", 1.0, math.nan),
        ("spread", "ratio", 1.0, math.inf),
        ("bias", "bias", 0.005, up(0.005)),
        ("bias", "bias", -0.005, down(-0.005)),
        ("bias", "bias", 0.0, math.nan),
    ],
)
def test_spread_and_bias_at_the_edge(name, field, good, bad, std, monkeypatch):
    assert measured(monkeypatch, at=std, **{field: good}) == []
    (what,) = measured(monkeypatch, at=std, **{field: bad})
    assert what.startswith(f"{name}, Gaussian of std {std:g}")


@pytest.mark.parametrize(
    ("name", "field", "good", "bad"),
    [
        ("two modes: error of a weight", "mode", 0.02 - 1e-12, 0.02 + 1e-12),
        ("two modes: error of a weight", "mode", -0.02 + 1e-12, -0.02 - 1e-12),
        ("two modes: error of a weight", "mode", 0.0, math.nan),
        ("mask: error of a probability", "mask", 0.05, up(0.05)),
        ("mask: error of a probability", "mask", 0.0, math.nan),
        ("levels: error at the network's times", "levels", 1e-9, up(1e-9)),
        ("levels: error at the network's times", "levels", 0.0, math.nan),
        ("rows: error for a known image", "rows", 1e-9, up(1e-9)),
        ("rows: error for a known image", "rows", 0.0, math.nan),
    ],
)
def test_the_other_checks_at_the_edge(name, field, good, bad, monkeypatch):
    assert measured(monkeypatch, **{field: good}) == []
    assert measured(monkeypatch, **{field: bad}) == [name]


@pytest.mark.parametrize("solver", SOLVERS)
def test_order_at_the_edge(solver, monkeypatch):
    least = report.ORDERS[solver] - 0.2
    for value, passed in ((least, True), (down(least), False), (math.nan, False)):
        monkeypatch.setattr(analytic, "observed_order", lambda *run, value=value: value)
        check = report.order_check(SCHEDULE, solver, "logsnr")
        assert (check.passed, check.demanded) == (passed, f"at least {least:g}")


SAME = Distance(mean=0, spread=0, spread_ratio=1, probability=0, dice=1, volume=0)
FLOOR = Distance(mean=0.04, spread=0.03, spread_ratio=1, probability=0.02, dice=0.9, volume=0.3)


@pytest.mark.parametrize(
    ("name", "field", "good", "bad"),
    [
        ("mean image", "mean", 0.04, up(0.04)),
        ("mean image", "mean", 0.0, math.nan),
        ("spread ratio", "spread_ratio", 0.9, down(0.9)),
        ("spread ratio", "spread_ratio", 1.1, up(1.1)),
        ("spread ratio", "spread_ratio", 1.0, math.nan),
        ("probability", "probability", 0.02, up(0.02)),
        ("1 - Dice", "dice", 0.9, down(0.9)),
        ("volume", "volume", 0.3, up(0.3)),
    ],
)
def test_the_network_at_the_edge(name, field, good, bad):
    for value, expected in ((good, []), (bad, [name])):
        assert failed_network({field: value}, FLOOR, paired=True) == expected


def failed_network(changes, floor, *, paired):
    """Names of the failed checks of a plan that is at no distance but for `changes`."""
    plan = dataclasses.replace(SAME, **changes)
    checks = report.network_checks(NetworkCertificate(plan, floor, 8, 4, paired))
    names = [check.what.removeprefix("network, 8 samples, 4 slices: ") for check in checks]
    assert names == ["mean image", "spread ratio", "probability", "1 - Dice", "volume"]
    return [name for name, check in zip(names, checks, strict=True) if not check.passed]


@pytest.mark.parametrize(
    ("name", "field", "good", "bad"),
    [
        ("mean image", "mean", 1.5 * 0.04, up(1.5 * 0.04)),
        ("mean image", "mean", 0.0, math.nan),
        ("spread ratio", "spread_ratio", 0.9, 0.9 - 1e-12),
        ("spread ratio", "spread_ratio", 1.1, 1.1 + 1e-12),
        ("spread ratio", "spread_ratio", 1.0, math.nan),
        ("probability", "probability", 1.5 * 0.02, up(1.5 * 0.02)),
        ("1 - Dice", "dice", 0.85 + 1e-12, 0.85 - 1e-12),
        ("volume", "volume", 1.5 * 0.3, up(1.5 * 0.3)),
    ],
)
def test_the_network_at_the_edge_under_other_noise(name, field, good, bad):
    """1.5 times as far as other noise, for runs that cannot have the same."""
    for value, expected in ((good, []), (bad, [name])):
        assert failed_network({field: value}, FLOOR, paired=False) == expected
    if field != "spread_ratio" and not math.isnan(bad):
        assert failed_network({field: good}, FLOOR, paired=True) == [name]


@pytest.mark.parametrize("ratio", [0.96, 1.04])
def test_the_spread_may_differ_more_where_that_of_other_noise_does(ratio):
    """By 1.5 · 0.04 = 0.06 either way, without the same noise; by nothing more with it."""
    floor = dataclasses.replace(FLOOR, spread_ratio=ratio)
    for paired, low, high in ((False, 0.84, 1.16), (True, 0.9, 1.1)):
        for value, expected in (
            (low + 1e-9, []),
            (low - 1e-9, ["spread ratio"]),
            (high - 1e-9, []),
            (high + 1e-9, ["spread ratio"]),
        ):
            assert failed_network({"spread_ratio": value}, floor, paired=paired) == expected


@pytest.mark.parametrize("paired", [True, False])
def test_the_volume_may_always_differ_by_a_fiftieth(paired):
    floor = dataclasses.replace(FLOOR, volume=0.001)
    assert failed_network({"volume": 0.02}, floor, paired=paired) == []
    assert failed_network({"volume": up(0.02)}, floor, paired=paired) == ["volume"]


@pytest.mark.parametrize(
    ("paired", "limit", "source"),
    [(True, "0.04", "other noise"), (False, "0.06", "1.5 x other noise")],
)
def test_a_certificate_says_which_noise_is_the_limit(paired, limit, source):
    mean, *_ = report.network_checks(NetworkCertificate(SAME, FLOOR, 8, 4, paired))
    assert mean.demanded == f"at most {limit} ({source})"


# What people and programs read.


def certificate(plan, **fields):
    checks = report.analytic_checks(plan, SCHEDULE, informed=False)
    return report.Certificate(plan.solver, plan.grid, plan.num_steps, checks, **fields)


def test_a_certificate_as_text():
    good = certificate(SOUND, notes=("measured on a Tuesday",)).as_text().splitlines()
    assert good[0] == "dpmpp_2m, 20 steps, grid logsnr"
    assert good[-1] == "the plan passes"
    assert good[-3] == "note: measured on a Tuesday"
    assert sum(line.startswith("ok    ") for line in good) == 12
    bad = certificate(planted("trailing")).as_text().splitlines()
    assert bad[-1] == "the plan FAILS"
    first = next(line for line in bad if line.startswith("FAIL"))
    assert " ".join(first.split()) == (
        "FAIL spread, Gaussian of std 0.05: sampled / true 0.2768 0.95 to 1.08"
    )
    numbers = [
        re.search(r" (-?\d+\.\d{4})  ", line) for line in bad if line[:4] in ("ok  ", "FAIL")
    ]
    assert len({number.end() for number in numbers}) == 1  # below each other


@pytest.mark.parametrize(("fault", "passed"), [(None, True), ("mask of the first row", False)])
def test_a_certificate_as_json(fault, passed):
    made = certificate(planted(fault) if fault else SOUND, notes=("a note",))
    assert made.passed is passed
    read = json.loads(json.dumps(made.as_dict(), allow_nan=False))
    assert read.keys() == {"solver", "grid", "steps", "passed", "checks", "notes"}
    assert (read["passed"], read["notes"], read["steps"]) == (passed, ["a note"], 20)
    assert read["checks"][-1].keys() == {"what", "value", "demanded", "passed"}
    assert [check["passed"] for check in read["checks"]] == [c.passed for c in made.checks]
