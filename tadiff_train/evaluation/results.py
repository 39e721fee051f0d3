"""What an evaluation found of each patient, and of all."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from tadiff_train.evaluation.calibration import Calibration, VolumeInterval
from tadiff_train.evaluation.scores import Score

POPULATION = "patients"
"""Whether a model has seen them is not known here, so it is not said."""

MIN_PLAN_DIFFERENCE_ML = 0.5
"""Two plans whose true volumes are closer have no order to be right about."""


@dataclass(frozen=True)
class Plan:
    """One patient under one treatment of the last interval; volumes as in `Patient.ml`."""

    treatment: str
    true_ml: float
    model_ml: float
    """Mean over samples; all plans of a patient are drawn with one seed."""
    model_dice: float | None
    growth_ml: float | None
    """None where the growth baseline was not run or failed."""
    growth_dice: float | None


@dataclass(frozen=True)
class GrowthResult:
    """What the growth baseline did for one patient."""

    score: Score | None
    """None if it failed."""
    fit: dict[str, float | int | str | bool]
    intervals: tuple[VolumeInterval, ...]
    """Of the volume, from the spread of its parameters; none if that was not asked for."""
    failure: str
    """Why there is no score; empty if there is one."""


@dataclass(frozen=True, eq=False)
class PatientResult:
    """The forecast of one patient's last session, and how far it was off."""

    name: str
    treatment: str
    target_day: int
    horizon_days: int
    """From the last source to the target."""
    num_sources: int
    """Sessions before the target; the network sees the last three."""
    extrapolated: bool
    """The target lies beyond the days or the horizons seen in training."""
    slices: tuple[int, ...]
    """Evaluated slices of the canonical grid, the same for every method."""
    slice_step: int
    """Every so many slices one was evaluated."""
    true_ml: float
    """Tumour of the target; like all volumes by the evaluated slices, see `Patient.ml`."""
    unforecast_ml: float
    """Tumour of the target outside every slice that the choice of slices covers."""
    model: Score
    copy: Score
    growth: GrowthResult | None
    """None if the baseline was not run."""
    calibration: Calibration
    """Of the model."""
    plans: tuple[Plan, ...] = ()
    """The treatment that was given, then others whose truth is known; empty if not asked for."""
    seed: int = 0
    """Of this patient's draws, which `tadiff-rt predict` repeats."""

    def score_of(self, method: str) -> Score | None:
        """Of "model", "copy" or "growth"; None where there is none."""
        if method == "growth":
            return self.growth.score if self.growth else None
        return {"model": self.model, "copy": self.copy}[method]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Results of all patients, in order of name whatever order they are given in."""

    results: tuple[PatientResult, ...]
    population: str = POPULATION
    """Who the patients are, in words."""
    settings: Mapping[str, object] = field(default_factory=dict)
    """What else is to be said of the run, such as the model, samples and steps."""
    seed: int = 0
    """Of the bootstrap and of ties."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Patients that could not be evaluated, and why."""

    def __post_init__(self) -> None:
        # Resampling depends on the order: one set of patients must give one table.
        ordered = sorted(self.results, key=lambda result: result.name)
        object.__setattr__(self, "results", tuple(ordered))

    @property
    def with_growth(self) -> bool:
        """Whether the growth baseline was run."""
        return any(result.growth for result in self.results)
