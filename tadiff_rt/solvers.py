"""Samplers: which levels and coefficients make a run, and the one loop that executes any table."""

import sys
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from tadiff_rt import coefficients
from tadiff_rt.coefficients import Path, Rows
from tadiff_rt.errors import NumericsError, UsageError
from tadiff_rt.plan import COLUMNS, MASK_WINDOW, SolverPlan, mask_weights
from tadiff_rt.schedule import Levels, NoiseSchedule

__all__ = [
    "COLUMNS",
    "MASK_WINDOW",
    "SOLVERS",
    "STOCHASTIC",
    "SolverPlan",
    "make_plan",
    "mask_weights",
    "noised",
    "plan_at",
    "solve",
]

Array: TypeAlias = Any
"""A numpy array or a torch tensor of floating point numbers."""

Denoise: TypeAlias = Callable[[Array, float, int], tuple[Array, Array | None]]
"""`(x, t, i) -> (eps, mask_logits)`: the network at one-based time t, row i. x is overwritten
after the call returns."""

_METHODS: dict[str, Callable[[Path, float], Rows]] = {
    "dpmpp_2m": lambda path, eta: coefficients.dpmpp_multistep(path, 2),
    "dpmpp_1": lambda path, eta: coefficients.dpmpp_multistep(path, 1),
    "dpmpp_2s": lambda path, eta: coefficients.dpmpp_2s(path),
    "dpmpp_3m": lambda path, eta: coefficients.dpmpp_3m(path),
    "dpmpp_3m_parity": lambda path, eta: coefficients.dpmpp_3m_parity(path),
    "unipc_2": lambda path, eta: coefficients.unipc(path, 2),
    "unipc_3": lambda path, eta: coefficients.unipc(path, 3),
    "ddim": coefficients.ddim,
    "sde_dpmpp_2m": lambda path, eta: coefficients.sde_dpmpp_2m(path),
    "ddpm": lambda path, eta: coefficients.ddpm(path),
}

SOLVERS = tuple(_METHODS)

STOCHASTIC = ("sde_dpmpp_2m", "ddpm")
"""Those that draw noise in every row; "ddim" does with eta alone."""


def make_plan(
    schedule: NoiseSchedule,
    solver: str = "dpmpp_2m",
    num_steps: int = 20,
    grid: str = "logsnr",
    start_lam: float | None = None,
    *,
    eta: float = 0.0,
    ramp_down: bool = False,
    round_times: bool = False,
) -> SolverPlan:
    """The table of `solver` for `num_steps` evaluations on the trained schedule.

    Args:
        schedule: of the checkpoint; never rebuilt for fewer steps.
        solver: one of SOLVERS. "dpmpp_2m", "dpmpp_1", "dpmpp_2s", "dpmpp_3m", "unipc_2",
            "unipc_3" and "ddim" are deterministic, "sde_dpmpp_2m" and "ddpm" draw noise ("ddpm"
            is the published loop when `grid` is "all"). "dpmpp_3m_parity" is for comparison.
        num_steps: 1 … T; network evaluations, of the two-stage "dpmpp_2s" too.
        grid: see `NoiseSchedule.levels`. The middles of "dpmpp_2s" lie even in λ between levels.
        start_lam: half log-SNR at which the run starts, from `noised` instead of pure noise.
        eta: of "ddim" alone: share of fresh noise, 0 for none, 1 for as much as "ddpm".
        ramp_down: the order falls towards the end of the run; see `coefficients.Path`.
        round_times: visit whole times only; see `NoiseSchedule.levels`.

    Raises:
        UsageError: an argument is out of range (TD3010, TD3042, TD3047), or no such grid (TD3041)
            or solver (TD3042).
    """
    _check_solver(solver, eta)
    if solver == "dpmpp_2s":
        levels = _with_middles(schedule, num_steps, grid, start_lam, round_times)
    else:
        levels = schedule.levels(num_steps, grid, start_lam, round_times=round_times)
    return _plan(schedule, solver, levels, grid, eta, ramp_down)


def plan_at(
    schedule: NoiseSchedule,
    solver: str,
    times: ArrayLike,
    *,
    grid: str = "given",
    eta: float = 0.0,
    ramp_down: bool = False,
) -> SolverPlan:
    """The table of `solver` for evaluations at given one-based times, noisiest first.

    Args:
        times: fall strictly in [1, T]; may be fractional. For "dpmpp_2s" every second one is the
            middle of a step.
        grid: what the result calls them.

    Raises:
        UsageError: the times do not fall so (TD3045), or `solver` or `eta` is unknown (TD3042).
    """
    _check_solver(solver, eta)
    return _plan(schedule, solver, schedule.levels_at(times), grid, eta, ramp_down)


def _check_solver(solver: str, eta: float) -> None:
    if solver not in _METHODS:
        raise UsageError("TD3042", f"solver must be one of {', '.join(SOLVERS)}, got {solver!r}")
    if not 0 <= eta <= (1 if solver == "ddim" else 0):
        raise UsageError(
            "TD3042",
            f"eta must be in 0 to 1 for 'ddim' and 0 for others, got {eta} for {solver!r}",
        )


def _plan(
    schedule: NoiseSchedule, solver: str, levels: Levels, grid: str, eta: float, ramp_down: bool
) -> SolverPlan:
    rows = _METHODS[solver](Path.along(levels, ramp_down), eta)
    columns = (levels.t, levels.alpha, levels.sigma, *rows.T, mask_weights(schedule, levels))
    return SolverPlan(
        **{name: np.array(column) for name, column in zip(COLUMNS, columns, strict=True)},
        solver=solver,
        grid=grid,
    )


