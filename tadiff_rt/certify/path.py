"""Levels for a short run, chosen among those of a dense one without running the network again.

A dense run of some slices is recorded: x and x0 at M levels even in log-SNR. What a step from
level j to level k, with level i before it, misses of the recorded x is known in closed form from
the recorded arrays, and depends on them through their inner products alone. Dynamic programming
over (i, j, k) finds the n levels with the least sum of such errors, each weighted by how far the
flow carries it. The idea, for first-order steps, is that of Chen et al. 2024 (GITS) and
Pei et al. 2025 (optimal steps).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tadiff_rt.backends import Backend
from tadiff_rt.certify.network import DENSE_GRID, DENSE_SOLVER, Sample, forecast_of
from tadiff_rt.forecast import Forecaster
from tadiff_rt.solvers import SolverPlan, make_plan

RECORDED_LEVELS = 61
POSTERIOR_STDS = (0.02, 0.05, 0.1, 0.2)
"""Spreads of x0 given the sources for which candidates are made."""


@dataclass(eq=False)
class _Recorder:
    """A backend that keeps what the network was given and gave."""

    inner: Backend

    def __post_init__(self) -> None:
        self.calls: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)

    def on_device(self) -> None:
        """Nothing: what stays on a GPU is not recorded."""

    def denoise(
        self, sources: NDArray[np.float32], x: NDArray[np.float32], shifts: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        eps, logits = self.inner.denoise(sources, x, shifts)
        self.calls.append((x.copy(), eps))
        return eps, logits


def gram_of_trajectory(
    forecaster: Forecaster, samples: Sequence[Sample], size: int, seed: int
) -> tuple[NDArray[np.float64], SolverPlan]:
    """Inner products of x and x0 at the levels of a dense run, and that run's plan.

    Returns:
        (2M, 2M) mean products over all elements of all rows: x_0 … x_{M−1}, then x0 of each.
    """
    card = forecaster.bundle.manifest.card
    schedule = card.schedule.build()
    levels = min(RECORDED_LEVELS, schedule.num_train_timesteps)
    plan = make_plan(schedule, DENSE_SOLVER, levels, DENSE_GRID, card.start_lam)
    total, elements = np.zeros((2 * plan.num_steps, 2 * plan.num_steps)), 0
    for sample in samples:
        recorder = _Recorder(forecaster.backend)
        recording = Forecaster(forecaster.bundle, recorder, 0.0)  # type: ignore[arg-type]
        forecast = forecast_of(
            recording,
            sample,
            size,
            seed=seed,
            solver=DENSE_SOLVER,
            grid=DENSE_GRID,
            steps=plan.num_steps,
        )
        rows = size * len(forecast.slices)
        for first in range(0, len(recorder.calls), plan.num_steps):
            steps = recorder.calls[first : first + plan.num_steps]
            count = min(len(steps[0][0]), rows)
            rows -= count  # what a bucket holds beyond the rows is padding
            x = np.stack([x[:count].ravel() for x, _ in steps]).astype(np.float64)
            eps = np.stack([eps[:count].ravel() for _, eps in steps])
            x0 = (x - plan.sigma[:, None] * eps) / plan.alpha[:, None]
            if card.x0_range is not None:
                x0 = x0.clip(*card.x0_range)
            both = np.concatenate([x, x0])
            total += both @ both.T
            elements += x.shape[1]
    return total / elements, plan


def shortest_path(
    gram: NDArray[np.float64], plan: SolverPlan, num_steps: int, posterior_std: float
) -> list[int]:
    """Indices of the `num_steps` levels of `plan` with the least sum of weighted local errors.

    The first and the last level are those of `plan`. An error made at level k reaches the image
    through the flow of a Gaussian of spread s, times s / √(alpha² s² + sigma²).

    Args:
        gram: see `gram_of_trajectory`.
        posterior_std: s.
    """
    levels = plan.num_steps
    carried = posterior_std / np.hypot(plan.alpha * posterior_std, plan.sigma)
    # cost[j, k] of the best path of the current length that ends with the step j -> k.
    first = np.full((levels, levels), np.inf)
    for k in range(1, levels):
        first[0, k] = carried[k] * _local_error(gram, plan, None, 0, k)[0]
    errors = _step_errors(gram, plan, carried)
    cost, came_from = first, []
    for _ in range(num_steps - 2):
        following = np.full((levels, levels), np.inf)
        origin = np.zeros((levels, levels), int)
        for (j, k), error in errors.items():
            through = cost[:j, j] + error
            if len(through):
                origin[j, k] = int(np.argmin(through))
                following[j, k] = through[origin[j, k]]
        came_from.append(origin)
        cost = following
    j, k = int(np.argmin(cost[:, -1])), levels - 1
    path = [k, j]
    for origin in reversed(came_from):
        j, k = int(origin[j, k]), j
        path.append(j)
    return path[::-1]


def _step_errors(
    gram: NDArray[np.float64], plan: SolverPlan, carried: NDArray[np.float64]
) -> dict[tuple[int, int], NDArray[np.float64]]:
    """Weighted errors of the step j -> k, one for every level i < j before it."""
    return {
        (j, k): carried[k] * _local_error(gram, plan, np.arange(j), j, k)
        for j in range(1, plan.num_steps)
        for k in range(j + 1, plan.num_steps)
    }


def _local_error(
    gram: NDArray[np.float64],
    plan: SolverPlan,
    i: NDArray[np.int_] | None,
    j: int,
    k: int,
) -> NDArray[np.float64]:
    """Root mean square of (one step of 2M from recorded arrays) − (recorded x_k), for every i.

    None for i is the first step, which is of first order.
    """
    lam = np.log(plan.alpha / plan.sigma)
    h = lam[k] - lam[j]
    gain = -plan.alpha[k] * math.expm1(-h)
    levels = plan.num_steps
    before = np.zeros(1, int) if i is None else i
    half_over_r = np.zeros(1) if i is None else 0.5 * h / (lam[j] - lam[before])
    # The error is v·(x_j, x0_j, x0_i, x_k); its mean square is a quadratic form of the products.
    factors = np.stack(
        [
            np.full(len(before), plan.sigma[k] / plan.sigma[j]),
            gain * (1 + half_over_r),
            -gain * half_over_r,
            np.full(len(before), -1.0),
        ]
    )
    at = np.stack(
        [
            np.full(len(before), j),
            np.full(len(before), levels + j),
            levels + before,
            np.full(len(before), k),
        ]
    )
    products = gram[at[:, None], at[None, :]]
    squares = np.einsum("am,abm,bm->m", factors, products, factors)
    error: NDArray[np.float64] = np.sqrt(np.maximum(squares, 0.0))
    return error
