"""Every solver converges at the order it states; float64 throughout.

Three problems with known solutions. The flow of a Gaussian is closed form but flatters: local
errors of odd order cancel over a run from pure noise to clean data. The flow of a mixture is
nonlinear in x; its solution comes from scipy. A denoiser whose x0 depends on λ alone makes of
every solver a quadrature rule.

Orders on the mixture: 1 for "dpmpp_1" and "ddim", 2 for "dpmpp_2m" and "dpmpp_2s", 3 for
"dpmpp_3m", and 2, not 3, for "dpmpp_3m_parity", whose quadratic term has half its weight.
"unipc_p" has order p + 1, that of its corrector: what the last prediction adds is a local error
of the same order. The first step of a multistep method has no history. Its local error, of order
2, or 3 with the corrector, does not show where a run starts in noise, because x0 hardly changes
there; from an informed start it bounds the order of the whole run.
"""

import itertools
import math

import numpy as np
import pytest
import scipy.integrate

from tadiff_rt.solvers import SOLVERS, SolverPlan, make_plan, plan_at, solve
from tests.rt.analytic import (
    MEAN,
    SCHEDULE,
    TABLE,
    flow,
    flow_x0,
    gaussian,
    lam,
    level,
    mixture,
    spread,
)

ORDERS = {
    "dpmpp_1": 1,
    "ddim": 1,
    "dpmpp_2m": 2,
    "dpmpp_2s": 2,
    "dpmpp_3m": 3,
    "dpmpp_3m_parity": 2,
    "unipc_2": 3,
    "unipc_3": 4,
}
COUNTS = (65, 129, 257, 513)
"""Evaluations; T … 1 is cut into one less."""
Z = np.linspace(-2, 2, 9)


def slopes(errors) -> list[float]:
    """Observed order between neighbours of a list of errors, steps halved from one to the next."""
    return [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]


def run_rows(plan: SolverPlan, first: int, x, history, denoise, last: int | None = None):
    """Rows `first` … `last` − 1 of a table, from the x and the estimates of x0 at that level."""
    columns = (plan.coef_x0, plan.coef_x0_prev, plan.coef_x0_prev2, plan.coef_x0_prev3)
    estimates = list(history)
    for i in range(first, plan.num_steps if last is None else last):
        eps, _ = denoise(x, plan.t[i], i)
        estimates.append((x - plan.sigma[i] * eps) / plan.alpha[i])
        terms = zip(columns, reversed(estimates), strict=False)
        x = plan.coef_x[i] * x + sum(column[i] * x0 for column, x0 in terms)
    return x


def test_every_deterministic_solver_has_an_order():
    assert set(SOLVERS) == {*ORDERS, "ddpm", "sde_dpmpp_2m"}


@pytest.fixture(scope="module")
def bimodal():
    """(denoiser, x_T, exact result) on the flow of a mixture: d(x/sigma)/dλ = e^λ x0."""
    denoise = mixture(np.array([[0.2], [0.8]]), np.array([0.3, 0.7]), 0.2)
    x_T = np.array([[-1.5], [-0.8], [0.3], [1.4]])
    log_a = np.log(TABLE)

    def slope(half_log_snr, scaled):
        minus_log_a = np.logaddexp(0, -2 * half_log_snr)
        t = min(max(np.interp(minus_log_a, -log_a, np.arange(1, 1001)), 1.0), 1000.0)
        alpha, sigma = level(t)
        x = sigma * scaled[:, None]
        return math.exp(half_log_snr) * ((x - sigma * denoise(x, t, 0)[0]) / alpha)[:, 0]

    exact = scipy.integrate.solve_ivp(
        slope,
        (lam(1000), lam(1)),
        x_T[:, 0] / level(1000)[1],
        method="DOP853",
        rtol=1e-11,
        atol=1e-12,
    )
    alpha, sigma = level(1)
    x = sigma * exact.y[:, -1:]
    return denoise, x_T, (x - sigma * denoise(x, 1.0, 0)[0]) / alpha


@pytest.mark.parametrize("solver", ORDERS)
def test_order_on_the_flow_of_a_mixture(solver, bimodal):
    denoise, x_T, exact = bimodal
    errors = []
    for n in COUNTS:
        image, _ = solve(denoise, x_T, make_plan(SCHEDULE, solver, n))
        errors.append(np.abs(image - exact).max())
    assert slopes(errors)[-1] == pytest.approx(ORDERS[solver], abs=0.1), f"errors {errors}"