def _with_middles(
    schedule: NoiseSchedule,
    num_steps: int,
    grid: str,
    start_lam: float | None,
    round_times: bool,
) -> Levels:
    """Levels of `num_steps` evaluations, two a step: begin, middle, begin, middle, …, end.

    An even `num_steps` leaves no middle for the last step.
    """
    if grid == "all":
        what = "dpmpp_2s puts middles between levels, and the grid 'all' leaves no room for them"
        raise UsageError("TD3041", what, fix="use another solver on this grid")
    schedule.levels(num_steps, grid, start_lam)  # refuses more evaluations than timesteps
    ends = schedule.levels(num_steps // 2 + 1, grid, start_lam)
    t = np.array(ends.t)
    lam = schedule.lam(t)
    middles = schedule.t_of_lam(0.5 * (lam[1:] + lam[:-1]))
    times = np.empty(2 * len(t) - 1)
    times[0::2], times[1::2] = t, middles
    if num_steps % 2 == 0:
        times = np.delete(times, -2)
    levels = schedule.levels_at(times)
    return schedule.rounded(levels) if round_times else levels


def noised(guess: Array, noise: Array, plan: SolverPlan) -> Array:
    """A guess at the image with the noise of the plan's first level: an informed start.

    Guo et al. 2022 (PD-DDPM) start from a noised first guess instead of pure noise. The true
    start is alpha x0 + sigma z: that of the guess g differs by alpha (g - x0), small beside sigma
    where the plan starts noisy, and the flow contracts it further where the network is sure.
    """
    return float(plan.alpha[0]) * guess + float(plan.sigma[0]) * noise


def solve(
    denoise: Denoise,
    x_T: Array,
    plan: SolverPlan,
    noise: Callable[[int], Array] | None = None,
    on_step: Callable[[int], object] | None = None,
    x0_range: tuple[float, float] | None = None,
) -> tuple[Array, Array | None]:
    """Runs `plan` from noise to image; works alike on numpy arrays and torch tensors.

    Coefficients enter as Python floats: they do not change the dtype of x (float32 stays
    float32), live on no device, and no step waits for one. Beside what `denoise` and `noise` do,
    the loop allocates nothing: x, the x0 of the rows that still count, the fused logits and
    scratch live as long as the run, and what a row does depends on the table alone.

    Args:
        denoise: called once a row, in order.
        x_T: standard normal noise; not modified.
        plan: which levels, which method.
        noise: row index -> fresh standard normal noise like x; for plans that draw noise.
        on_step: called with i after row i, e.g. to show progress.
        x0_range: every estimate of x0 is clipped to it. The exact estimate is the mean of x0
            given x, so if the data lie in a range, so does it: clipping never changes an exact
            denoiser. It bounds a trained one at high noise, where x0 = (x - sigma eps) / alpha
            magnifies an error of eps by up to sigma / alpha = 157. None where the range of the
            data is unknown.

    Returns:
        x0 like `x_T`, and the fused mask logits: Σ mask_weight·logits, or None where the denoiser
        returns None. Logits of rows with weight 0 are never read.

    Raises:
        UsageError: the plan needs noise and there is none (TD3043).
        NumericsError: the denoiser gave logits at some weighted steps and None at others (TD6004).
    """
    if noise is None and plan.coef_noise.any():
        raise UsageError(
            "TD3043", f"solver {plan.solver!r} draws noise at every step and none was given"
        )
    ops = _operations(x_T)
    x, scratch = x_T * 1.0, x_T * 0.0
    estimates = [x_T * 0.0 for _ in range(plan.history + 1)]
    fused: Array | None = None
    fused_weight = 0.0
    for i, row in enumerate(plan.table.tolist()):
        t, alpha, sigma, coef_x, coef_x0, *coef_prev, coef_noise, mask_weight = row
        eps, logits = denoise(x, t, i)
        x0 = estimates[i % len(estimates)]
        # x0 = (x - sigma eps) / alpha
        ops.multiply(eps, sigma, out=scratch)
        ops.subtract(x, scratch, out=x0)
        ops.divide(x0, alpha, out=x0)
        if x0_range is not None:
            ops.clip(x0, *x0_range, out=x0)
        ops.multiply(x, coef_x, out=x)
        _add(ops, x, coef_x0, x0, scratch)
        for k, coef in enumerate(coef_prev, start=1):
            if coef:
                _add(ops, x, coef, estimates[(i - k) % len(estimates)], scratch)
        if coef_noise and noise is not None:
            _add(ops, x, coef_noise, noise(i), scratch)
        if mask_weight and logits is not None:
            if fused is None:
                fused, mask_scratch = logits * mask_weight, logits * 0.0
            else:
                _add(ops, fused, mask_weight, logits, mask_scratch)
            fused_weight += mask_weight
        if on_step is not None:
            on_step(i)
    if fused is not None and abs(fused_weight - 1) > 1e-6:
        raise NumericsError(
            "TD6004", f"mask logits came for a weight of {fused_weight} only, not 1"
        )
    return x, fused


def _add(ops: Any, total: Array, factor: float, term: Array, scratch: Array) -> None:
    """total += factor * term, in place."""
    ops.multiply(term, factor, out=scratch)
    ops.add(total, scratch, out=total)


def _operations(x: Array) -> Any:
    """The module with multiply, add, subtract, divide and clip for arrays like x."""
    return np if isinstance(x, np.ndarray) else sys.modules["torch"]
