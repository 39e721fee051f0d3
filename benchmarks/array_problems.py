"""What the runtime computes itself on a CPU beside the network, and the same by other means."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.floor import Work
from benchmarks.loop_problems import plain_statistics
from benchmarks.spelled_out import (
    X0_RANGE,
    Array,
    spelled_out_noise,
    spelled_out_statistics,
    spelled_out_steps,
)
from tadiff_kernels.philox import normal_reference
from tadiff_rt.ensemble import TARGET_SLOT, SliceStatistics
from tadiff_rt.noise import INITIAL, NoiseSource
from tadiff_rt.schedule import NoiseSchedule
from tadiff_rt.solvers import make_plan, solve

OURS, NUMPY, TORCH = "this runtime", "numpy, spelled out", "torch, spelled out"
SOLVERS = ("dpmpp_2m", "unipc_2", "ddim", "sde_dpmpp_2m")
STEPS = 20
SEED = 7
SAME = "the same numbers, to rounding"
OTHERS = "other numbers of the same distribution, which depend on the order they are drawn in"
MOMENT = 0.05
"""Largest error of mean and standard deviation of noise that is not compared number by number."""


@dataclasses.dataclass(frozen=True)
class Way:
    """One implementation on fixed inputs."""

    run: Callable[[], Array]
    """What is timed."""
    result: Callable[[Array], Array] = lambda value: value
    """What is compared, of what `run` returns."""
    quality: str = SAME


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """What is computed, how often, by whom, and how exactly."""

    case: str
    work: Work
    """Of one unit."""
    units: int
    """In a run."""
    per: str
    """What a unit is there for."""
    images: int
    """Of the evaluation that one unit accompanies."""
    exact: Array
    allowed: float
    """Of |result - exact| / max |exact|."""
    ways: dict[str, Way]

    def check(self, name: str, value: Array) -> float:
        """The error of a contestant's result.

        Raises:
            ValueError: it is larger than allowed, or the result has another shape.
        """
        got = np.asarray(self.ways[name].result(value), dtype=np.float64)
        exact = np.asarray(self.exact, dtype=np.float64)
        if got.shape != exact.shape:
            raise ValueError(f"{self.case}, {name}: {got.shape}, expected {exact.shape}")
        if self.ways[name].quality == OTHERS:
            error, allowed = max(abs(got.mean()), abs(got.std() - 1)), MOMENT
        else:
            error, allowed = np.abs(got - exact).max() / np.abs(exact).max(), self.allowed
        if not error <= allowed:
            raise ValueError(f"{self.case}, {name}: {error:.2e} off, {allowed:.2e} is allowed")
        return float(error)


def _rounded(exact: Array, computed: Array) -> float:
    """Twice the error of the spelled-out form, and one unit in the last place."""
    error = np.abs(computed - exact).max() / np.abs(exact).max()
    return float(2 * error + np.finfo(np.float32).eps)


def solver_step(solver: str, rows: int, size: int) -> Problem:
    """A row of a plan, of `STEPS` that are run; noise is drawn beforehand."""
    plan = make_plan(NoiseSchedule.linear(), solver, STEPS)
    rng = np.random.default_rng(0)
    x, eps, noise = rng.standard_normal((3, rows, 3, size, size), dtype=np.float32)
    given = [x, eps, noise]
    tensors = [torch.from_numpy(v) for v in given]
    exact = spelled_out_steps(plan, *(v.astype(np.float64) for v in given))
    ways = {
        OURS: lambda: solve(
            lambda x, t, i: (eps, None), x, plan, lambda i: noise, x0_range=X0_RANGE
        )[0],
        NUMPY: lambda: spelled_out_steps(plan, *given),
        TORCH: lambda: spelled_out_steps(plan, *tensors),
    }
    # x and eps, earlier x0 and noise are read; x is written, and x0 where a later row reads it.
    images = 3 + plan.history + bool(plan.history) + bool(plan.coef_noise.any())
    return Problem(
        f"kernels/solver step {solver}",
        Work(float(images * x.nbytes)),
        STEPS,
        "row of the plan",
        rows,
        exact,
        _rounded(exact, ways[NUMPY]()),
        {name: Way(run) for name, run in ways.items()},
    )


def mask_fusion(rows: int, size: int) -> Problem:
    """One step of the weighted sum of mask logits; x is a single number, and the rest nothing."""
    weights = np.full(STEPS, 1 / STEPS)
    plan = dataclasses.replace(
        make_plan(NoiseSchedule.linear(), "ddim", STEPS), mask_weight=weights
    )
    rng = np.random.default_rng(1)
    logits = rng.standard_normal((rows, 4, size, size), dtype=np.float32)
    single = np.zeros(1, np.float32)

    def spelled_out(logits: Array) -> Array:
        fused = weights[0].item() * logits
        for weight in weights[1:].tolist():
            fused = fused + weight * logits
        return fused

    exact = spelled_out(logits.astype(np.float64))
    tensor = torch.from_numpy(logits)
    return Problem(
        "kernels/mask fusion",
        Work(3.0 * logits.nbytes),
        STEPS,
        "row of the plan with a weight in the masks",
        rows,
        exact,
        _rounded(exact, spelled_out(logits)),
        {
            OURS: Way(lambda: solve(lambda x, t, i: (single, logits), single, plan)[1]),
            NUMPY: Way(lambda: spelled_out(logits)),
            TORCH: Way(lambda: spelled_out(tensor)),
        },
    )


def noise(rows: int, size: int) -> Problem:
    """Normal noise of a bucket: once a run, and in every row of a solver that draws it."""
    keys, shape = [(3, k) for k in range(rows)], (3, size, size)
    source, generator = NoiseSource(SEED), np.random.default_rng(SEED)
    exact = spelled_out_noise(SEED, keys, INITIAL, shape)
    ways = {
        OURS: Way(lambda: source.initial(keys, shape)),
        NUMPY: Way(lambda: spelled_out_noise(SEED, keys, INITIAL, shape)),
        TORCH: Way(lambda: normal_reference(SEED, keys, INITIAL, shape)),
        "numpy's generator": Way(
            lambda: generator.standard_normal((rows, *shape), dtype=np.float32), quality=OTHERS
        ),
        "torch's generator": Way(lambda: torch.randn(rows, *shape), quality=OTHERS),
    }
    eps = float(np.finfo(np.float32).eps)
    per = "run, and row of a plan that draws noise"
    return Problem("kernels/noise", Work(float(exact.nbytes)), 1, per, rows, exact, eps, ways)


def statistics(samples: int, size: int) -> Problem:
    """A sample's part in the statistics of its slice, of `samples` that are taken in."""
    rng = np.random.default_rng(2)
    images = rng.standard_normal((samples, 3, size, size), dtype=np.float32)
    logits = rng.standard_normal((samples, 4, size, size), dtype=np.float32)
    target = logits[:, TARGET_SLOT]

    def ours() -> SliceStatistics:
        taken = SliceStatistics((3, size, size), (size, size))
        for image, logit in zip(images, target, strict=True):
            taken.add(image, logit)
        return taken

    def spelled_out(dtype: type[np.floating[Any]]) -> tuple[Array, ...]:
        return spelled_out_statistics(images.astype(dtype), target.astype(dtype))

    inside = torch.ones(size, size, dtype=torch.uint8)
    given = [torch.from_numpy(v)[None] for v in (images, logits)]
    return Problem(
        "kernels/statistics",
        # Image and logit are read; mean, squares, pairs and probability in float64, the last image
        # and its mask are read and written.
        Work(size**2 * (4.0 * 4 + 2 * (3 * 3 * 8 + 8 + 3 * 4 + 1))),
        samples,
        "sample",
        1,
        _joined(spelled_out(np.longdouble)),
        1e-12,
        {
            OURS: Way(ours, lambda taken: _joined(_parts(taken))),
            NUMPY: Way(lambda: spelled_out(np.float64), _joined),
            TORCH: Way(lambda: plain_statistics(given[0], given[1], inside), _joined),
        },
    )


def _parts(taken: SliceStatistics) -> tuple[Array, ...]:
    """Its sums, as `spelled_out_statistics` orders them."""
    state = taken.state()
    sums = (state[f"_{name}"] for name in ("mean", "squares", "pair_sum", "probability_sum"))
    return (*sums, np.array(taken.areas), np.array(taken.overlaps))


def _joined(parts: Sequence[Array]) -> NDArray[np.float64]:
    """All numbers in a row; of areas and overlaps their share of a slice, to be of one size."""
    flat = [np.asarray(part, dtype=np.float64).ravel() for part in parts]
    pixels = len(flat[3])
    return np.concatenate([*flat[:4], *(count / pixels for count in flat[4:])])


def problems(rows: int, size: int) -> list[Problem]:
    """Of a bucket of so many images."""
    steps = [solver_step(solver, rows, size) for solver in SOLVERS]
    return [*steps, noise(rows, size), mask_fusion(rows, size), statistics(rows, size)]
