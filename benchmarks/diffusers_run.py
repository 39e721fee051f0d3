"""diffusers' multistep DPM-Solver as a way to sample our networks, and what it keeps of a spread.

Its times are integers from 0: ours less one. Nothing is looked up on the network.
"""

import math
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.plan_quality import STDS, spread_columns
from tadiff_rt.certify.analytic import MEAN
from tadiff_rt.schedule import NoiseSchedule

Denoise = Callable[[NDArray[Any], int], NDArray[Any]]
"""`(x, i) -> eps`: the noise in x at time number i of the run."""


@dataclass(frozen=True, eq=False)
class DiffusersRun:
    """A scheduler, and how a pipeline sets it up for every image."""

    scheduler: Any
    asked: dict[str, Any]
    """Of `set_timesteps`."""
    first: int
    """Time that the run begins at: where it starts from a noised guess, the ones before are left
    out, as image-to-image pipelines do."""

    def begin(self) -> None:
        """Forgets what came before."""
        with warnings.catch_warnings():
            # It turns a tensor into an array in a way that numpy 2 warns of.
            warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
            self.scheduler.set_timesteps(**self.asked)
        self.scheduler.set_begin_index(self.first)

    def times(self) -> NDArray[np.float64]:
        """(n,) one-based times that the network is asked at."""
        self.begin()
        times: NDArray[np.float64] = self.scheduler.timesteps[self.first :].numpy() + 1.0
        return times

    def sample(
        self, denoise: Denoise, noise: NDArray[Any], guess: NDArray[Any] | None
    ) -> NDArray[Any]:
        """An image like `noise`, from the noised guess or from noise alone."""
        self.begin()
        x = torch.from_numpy(noise)
        times = self.scheduler.timesteps[self.first :]
        if guess is not None:
            x = self.scheduler.add_noise(torch.from_numpy(guess), x, times[:1])
        for i, t in enumerate(times):
            eps = torch.from_numpy(denoise(x.numpy(), i))
            x = self.scheduler.step(eps, t, x).prev_sample
        image: NDArray[Any] = x.numpy()
        return image

    def quality(self, schedule: NoiseSchedule, *, informed: bool = False) -> dict[str, object]:
        """Columns of `plan_quality`: the run is affine in its noise and in the constant 1."""
        alpha_bar = np.asarray(schedule.alpha_bar(self.times()))
        alpha, sigma = np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)
        basis = np.eye(2)
        one = MEAN * basis[1]
        ends = []
        for std in STDS:

            def denoise(x: NDArray[Any], i: int, std: float = std) -> NDArray[Any]:
                gain = alpha[i] * std**2 / (alpha[i] ** 2 * std**2 + sigma[i] ** 2)
                x0 = one + gain * (x - alpha[i] * one)
                eps: NDArray[Any] = (x - alpha[i] * x0) / sigma[i]
                return eps

            ends.append(self.sample(denoise, basis[0], one if informed else None))
        ratios = [float(end[0]) / std for end, std in zip(ends, STDS, strict=True)]
        return spread_columns(ratios, [float(end[1]) - MEAN for end in ends])


def their_default(
    schedule: NoiseSchedule, steps: int, start_lam: float | None = None
) -> DiffusersRun:
    """Every setting as it comes; begins at the first of its times below that of `start_lam`.

    Image-to-image pipelines run the share `strength` of the times: here that of t in T.
    """
    T = schedule.num_train_timesteps
    strength = 1.0 if start_lam is None else schedule.t_of_lam(start_lam) / T
    asked = math.ceil(steps / strength)
    return DiffusersRun(_scheduler(schedule), {"num_inference_steps": asked}, asked - steps)


def nearest_ours(
    schedule: NoiseSchedule, steps: int, start_lam: float | None = None
) -> DiffusersRun:
    """At the times of our default grid, rounded, to clean data: `dpmpp_2m` as we run it."""
    times = schedule.levels(steps, "logsnr", start_lam, round_times=True).t
    scheduler = _scheduler(schedule, lower_order_final=False)
    return DiffusersRun(scheduler, {"timesteps": [int(t) - 1 for t in times]}, 0)


def _scheduler(schedule: NoiseSchedule, **options: Any) -> Any:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what it imports
        from diffusers.schedulers.scheduling_dpmsolver_multistep import (
            DPMSolverMultistepScheduler,
        )
    betas = 1 - schedule.alphas_cumprod / np.append(1.0, schedule.alphas_cumprod[:-1])
    return DPMSolverMultistepScheduler(
        num_train_timesteps=schedule.num_train_timesteps, trained_betas=betas, **options
    )