def gaussian_errors(solver, counts, std=0.3, start_lam=None) -> list[float]:
    """Errors on the exact flow of a Gaussian, from its exact state at the first level."""
    errors = []
    for n in counts:
        plan = make_plan(SCHEDULE, solver, n, start_lam=start_lam)
        image, _ = solve(gaussian(MEAN, std), flow(plan.t[0], std, Z), plan)
        errors.append(np.abs(image - flow_x0(1, std, Z)).max())
    return errors


@pytest.mark.parametrize("solver", sorted(ORDERS.keys() - {"dpmpp_3m"}))
def test_order_on_the_flow_of_a_gaussian(solver):
    errors = gaussian_errors(solver, COUNTS)
    assert slopes(errors)[-1] == pytest.approx(ORDERS[solver], abs=0.1), f"errors {errors}"


def test_third_order_on_the_flow_of_a_gaussian_looks_like_more():
    """Errors h³ x0''' with weight x0 add up to boundary terms, which vanish at noise and at data.

    With f the slope of x0 in z, the sum is that of f·f''' and integrates to f·f'' − f'²/2.
    """
    errors = gaussian_errors("dpmpp_3m", COUNTS)
    assert min(slopes(errors)) >= 2.8, f"errors {errors}"


@pytest.mark.parametrize(
    ("solver", "order"), [("dpmpp_2m", 2), ("dpmpp_3m", 2), ("unipc_2", 3), ("unipc_3", 3)]
)
def test_first_step_bounds_the_order_from_an_informed_start(solver, order):
    """From λ = 0 x0 changes at once: what a first step without history misses stays."""
    errors = gaussian_errors(solver, (33, 65, 129, 257), std=0.8, start_lam=0.0)
    assert slopes(errors)[-1] == pytest.approx(order, abs=0.1), f"errors {errors}"


@pytest.mark.parametrize("solver", ["dpmpp_2m", "dpmpp_3m", "unipc_2", "unipc_3"])
def test_exact_history_restores_the_order_from_an_informed_start(solver):
    std, errors = 0.8, []
    for n in (33, 65, 129, 257):
        plan = make_plan(SCHEDULE, solver, n, start_lam=0.0)
        history = [flow_x0(t, std, Z) for t in plan.t[:3]]
        image = run_rows(plan, 3, flow(plan.t[3], std, Z), history, gaussian(MEAN, std))
        errors.append(np.abs(image - flow_x0(1, std, Z)).max())
    assert slopes(errors)[-1] == pytest.approx(ORDERS[solver], abs=0.2), f"errors {errors}"


@pytest.mark.parametrize(
    "solver", ["dpmpp_1", "ddim", "dpmpp_2m", "dpmpp_2s", "dpmpp_3m", "dpmpp_3m_parity"]
)
def test_error_of_one_step_is_of_one_order_more(solver):
    """From λ = −1, exact history; a step of "dpmpp_2s" is two rows and its middle."""
    std, errors = 0.3, []
    single = solver == "dpmpp_2s"
    first, last = (0, 2) if single else (3, 4)
    for h in (0.05, 0.025, 0.0125):
        lams = -1 + (h / 2 * np.arange(6) if single else h * np.arange(-3, 3))
        plan = plan_at(SCHEDULE, solver, SCHEDULE.t_of_lam(lams))
        history = [flow_x0(t, std, Z) for t in plan.t[:first]]
        x = run_rows(plan, first, flow(plan.t[first], std, Z), history, gaussian(MEAN, std), last)
        errors.append(np.abs(x - flow(plan.t[last], std, Z)).max())
    assert slopes(errors)[-1] == pytest.approx(ORDERS[solver] + 1, abs=0.1), f"errors {errors}"


