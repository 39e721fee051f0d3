"""What if: forecasts of one case on several days under several treatments, compared.

Every scenario is drawn with the same noise (common random numbers: Glasserman and Yao 1992), so
that sample k of one and sample k of another differ by the plan alone. Their difference is then
known far better than from two independent ensembles.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tadiff_rt.assembly import Forecast
from tadiff_rt.request import Scenario

__all__ = ["Comparison", "Difference", "PastVolume", "Scenario", "VolumeDifference"]

Float32Array = NDArray[np.float32]


@dataclass(frozen=True)
class PastVolume:
    """Tumour at a source session, the last of which the forecasts start from."""

    day: int
    treatment: str
    volume_ml: float | None
    """None where no mask is known."""


@dataclass(frozen=True)
class VolumeDifference:
    """Tumour volume of a scenario minus that of the reference, sample by sample."""

    mean_ml: float
    low_ml: float | None
    """Lower end of where the difference of one further sample lies; None for one sample."""
    high_ml: float | None
    level: float
    """Probability of that."""
    samples_ml: tuple[float, ...]
    mean_interval_ml: tuple[float, float] | None = None
    """Where the mean of infinitely many samples lies at confidence `level`; None for one."""


@dataclass(frozen=True, eq=False)
class Difference:
    """One scenario minus another of the same day, on the patient's grid."""

    scenario: Scenario
    reference: Scenario
    probability: Float32Array
    """(x, y, z) mean over samples of the difference of the tumour probabilities, -1 to 1."""
    std: Float32Array | None
    """(x, y, z) standard deviation over samples of that difference; None for one sample."""
    volume_ml: VolumeDifference


@dataclass(frozen=True, eq=False)
class Comparison:
    """Forecasts of one case with the same noise, and what differs between treatments."""

    case_name: str
    """As read; only where the result itself may carry it."""
    forecasts: dict[Scenario, Forecast]
    """By day, then in the order in which treatments were asked for."""
    differences: tuple[Difference, ...] = ()
    """Of every treatment but the reference, on every day; the reference is the one asked for
    last."""
    past: tuple[PastVolume, ...] = ()
    """Of the source sessions in time order, without those repeated as padding."""
    report: dict[str, Any] = field(default_factory=dict, repr=False)
    """What was asked, from what, with what, and how long it took; no identifiers."""

    @property
    def first(self) -> Forecast:
        """Of the first scenario: what is the same in all of them can be read there."""
        return next(iter(self.forecasts.values()))
