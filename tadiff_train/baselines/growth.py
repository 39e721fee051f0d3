"""The traditional forecast: a reaction-diffusion equation fitted to a patient's past sessions.

    du/dt = div(D grad u) + rho u (1 - u)

fitted as by Tracqui et al. 1995, Swanson et al. 2000, Harpold et al. 2007 and Konukoglu et al.
2010, with D smaller in grey matter (Jbabdi et al. 2005), and with radiation by the
linear-quadratic model (Rockne et al. 2010). On simulated patients it knows the equation that made
them, which no model knows of a real patient. See docs/baselines.md.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from tadiff_rt.case import TREATMENTS
from tadiff_train.baselines.anatomy import GREY_SHARE
from tadiff_train.baselines.parameters import ALPHA_TO_BETA_GY, Float64Array, parameters_of
from tadiff_train.baselines.past import Past, see_past
from tadiff_train.baselines.posterior import Posterior, most_probable
from tadiff_train.phantom.growth import TumourParameters

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class GrowthFit:
    """Most probable parameters of a patient's tumour, and the past they were fitted to."""

    rho_per_day: float
    """Net proliferation without treatment."""
    d_white_mm2_per_day: float
    """Diffusivity in white matter."""
    tmz_factor: float
    """Multiplies proliferation during TMZ, and during CRT, which is given with TMZ."""
    alpha_per_gy: float
    """Linear coefficient of cell kill; the quadratic one is alpha / 10 Gy."""
    loss: float
    """Half the sum of squares at the optimum: misfit, and distance from the prior."""
    evaluations: int
    """How often the whole past was integrated."""
    seconds: float
    converged: bool
    """Whether the optimiser stopped by itself; true where there was nothing to fit."""
    reason: str
    """Why parameters are those of the prior, or what is doubtful; empty if nothing is."""
    past: Past = field(repr=False, compare=False)
    posterior: Posterior = field(repr=False, compare=False)

    @property
    def parameters(self) -> TumourParameters:
        """As the integrator takes them."""
        return TumourParameters(
            rho_per_day=self.rho_per_day,
            d_white_mm2_per_day=self.d_white_mm2_per_day,
            d_grey_mm2_per_day=self.d_white_mm2_per_day * GREY_SHARE,
            alpha_per_gy=self.alpha_per_gy,
            beta_per_gy2=self.alpha_per_gy / ALPHA_TO_BETA_GY,
            tmz_factor=self.tmz_factor,
        )

    def drawn(self, z: Float64Array) -> "GrowthFit":
        """The same past with other parameters, (4,) in standard deviations of the priors."""
        other = parameters_of(z)
        return replace(
            self,
            rho_per_day=other.rho_per_day,
            d_white_mm2_per_day=other.d_white_mm2_per_day,
            tmz_factor=other.tmz_factor,
            alpha_per_gy=other.alpha_per_gy,
        )


@dataclass(frozen=True, eq=False)
class GrowthForecast:
    """Tumours on the day asked for."""

    masks: Mask
    """(n, d, h, w) visible tumour."""
    volumes_ml: tuple[float, ...]
    """Of each."""


def fit_growth(
    t1: NDArray[np.floating],
    masks: Mask,
    brain: Mask,
    days: Sequence[int],
    treatments: Sequence[str],
    spacing_mm: float,
) -> GrowthFit:
    """Fits the growth of one patient's tumour to what was seen of it, s sessions in time order.

    From each session the tumour of the next is predicted (`Course.follow`). The most probable
    parameters minimise the squared errors of log volume and Dice plus the squared distance from
    the priors, in logarithms. The same input gives the same fit.

    Args:
        t1: (s, d, h, w) in [0, 1].
        masks: (s, d, h, w) visible tumour; a session may have none.
        brain: (d, h, w), tumour included.
        days: of the sessions, not falling.
        treatments: keys of TREATMENTS, of the interval that ends at each session. A course of
            radiation begins with the first of consecutive CRT intervals and is 60 Gy in 30
            fractions (Stupp et al. 2005).
        spacing_mm: edge of a cubic voxel. Below 4/3 mm the equation is solved on blocks of about
            2 mm.

    Raises:
        ValueError: shapes, types, days or treatments do not fit together.
    """
    began = time.perf_counter()
    past = see_past(t1, masks, brain, (days, treatments), spacing_mm)
    posterior = most_probable(past.coarse)
    found = parameters_of(posterior.mode)
    return GrowthFit(
        rho_per_day=found.rho_per_day,
        d_white_mm2_per_day=found.d_white_mm2_per_day,
        tmz_factor=found.tmz_factor,
        alpha_per_gy=found.alpha_per_gy,
        loss=posterior.loss,
        evaluations=posterior.evaluations,
        seconds=time.perf_counter() - began,
        converged=posterior.converged,
        reason="; ".join(note for note in (past.fine.tissue.note, posterior.reason) if note),
        past=past,
        posterior=posterior,
    )


def forecast_growth(
    fit: GrowthFit, *, day: int, treatment: str, samples: int = 1, seed: int = 0
) -> GrowthForecast:
    """The tumour on `day`, if `treatment` is given from the last session until then.

    Args:
        day: on the scale of the days that were fitted, not before the last of them.
        treatment: a key of TREATMENTS.
        samples: 1 is the forecast of the most probable parameters, the one to score. More are
            forecasts of parameters drawn from Laplace's approximation of their posterior. Their
            spread is that of the parameters and holds no error of the equation.
        seed: of those draws.

    Raises:
        ValueError: `day`, `treatment` or `samples` is not possible.
    """
    last = fit.past.fine.days[-1]
    if day < last:
        raise ValueError(f"day {day} lies before the last session, on day {last}")
    if treatment not in TREATMENTS:
        raise ValueError(f"treatment must be one of {', '.join(TREATMENTS)}, got {treatment!r}")
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    fits = [fit]
    if samples > 1:
        fits = [fit.drawn(z) for z in fit.posterior.draw(samples, seed)]
    masks = np.stack([f.past.forecast(f.parameters, day, treatment) for f in fits])
    voxel_ml = fit.past.fine.spacing_mm**3 / 1000
    return GrowthForecast(masks, tuple(float(mask.sum()) * voxel_ml for mask in masks))