@pytest.mark.parametrize(("solver", "order"), [("dpmpp_2s", 2), ("dpmpp_3m", 3), ("unipc_2", 3)])
def test_order_of_the_quadrature_of_a_wave(solver, order):
    """x0 = sin λ: x/sigma grows by ∫ e^λ sin λ dλ = e^λ (sin λ − cos λ)/2. x of t = 1 is read."""

    def integral(t):
        return math.exp(lam(t)) * (math.sin(lam(t)) - math.cos(lam(t))) / 2

    x_T, errors = np.array([0.3, -1.0]), []
    exact = level(1)[1] * (x_T / level(1000)[1] + integral(1) - integral(1000))
    for n in COUNTS:
        x_1 = np.empty(2)

        def denoise(x, t, i, x_1=x_1):
            x_1[:] = x
            alpha, sigma = level(t)
            return (x - alpha * math.sin(lam(t))) / sigma, None

        solve(denoise, x_T, make_plan(SCHEDULE, solver, n))
        errors.append(np.abs(x_1 - exact).max())
    assert slopes(errors)[-1] == pytest.approx(order, abs=0.1), f"errors {errors}"


@pytest.mark.parametrize("h", [1e-3, 0.1, 0.999, 1.001, 2.2])  # series of the moments up to 1
@pytest.mark.parametrize("solver", ["dpmpp_3m", "unipc_3"])
@pytest.mark.parametrize("power", [0, 1, 2])
def test_third_order_rows_integrate_quadratics_exactly(solver, h, power):
    """(x' − (sigma'/sigma)·x) / alpha' = ∫ e^{μ−λ'} μ^k dμ, by adaptive quadrature."""
    lams = -4.4 + h * np.array([0, 1.3, 2.1, 3.0, 4.0])  # uneven
    plan = plan_at(SCHEDULE, solver, SCHEDULE.t_of_lam(lams))
    columns = (plan.coef_x0, plan.coef_x0_prev, plan.coef_x0_prev2, plan.coef_x0_prev3)
    weights = np.array([column[3] for column in columns]) / plan.alpha[4]
    values = (lams[3::-1] + 4.4) ** power
    exact, _ = scipy.integrate.quad(
        lambda mu: math.exp(mu - lams[4]) * (mu + 4.4) ** power, lams[3], lams[4], epsabs=0
    )
    # Weights of either sign and size 1/h cancel: the noise is that of their absolute sum.
    noise = 1e-11 * np.abs(weights * values).sum()
    assert weights @ values == pytest.approx(exact, rel=0, abs=noise)


@pytest.mark.parametrize(
    ("solver", "eta", "order"),
    [("sde_dpmpp_2m", 0, 2), ("ddpm", 0, 1), ("ddim", 0.5, 1), ("ddim", 1, 1)],
)
@pytest.mark.parametrize("start_lam", [None, 0.0])
def test_weak_order_of_solvers_that_draw_noise(solver, eta, order, start_lam):
    """Spread of the result for Gaussian data, by the exact affine recursion: nothing is drawn."""
    std, errors = 0.3, []
    for n in (33, 65, 129, 257):
        plan = make_plan(SCHEDULE, solver, n, start_lam=start_lam, eta=eta)
        _, ratio = spread(plan, std, informed=start_lam is not None)
        errors.append(abs(ratio * std - (flow_x0(1, std, 1.0) - MEAN)))
    assert slopes(errors)[-1] == pytest.approx(order, abs=0.1), f"errors {errors}"


@pytest.mark.parametrize(("solver", "eta"), [("sde_dpmpp_2m", 0), ("ddpm", 0), ("ddim", 1)])
@pytest.mark.parametrize("n", [1, 2, 3, 7, 20])
@pytest.mark.parametrize("start_lam", [None, 0.0])
def test_mean_of_solvers_of_the_reverse_process_is_exact(solver, eta, n, start_lam):
    """E[x0 | x] is a martingale of the reverse process: E[result | x_start] = E[x0 | x_start].

    For Gaussian data each step keeps it exactly, however few there are.
    """
    std, (x, one) = 0.3, np.eye(2)
    plan = make_plan(SCHEDULE, solver, n, start_lam=start_lam, eta=eta)
    mean, _ = solve(gaussian(MEAN * one, std), x, plan, lambda i: np.zeros(2))
    alpha, sigma = level(plan.t[0])
    gain = alpha * std**2 / (alpha**2 * std**2 + sigma**2)
    np.testing.assert_allclose(mean, [gain, MEAN * (1 - gain * alpha)], rtol=0, atol=1e-12)
