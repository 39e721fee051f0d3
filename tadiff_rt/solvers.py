"""Samplers as tables: a float64 row of coefficients a step, and one loop that executes any table.

Every method here is linear in what it combines, so with the noise estimate ε of step i

    x0_i    = (x_i − sigma_i · ε) / alpha_i
    x_{i+1} = coef_x · x_i + coef_x0 · x0_i + coef_x0_prev · x0_{i−1} + coef_noise · z_i

The letters are those of DPM-Solver: alpha = √ᾱ and sigma = √(1 − ᾱ), not DDPM's α_t = 1 − β_t.
Every plan ends on clean data: its last row has alpha_{n} = 1 and sigma_{n} = 0 ahead of it, and so
returns the last x0 as it is. What is left at the last visited level is removed, not kept as grain.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tadiff_rt.errors import NumericsError, UsageError
from tadiff_rt.schedule import Levels, NoiseSchedule

Array: TypeAlias = Any
"""A numpy array or a torch tensor; used with +, −, · and / and Python floats only."""

Denoise: TypeAlias = Callable[[Array, float, int], tuple[Array, Array | None]]
"""`(x, t, i) -> (eps, mask_logits)`: the network at one-based time t, step index i."""

SOLVERS = ("dpmpp_2m", "ddim", "ddpm")

MASK_WINDOW = 10
"""The published mask averages the logits of t = 1 … 10."""


@dataclass(frozen=True, eq=False)
class SolverPlan:
    """One sampling run as a table: entry i of every array belongs to step i. Arrays are read-only.

    Raises:
        NumericsError: the mask weights are not an average (TD6004).
    """

    t: NDArray[np.float64]
    """Time fed to the network, one-based, noisiest first."""
    alpha: NDArray[np.float64]
    """√ᾱ at t: turns ε into x0."""
    sigma: NDArray[np.float64]
    """√(1 − ᾱ) at t: turns ε into x0."""
    coef_x: NDArray[np.float64]
    """Of the current x."""
    coef_x0: NDArray[np.float64]
    """Of this step's x0."""
    coef_x0_prev: NDArray[np.float64]
    """Of the previous step's x0; 0 in the first row."""
    coef_noise: NDArray[np.float64]
    """Of fresh standard normal noise; 0 throughout for a deterministic solver."""
    mask_weight: NDArray[np.float64]
    """Of this step's mask logits in the fused logits; sums to 1."""
    solver: str
    grid: str

    def __post_init__(self) -> None:
        for name in COLUMNS:
            column = np.array(getattr(self, name), dtype=np.float64)
            column.flags.writeable = False
            object.__setattr__(self, name, column)
        if self.mask_weight.min() < 0 or abs(self.mask_weight.sum() - 1) > 1e-6:
            total = self.mask_weight.sum()
            raise NumericsError("TD6004", f"mask weights must be >= 0 and sum to 1, sum {total}")

    @property
    def num_steps(self) -> int:
        """Rows of the table."""
        return len(self.t)

    @property
    def nfe(self) -> int:
        """Network evaluations of one sample; every solver here needs one a step."""
        return self.num_steps

    @property
    def table(self) -> NDArray[np.float64]:
        """(num_steps, 8) the columns in the order of `COLUMNS`, for a device buffer; a copy."""
        return np.column_stack([getattr(self, name) for name in COLUMNS])


COLUMNS = tuple(f.name for f in fields(SolverPlan) if f.name not in ("solver", "grid"))
"""Names of the columns of `SolverPlan.table`, in order."""


def make_plan(
    schedule: NoiseSchedule,
    solver: str = "dpmpp_2m",
    num_steps: int = 20,
    grid: str = "logsnr",
    start_lam: float | None = None,
) -> SolverPlan:
    """The table of `solver` for `num_steps` evaluations on the trained schedule.

    Args:
        schedule: of the checkpoint; never rebuilt for fewer steps.
        solver: "dpmpp_2m", "ddim" (both deterministic) or "ddpm" (ancestral; the published loop
            when `grid` is "all").
        num_steps: 1 … T.
        grid: see `NoiseSchedule.levels`.
        start_lam: half log-SNR at which the run starts, from `noised` instead of pure noise.

    Raises:
        UsageError: an argument is out of range (TD3010, TD3047), or no such grid (TD3041) or
            solver (TD3042).
    """
    if solver not in SOLVERS:
        raise UsageError("TD3042", f"solver must be one of {', '.join(SOLVERS)}, got {solver!r}")
    levels = schedule.levels(num_steps, grid, start_lam)
    rows = {"dpmpp_2m": _dpmpp_2m, "ddim": _ddim, "ddpm": _ddpm}[solver](levels)
    coef_x, coef_x0, coef_x0_prev, coef_noise = np.array(rows).T
    return SolverPlan(
        t=np.array(levels.t),
        alpha=np.array(levels.alpha),
        sigma=np.array(levels.sigma),
        coef_x=coef_x,
        coef_x0=coef_x0,
        coef_x0_prev=coef_x0_prev,
        coef_noise=coef_noise,
        mask_weight=mask_weights(schedule, levels),
        solver=solver,
        grid=grid,
    )


Row: TypeAlias = tuple[float, float, float, float]
"""coef_x, coef_x0, coef_x0_prev, coef_noise."""

