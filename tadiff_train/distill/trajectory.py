"""The teacher's run, the student's levels on it, and the step that joins two of them.

Forecasts are deterministic: an image is a function of its start noise, and the spread of an
ensemble is that of this function. The student learns the same function in fewer evaluations. At
level i it returns the noise estimate with which one DDIM step from its own state lands where the
teacher's run of the same noise passes level i + 1 (Salimans and Ho 2022, appendix G, in one round
instead of one for each halving, as in Luhman and Luhman 2021). With a and s for alpha and sigma,

    x0 = (x_{i+1} - (s_{i+1} / s_i) x_i) / (a_{i+1} - (s_{i+1} / s_i) a_i)

Where x_i is the teacher's own, x0 is an average of the teacher's estimates on the way, with
positive weights in the exact solution: it lies in the range of the images.
"""

from collections.abc import Container
from dataclasses import dataclass

import torch
from torch import Tensor

from tadiff_rt.schedule import NoiseSchedule
from tadiff_rt.solvers import Array, Denoise, SolverPlan, make_plan, noised, plan_at, solve
from tadiff_train.data.windows import Window
from tadiff_train.network import NUM_SESSIONS, TaDiffNet

TEACHER_SOLVER, TEACHER_GRID = "dpmpp_2m", "logsnr"
"""The defaults of a forecast."""


@dataclass(frozen=True, eq=False)
class Course:
    """Two runs of one schedule, the levels of one among those of the other."""

    teacher: SolverPlan
    student: SolverPlan
    substeps: int
    """Steps of the teacher for one of the student."""

    @property
    def shared(self) -> range:
        """Rows of the teacher that start where rows of the student do."""
        return range(0, self.teacher.num_steps - 1, self.substeps)


def course(
    schedule: NoiseSchedule, start_lam: float | None, evaluations: int, substeps: int
) -> Course:
    """The teacher's levels even in log-SNR down to t = 1, and every `substeps`-th for the student.

    The student has none at t = 1, where sigma is 0.01 and an evaluation changes an image by no
    more than that: from its last level it goes to clean data.

    Raises:
        UsageError: TD3010, the schedule has fewer timesteps than the teacher's run has levels.
    """
    levels = evaluations * substeps + 1
    teacher = make_plan(schedule, TEACHER_SOLVER, levels, TEACHER_GRID, start_lam)
    student = plan_at(schedule, "ddim", teacher.t[:-1:substeps])
    return Course(teacher, student, substeps)


def implied_x0(x: Array, x_next: Array, plan: SolverPlan, row: int) -> Array:
    """The estimate of x0 with which row `row` of a one-step plan goes from `x` to `x_next`."""
    return (x_next - float(plan.coef_x[row]) * x) / float(plan.coef_x0[row])


def start(window: Window, plan: SolverPlan, *, informed: bool) -> Tensor:
    """(b, 3, h, w) where a forecast starts: the noised last source, or pure noise."""
    noise = window.noise
    return noised(window.images[:, -2], noise, plan) if informed else noise


def denoiser(net: TaDiffNet, window: Window) -> Denoise:
    """The network on windows whose target is the last slot, as `solve` calls it."""
    sources = window.images[:, :-1].flatten(1, 2)
    target = torch.full((len(sources),), NUM_SESSIONS - 1, device=sources.device)

    def denoise(x: Tensor, t: float, row: int) -> tuple[Tensor, Tensor]:
        images, time = torch.cat([sources, x], 1), torch.tensor([t], device=x.device)
        y = net(images, time, window.days, window.treatments, target).float()
        return y[:, NUM_SESSIONS:], y[:, :NUM_SESSIONS]

    return denoise


@dataclass(frozen=True, eq=False)
class Trajectory:
    """What a run passes on its way."""

    states: tuple[Array, ...]
    """x before each of the rows that were kept, then the image, (b, 3, h, w) each."""
    logits: Array | None
    """(b, 4, h, w) fused mask logits."""


def trajectory(
    denoise: Denoise,
    x: Array,
    plan: SolverPlan,
    rows: Container[int],
    x0_range: tuple[float, float] | None = None,
) -> Trajectory:
    """Runs `plan` from `x` and keeps the states before some of its rows.

    Args:
        x0_range: see `tadiff_rt.solvers.solve`.
    """
    states: list[Array] = []

    def recording(x: Array, t: float, row: int) -> tuple[Array, Array | None]:
        if row in rows:
            states.append(x * 1.0)  # solve overwrites it
        return denoise(x, t, row)

    image, logits = solve(recording, x, plan, x0_range=x0_range)
    return Trajectory((*states, image), logits)
