"""Distance of a plan from a dense run on a bundle's own network, beside what samples resolve."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tadiff_rt.assembly import Forecast
from tadiff_rt.batches import Progress
from tadiff_rt.case import Case
from tadiff_rt.forecast import Forecaster
from tadiff_rt.sampling import SamplingRequest
from tadiff_rt.schedule import NoiseSchedule

DENSE_SOLVER = "dpmpp_2m"
DENSE_GRID = "logsnr"
DENSE_STEPS = 100
"""On the bundled model 100 steps are two orders of magnitude nearer to a run of all trained
timesteps than other noise is; rows "distance to" in benchmarks/results/quality.jsonl."""

STOCHASTIC_DENSE_SOLVER = "sde_dpmpp_2m"
"""The dense run of solvers that draw noise. On a network that is not exact they and the others
have different limits; see docs/solvers.md."""

TINY = 1e-12
"""Added to spreads, so that two ensembles without any have the ratio 1."""

HORIZON = "+90"
"""Days after the last session of the forecast that is measured on."""


@dataclass(frozen=True)
class Sample:
    """Slices of a case on which distances are measured."""

    case: Case
    slices: str


@dataclass(frozen=True, eq=False)
class Drawn:
    """An ensemble on some slices of the network's grid."""

    mean: NDArray[np.float32]
    """(3, ..., h, w)"""
    std: NDArray[np.float32]
    """(3, ..., h, w)"""
    probability: NDArray[np.float32]
    """(..., h, w)"""
    voxels: NDArray[np.int64]
    """(samples,) tumour voxels"""
    brain: NDArray[np.bool_]
    """(..., h, w)"""


@dataclass(frozen=True)
class Distance:
    """How far an ensemble is from another, inside the brain; 0, ratios and Dice 1 for the same."""

    mean: float
    """Root mean square difference of the mean images, in units of the data range."""
    spread: float
    """Root mean square difference of the standard deviations."""
    spread_ratio: float
    """Mean standard deviation over that of the other."""
    probability: float
    """Mean absolute difference of the tumour probabilities."""
    dice: float
    """Of the masks at probability one half; 1 where both are empty."""
    volume: float
    """Absolute difference of the mean tumour volumes over that of the other (at least one
    voxel)."""


def forecast_of(
    forecaster: Forecaster,
    sample: Sample,
    size: int,
    *,
    seed: int,
    solver: str,
    grid: str,
    steps: int,
    round_times: bool = False,
    progress: Progress | None = None,
) -> Forecast:
    """The forecast that is measured on: HORIZON ahead, under the last treatment that was given.

    Args:
        size: samples of the ensemble.
    """
    return forecaster.predict(
        sample.case,
        day=HORIZON,
        treatment=sample.case.sessions[-1].treatment,
        samples=size,
        seed=seed,
        solver=solver,
        grid=grid,
        steps=steps,
        round_times=round_times,
        slices=sample.slices,
        extrapolate=True,
        progress=progress,
    )


def drawn(forecast: Forecast) -> Drawn:
    """The forecast slices of an ensemble of two or more samples."""
    at, ensemble = list(forecast.slices), forecast.ensemble
    brain = np.any(forecast.prepared.sources[at] > 0, axis=1)
    assert ensemble.std is not None
    return Drawn(
        ensemble.mean[:, at],
        ensemble.std[:, at],
        ensemble.probability[at],
        ensemble.tumour_voxels,
        brain,
    )


def distance(one: Drawn, other: Drawn) -> Distance:
    """Of ensembles on the same slices of the same case."""
    brain = other.brain

    def rms(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
        return float(np.sqrt(((a - b)[:, brain].astype(np.float64) ** 2).mean()))

    mask, reference = one.probability > 0.5, other.probability > 0.5
    both = int(mask.sum() + reference.sum())
    voxels = float(one.voxels.mean()), float(other.voxels.mean())
    return Distance(
        mean=rms(one.mean, other.mean),
        spread=rms(one.std, other.std),
        spread_ratio=(float(one.std[:, brain].mean()) + TINY)
        / (float(other.std[:, brain].mean()) + TINY),
        probability=float(np.abs(one.probability - other.probability)[brain].mean()),
        dice=2 * int((mask & reference).sum()) / both if both else 1.0,
        volume=abs(voxels[0] - voxels[1]) / max(voxels[1], 1.0),
    )


def mean_distance(distances: list[Distance]) -> Distance:
    """Mean of every field."""
    columns = zip(*(dataclasses.astuple(d) for d in distances), strict=True)
    return Distance(*(sum(column) / len(distances) for column in columns))


@dataclass(frozen=True)
class NetworkCertificate:
    """A plan on the bundle's network."""

    plan: Distance
    """From the dense run."""
    floor: Distance
    """From the dense run, of a dense run with other noise: what so many samples cannot resolve."""
    samples: int
    slices: int
    paired: bool
    """Whether the plan and the dense run had the same noise, as only plans can that draw none on
    the way."""


def dense_run(schedule: NoiseSchedule, *, stochastic: bool = False) -> dict[str, Any]:
    """Solver, grid and steps of the run that others are compared with."""
    solver = STOCHASTIC_DENSE_SOLVER if stochastic else DENSE_SOLVER
    steps = min(DENSE_STEPS, schedule.num_train_timesteps)
    return {"solver": solver, "grid": DENSE_GRID, "steps": steps}


def certify_network(
    forecaster: Forecaster,
    case: Case,
    request: SamplingRequest,
    *,
    samples: int,
    slices: str,
    progress: Progress | None = None,
    teacher: Forecaster | None = None,
) -> NetworkCertificate:
    """Forecasts `case` three times: by `request`, densely, and densely with other noise.

    Args:
        teacher: of a distilled network; runs densely in its place.
        request: its solver, steps, grid and seed; its number of samples is not used.
        samples: of each ensemble, 2 or more.
        slices: as for `Forecaster.predict`.
        progress: called with the evaluations of all three.
    """
    seed = int(request.seed)
    manifest = forecaster.bundle.manifest
    schedule = manifest.card.schedule.build()
    sampler = manifest.card.sampler
    request = request.settled(sampler)
    table = request.plan(schedule, manifest.card.start_lam, manifest.optimised, sampler)
    paired = not table.coef_noise.any()
    dense = {**dense_run(schedule, stochastic=not paired), "seed": seed}
    plan = {
        "solver": request.solver,
        "grid": request.grid,
        "steps": int(request.steps),
        "round_times": request.round_times,
        "seed": seed,
    }
    other = teacher or forecaster
    runs: tuple[tuple[Forecaster, dict[str, Any]], ...] = (
        (forecaster, plan),
        (other, dense),
        (other, {**dense, "seed": seed ^ 1}),
    )
    total = sum(run["steps"] for _, run in runs)
    results, before = [], 0
    for network, run in runs:
        share = run["steps"]
        forecast = forecast_of(
            network,
            Sample(case, slices),
            samples,
            progress=_part(progress, before, share, total),
            **run,
        )
        results.append(drawn(forecast))
        before += share
    fast, reference, unlike = results
    return NetworkCertificate(
        distance(fast, reference),
        distance(unlike, reference),
        samples,
        len(fast.mean[0]),
        paired,
    )


def _part(progress: Progress | None, before: int, share: int, total: int) -> Progress | None:
    """Progress of a run that is `share` of `total`, after `before`; in thousandths."""
    if progress is None:
        return None
    return lambda done, of: progress(int(1000 * (before + share * done / of) / total), 1000)
