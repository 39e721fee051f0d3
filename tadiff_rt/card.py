"""The model card: what must be known of trained weights to use them rightly.

Written beside the weights by training, copied into the engine bundle by export, and read by the
runtime. Nothing in it can be overridden on a command line.
"""

import itertools
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from tadiff_rt.case import TREATMENTS
from tadiff_rt.contract import DataContract
from tadiff_rt.schedule import NoiseSchedule


class ScheduleConfig(BaseModel):
    """The noise schedule that the network was trained on; timesteps are one-based."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["linear"] = "linear"
    num_train_timesteps: int = Field(1000, ge=1, le=100_000)
    beta_start: float = Field(1e-4, gt=0, lt=1)
    beta_end: float = Field(2e-2, gt=0, lt=1)

    def build(self) -> NoiseSchedule:
        """The schedule as a table."""
        return NoiseSchedule.linear(self.num_train_timesteps, self.beta_start, self.beta_end)


class SamplerCard(BaseModel):
    """The one way to sample a network that was distilled to a few evaluations.

    Such a network is no denoiser any more: at each of its levels it returns the noise estimate
    that takes one DDIM step to where its teacher goes in many. At other levels, and with other
    solvers, it means nothing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    solver: Literal["ddim"] = "ddim"
    times: tuple[FiniteFloat, ...] = Field(min_length=1, max_length=100)
    """One-based, noisiest first; after the last comes clean data."""
    teacher_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Of the weights of the teacher."""
    recipe: str
    """How it was distilled, in words."""
    measured: dict[str, FiniteFloat] = {}
    """Distances from the teacher on held-out windows with the same noise, by name."""


class ModelCard(BaseModel):
    """Origin and limits of trained weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")
    trained_on: str
    """The training data, in words; shown with every forecast."""
    data: DataContract = DataContract()
    schedule: ScheduleConfig = ScheduleConfig()
    x0_range: tuple[float, float] | None = (0.0, 1.0)
    """Range of the normalised images in training, to which estimates of x0 are clipped; None for
    no clipping, as published."""
    start_lam: float | None = None
    """Half log-SNR at which forecasts start from the noised last source; None: from pure noise at
    T, as published. For networks that are poor at high noise, at the price of a small bias towards
    the last source."""
    sampler: SamplerCard | None = None
    """Of a distilled network, which takes no other; None for one that takes any."""
    treatments: dict[str, int] = Field(dict(TREATMENTS), min_length=1)
    """Treatments seen in training, and the code of each."""
    max_day: int = 1100
    """Latest day of a target in training."""
    max_horizon_days: int = 400
    """Longest time from the last source to the target in training."""
    intended_use: str = "Research only. Not for diagnosis or treatment of patients."
    weights_licence: str = "unstated"

    @model_validator(mode="after")
    def _range_is_one(self) -> "ModelCard":
        if self.x0_range is not None and not self.x0_range[0] < self.x0_range[1]:
            raise ValueError(f"x0_range must be a low and a high number, got {self.x0_range}")
        return self

    @model_validator(mode="after")
    def _start_is_a_level(self) -> "ModelCard":
        schedule = self.schedule.build()
        low, high = schedule.lam(float(schedule.num_train_timesteps)), schedule.lam(1.0)
        if self.start_lam is not None and not low <= self.start_lam < high:
            raise ValueError(f"start_lam must be in {low:.4g} to {high:.4g}, got {self.start_lam}")
        return self

    @model_validator(mode="after")
    def _sampler_is_of_this_schedule(self) -> "ModelCard":
        if self.sampler is None:
            return self
        schedule, times = self.schedule.build(), self.sampler.times
        first = float(schedule.num_train_timesteps)
        if self.start_lam is not None:
            first = schedule.t_of_lam(self.start_lam)
        falls = all(a > b for a, b in itertools.pairwise(times)) and times[-1] >= 1
        if not falls or abs(times[0] - first) > 1e-6:
            raise ValueError(
                f"times of a distilled network must fall from {first:.6g} to 1 or more, "
                f"got {times}"
            )
        return self