LAST_ROW: Row = (0.0, 1.0, 0.0, 0.0)
"""The limit of every method as sigma of the next level goes to 0 and its alpha to 1: x0."""


def _ddim(levels: Levels) -> list[Row]:
    """Deterministic DDIM: Song et al. 2021, Eq. (12) with σ_t = 0, in terms of x and x0.

    With ε = (x − alpha·x0) / sigma, x' = alpha'·x0 + sigma'·ε.
    """
    a, s = levels.alpha, levels.sigma
    rows = [
        (s[i + 1] / s[i], a[i + 1] - a[i] * s[i + 1] / s[i], 0.0, 0.0) for i in range(len(a) - 1)
    ]
    return [*rows, LAST_ROW]


def _dpmpp_2m(levels: Levels) -> list[Row]:
    """DPM-Solver++(2M): Lu et al. 2022b, Algorithm 2; h and r as there, λ half the log-SNR.

    x' = (sigma'/sigma)·x − alpha'·(e^{−h} − 1)·D with D = (1 + 1/2r)·x0 − 1/2r·x0_prev, r =
    h_prev/h. The first step has no history and is first-order (D = x0); so is the step to clean
    data, where h is infinite.
    """
    a, s = levels.alpha, levels.sigma
    lam = [math.log(alpha / sigma) for alpha, sigma in zip(a, s, strict=True)]
    rows: list[Row] = []
    for i in range(len(a) - 1):
        h = lam[i + 1] - lam[i]
        half_over_r = 0.5 * h / (lam[i] - lam[i - 1]) if i else 0.0
        gain = -a[i + 1] * math.expm1(-h)
        rows.append((s[i + 1] / s[i], gain * (1 + half_over_r), -gain * half_over_r, 0.0))
    return [*rows, LAST_ROW]


def _ddpm(levels: Levels) -> list[Row]:
    """Ancestral sampling from the posterior q(x' | x, x0): Ho et al. 2020, Eqs. (6) and (7).

    Between levels that are not neighbours the same posterior holds with α_t read as the ratio
    ᾱ/ᾱ' and β_t as 1 − ᾱ/ᾱ'. The variance is β̃, the published choice, not β.
    """
    a, s = levels.alpha, levels.sigma
    rows: list[Row] = []
    for i in range(len(a) - 1):
        ratio = a[i] / a[i + 1]
        beta = 1 - ratio**2
        coef_x = ratio * s[i + 1] ** 2 / s[i] ** 2
        coef_x0 = a[i + 1] * beta / s[i] ** 2
        rows.append((coef_x, coef_x0, 0.0, s[i + 1] / s[i] * math.sqrt(beta)))
    return [*rows, LAST_ROW]


def mask_weights(schedule: NoiseSchedule, levels: Levels) -> NDArray[np.float64]:
    """Weights that turn the logits of the visited levels into the published fused logits.

    TaDiff fuses the logits L(t) of its T-step run as Σ_t w_t·L(t) over t = 1 … min(10, T), with
    w_t = ᾱ_t / Σ ᾱ. A shorter run does not visit those t. Interpolate L linearly in λ between
    the visited levels, and constantly beyond the first and last: L(t) = Σ_i hat_i(λ_t)·L_i.
    Inserted into the sum, level i has weight Σ_t w_t·hat_i(λ_t). The hats sum to 1 at every λ and
    so do the weights, whatever is visited; on the full grid every λ_t is a level and the
    published weights come back. The error is that of linear interpolation: second order in the
    spacing of levels inside the window.
    """
    t = np.arange(1.0, min(MASK_WINDOW, schedule.num_train_timesteps) + 1)
    published = schedule.alpha_bar(t) / schedule.alpha_bar(t).sum()
    window = schedule.lam(t)
    nodes = schedule.lam(np.array(levels.t))  # rises along the run
    hats = [np.interp(window, nodes, one_hot) for one_hot in np.eye(len(nodes))]
    return np.array([float(hat @ published) for hat in hats])


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
    float32), live on no device, and no step waits for one.

    Args:
        denoise: called once a step, in order.
        x_T: standard normal noise; not modified.
        plan: which levels, which method.
        noise: step index -> fresh standard normal noise like x; needed by "ddpm" only.
        on_step: called with i after step i, e.g. to show progress.
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
    x, x0_prev, fused, fused_weight = x_T, None, None, 0.0
    for i, row in enumerate(plan.table.tolist()):
        t, alpha, sigma, coef_x, coef_x0, coef_x0_prev, coef_noise, mask_weight = row
        eps, logits = denoise(x, t, i)
        x0 = (x - sigma * eps) / alpha
        if x0_range is not None:
            x0 = x0.clip(*x0_range)
        following = coef_x0 * x0
        if coef_x:
            following = following + coef_x * x
        if coef_x0_prev:
            following = following + coef_x0_prev * x0_prev
        if coef_noise and noise is not None:
            following = following + coef_noise * noise(i)
        if mask_weight and logits is not None:
            fused = mask_weight * logits if fused is None else fused + mask_weight * logits
            fused_weight += mask_weight
        x, x0_prev = following, x0
        if on_step is not None:
            on_step(i)
    if fused is not None and abs(fused_weight - 1) > 1e-6:
        raise NumericsError(
            "TD6004", f"mask logits came for a weight of {fused_weight} only, not 1"
        )
    return x, fused
