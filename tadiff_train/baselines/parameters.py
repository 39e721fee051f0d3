"""What decides how a tumour grows, and what is believed of it before a patient is seen."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tadiff_train.baselines.anatomy import GREY_SHARE
from tadiff_train.phantom.growth import TumourParameters

Float64Array = NDArray[np.float64]

ALPHA_TO_BETA_GY = 10.0
"""Rockne et al. 2010; Pedicini et al. 2014 estimate 8 (5 to 10.8)."""


@dataclass(frozen=True)
class Prior:
    """A log-normal belief in a positive parameter."""

    median: float
    log_sd: float

    def at(self, z: float) -> float:
        """The value z standard deviations above the median, in logarithms."""
        return float(self.median * np.exp(self.log_sd * z))


PRIORS = {
    "rho_per_day": Prior(0.02, 0.8),
    "width_mm": Prior(3.0, 0.8),
    "tmz_factor": Prior(0.5, 0.7),
    "alpha_per_gy": Prior(0.025, 1.0),
}
"""width_mm is sqrt(D / rho) in white matter. docs/baselines.md says where they come from."""
RHO, WIDTH, TMZ, ALPHA = range(len(PRIORS))
"""Positions in a vector z of parameters, in standard deviations of their priors."""
MAX_D_MM2_PER_DAY = 2.0
"""Three times the D of Swanson et al. 2000; steps of the integrator are as short as D is large."""


def front_width_mm(parameters: TumourParameters) -> float:
    """sqrt(D / rho) in white matter."""
    return float(np.sqrt(parameters.d_white_mm2_per_day / parameters.rho_per_day))


def parameters_of(z: Float64Array) -> TumourParameters:
    """As the integrator takes them, of parameters (4,); D is at most MAX_D_MM2_PER_DAY."""
    rho, width_mm, tmz, alpha = (p.at(at) for p, at in zip(PRIORS.values(), z, strict=True))
    d_white = min(rho * width_mm**2, MAX_D_MM2_PER_DAY)
    return TumourParameters(
        rho_per_day=rho,
        d_white_mm2_per_day=d_white,
        d_grey_mm2_per_day=d_white * GREY_SHARE,
        alpha_per_gy=alpha,
        beta_per_gy2=alpha / ALPHA_TO_BETA_GY,
        tmz_factor=tmz,
    )
