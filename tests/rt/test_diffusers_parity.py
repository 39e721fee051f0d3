"""The same x after every step as diffusers 0.42.1, for every method the two have in common.

There time is zero-based: ours is theirs + 1. Runs visit whole times, because theirs are integers.
`lower_order_final` there is `ramp_down` here: always for UniPC, below 15 steps for DPM-Solver++.

Each pair is compared twice. With their float32 tables as they are, x agrees to what float32 gives.
With their tables replaced by the same values in float64, and the float32 their multistep solver
casts every sample to read as float64, x agrees to rounding: what is left to differ is the formula.
"""

import types
import warnings

import numpy as np
import pytest
import torch

from tadiff_rt.solvers import SolverPlan, make_plan, plan_at, solve
from tests.rt.analytic import MEAN, SCHEDULE, TABLE, gaussian

SHAPE = (2, 3, 4)
STEPS = (5, 10, 20, 50)
FLOAT32, FLOAT64 = 1e-5, 1e-12
"""Largest difference of x allowed, relative to its largest value; 5e-6 and 5e-13 are observed."""

# Their set_timesteps turns a torch tensor into a numpy array in a way that numpy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def schedulers():
    """The modules of their schedulers; nothing is looked up on the network."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setenv("HF_HUB_OFFLINE", "1")
        warnings.simplefilter("ignore")
        from diffusers.schedulers import (
            scheduling_ddim,
            scheduling_dpmsolver_multistep,
            scheduling_dpmsolver_singlestep,
            scheduling_unipc_multistep,
        )
    return types.SimpleNamespace(
        ddim=scheduling_ddim.DDIMScheduler,
        multistep=scheduling_dpmsolver_multistep.DPMSolverMultistepScheduler,
        multistep_module=scheduling_dpmsolver_multistep,
        singlestep=scheduling_dpmsolver_singlestep.DPMSolverSinglestepScheduler,
        unipc=scheduling_unipc_multistep.UniPCMultistepScheduler,
    )


class Float64Torch:
    """torch, but for the name of one type."""

    float32 = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


@pytest.fixture(params=["tables as they are", "tables in float64"])
def precision(request, schedulers, monkeypatch) -> float:
    """FLOAT32, or FLOAT64 with what their code needs for it."""
    if request.param == "tables as they are":
        return FLOAT32
    monkeypatch.setattr(schedulers.multistep_module, "torch", Float64Torch())
    return FLOAT64


def network(x, t):
    """A noise estimate that is nonlinear in x and depends on one-based t."""
    return torch.tanh(1.5 * x + t / 700)


def draws(seed, count):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.standard_normal((count, *SHAPE)))


def our_steps(plan: SolverPlan) -> list[torch.Tensor]:
    """x after every row, from x_T = draws(1) and the noise draws(2)."""
    seen, z = [], draws(2, plan.num_steps)

    def denoise(x, t, i):
        seen.append(x.clone())
        return network(x, t), None

    x0, _ = solve(denoise, draws(1, 1)[0], plan, lambda i: z[i])
    return [*seen[1:], x0]


def prepare(scheduler, plan: SolverPlan, exact: bool):
    """`scheduler` at the times of `plan`, with its own float32 tables or float64 ones."""
    index = plan.t.astype(np.int64) - 1
    np.testing.assert_array_equal(index + 1, plan.t)
    scheduler.set_timesteps(plan.num_steps)
    scheduler.timesteps = torch.from_numpy(index)
    if exact:
        scheduler.alphas_cumprod = torch.from_numpy(TABLE)
    if hasattr(scheduler, "sigmas"):
        a = scheduler.alphas_cumprod[index]
        scheduler.sigmas = torch.cat([((1 - a) / a) ** 0.5, torch.zeros(1, dtype=a.dtype)])
    return scheduler


def their_steps(scheduler, **options) -> list[torch.Tensor]:
    """x after every step of a prepared scheduler, from the same numbers as `our_steps`."""
    x, z, steps = draws(1, 1)[0], draws(2, len(scheduler.timesteps)), []
    noisy = "eta" in options or "sde" in scheduler.config.get("algorithm_type", "")
    for i, t in enumerate(scheduler.timesteps.tolist()):
        more = options | ({"variance_noise": z[i]} if noisy else {})
        x = scheduler.step(network(x, t + 1.0), t, x, **more).prev_sample
        steps.append(x)
    return steps


def assert_same_steps(plan: SolverPlan, scheduler, precision: float, **options) -> None:
    ours = our_steps(plan)
    theirs = their_steps(prepare(scheduler, plan, exact=precision == FLOAT64), **options)
    assert len(ours) == len(theirs) == plan.num_steps
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        difference = float((a - b).abs().max() / b.abs().max())
        assert difference <= precision, f"{plan.solver} step {i} of {plan.num_steps}"


@pytest.mark.parametrize("n", STEPS)
@pytest.mark.parametrize("grid", ["logsnr", "trailing", "karras"])
@pytest.mark.parametrize(
    ("solver", "order", "algorithm"),
    [
        ("dpmpp_1", 1, "dpmsolver++"),
        ("dpmpp_2m", 2, "dpmsolver++"),
        ("dpmpp_3m_parity", 3, "dpmsolver++"),
        ("sde_dpmpp_2m", 2, "sde-dpmsolver++"),
        ("ddpm", 1, "sde-dpmsolver++"),  # one formula: ancestral sampling is its first order
    ],
)
def test_dpm_solver(solver, order, algorithm, grid, n, schedulers, precision):
    plan = make_plan(SCHEDULE, solver, n, grid, ramp_down=n < 15, round_times=True)
    scheduler = schedulers.multistep(
        solver_order=order, algorithm_type=algorithm, final_sigmas_type="zero"
    )
    assert_same_steps(plan, scheduler, precision)


@pytest.mark.parametrize("n", STEPS)
@pytest.mark.parametrize("grid", ["logsnr", "trailing", "karras"])
@pytest.mark.parametrize("order", [2, 3])
def test_unipc(order, grid, n, schedulers, precision):
    plan = make_plan(SCHEDULE, f"unipc_{order}", n, grid, ramp_down=True, round_times=True)
    scheduler = schedulers.unipc(
        solver_order=order, solver_type="bh2", final_sigmas_type="zero", lower_order_final=True
    )
    assert_same_steps(plan, scheduler, precision)


@pytest.mark.parametrize("n", [*STEPS, 21])
@pytest.mark.parametrize("times", ["middles in logsnr", "trailing"])
def test_singlestep(times, n, schedulers, precision):
    """Their order is 1, 2, 1, 2, …: a step begins at every second time, its middle is next."""
    if times == "trailing":
        plan = plan_at(SCHEDULE, "dpmpp_2s", SCHEDULE.levels(n, "trailing").t)
    else:
        plan = make_plan(SCHEDULE, "dpmpp_2s", n, round_times=True)
    scheduler = schedulers.singlestep(
        solver_order=2, lower_order_final=True, final_sigmas_type="zero"
    )
    assert_same_steps(plan, scheduler, precision)


@pytest.mark.parametrize("n", STEPS)
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("spacing", ["trailing", "leading"])
def test_ddim(spacing, eta, n, schedulers, precision):
    """Their step takes the next time to be T // n below, which leaves these two spacings."""
    times = (
        np.arange(1000, 0, -1000 // n)
        if spacing == "trailing"
        else np.arange(n)[::-1] * (1000 // n) + 1
    )
    plan = plan_at(SCHEDULE, "ddim", times, eta=eta)
    scheduler = schedulers.ddim(clip_sample=False, timestep_spacing=spacing)
    scheduler.set_timesteps(n)
    np.testing.assert_array_equal(scheduler.timesteps.numpy() + 1, plan.t)
    assert_same_steps(plan, scheduler, precision, eta=eta)


@pytest.mark.parametrize("n", STEPS)
@pytest.mark.parametrize("solver", ["dpmpp_2m", "unipc_2"])
def test_trailing_spacing_as_it_is(solver, n, schedulers):
    """Not one field of theirs is set: times, tables and final sigma are what a user gets."""
    kind = schedulers.multistep if solver == "dpmpp_2m" else schedulers.unipc
    scheduler = kind(timestep_spacing="trailing", final_sigmas_type="zero")
    scheduler.set_timesteps(n)
    ramp_down = solver == "unipc_2" or n < 15
    plan = make_plan(SCHEDULE, solver, n, "trailing", ramp_down=ramp_down)
    np.testing.assert_array_equal(scheduler.timesteps.numpy() + 1, plan.t)
    for a, b in zip(our_steps(plan), their_steps(scheduler), strict=True):
        assert float((a - b).abs().max() / b.abs().max()) <= FLOAT32


@pytest.mark.parametrize("n", [*STEPS, 7, 33])
def test_linspace_is_their_default_spacing_up_to_ties(n, schedulers):
    """Halves are rounded to even, there before and here after the shift to one-based times."""
    scheduler = schedulers.multistep()
    scheduler.set_timesteps(n)
    theirs = scheduler.timesteps.numpy() + 1
    unrounded = 1 + 999 * (1 - np.arange(n) / n)
    tie = np.abs(unrounded % 1 - 0.5) < 1e-9
    ours = np.array(SCHEDULE.levels(n, "linspace").t)
    np.testing.assert_array_equal(ours[~tie], theirs[~tie])
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1)


@pytest.mark.parametrize(("std", "ratio"), [(0.05, 0.27), (0.1, 0.49), (0.5, 0.95)])
def test_their_default_loses_the_spread_of_narrow_data(std, ratio, schedulers):
    """20 steps of their multistep scheduler as a user gets it, the ideal denoiser of a Gaussian.

    The run is affine: batch 0 carries the factor of the noise, batch 1 the constant.
    """
    scheduler = schedulers.multistep()
    scheduler.set_timesteps(20)
    x, one = torch.eye(2, dtype=torch.float64)
    denoise = gaussian(MEAN * one, std)
    for t in scheduler.timesteps.tolist():
        x = scheduler.step(denoise(x, t + 1.0, 0)[0], t, x).prev_sample
    assert float(x[0]) / std == pytest.approx(ratio, abs=0.006)
    assert float(x[1]) == pytest.approx(MEAN, abs=0.005)
