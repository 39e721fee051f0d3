"""The levels of a short run that come nearest to the dense one, found for a bundle.

The best of some candidates, such as those of `path`, is improved on what counts, the distance of
the ensemble from the dense one, level by level.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from tadiff_rt.certify.analytic import STANDARD_DEVIATIONS, gaussian_run
from tadiff_rt.certify.network import (
    Distance,
    Drawn,
    Sample,
    dense_run,
    distance,
    drawn,
    forecast_of,
    mean_distance,
)
from tadiff_rt.certify.report import analytic_checks
from tadiff_rt.forecast import Forecaster
from tadiff_rt.manifest import OptimisedLevels
from tadiff_rt.sampling import OPTIMISED
from tadiff_rt.schedule import NoiseSchedule
from tadiff_rt.solvers import SolverPlan, plan_at

SWEEPS = 3
"""Over all inner levels in the last stage, with steps halved each time."""


def spread_of(plan: SolverPlan, *, informed: bool) -> dict[str, float]:
    """Spread ratios on Gaussians, by their standard deviation."""
    return {
        f"{std:g}": gaussian_run(plan, std, informed=informed).spread_ratio
        for std in STANDARD_DEVIATIONS
    }


def with_levels(forecaster: Forecaster, levels: OptimisedLevels) -> Forecaster:
    """The same network under a manifest that holds `levels` alone."""
    manifest = forecaster.bundle.manifest.model_copy(update={"optimised": (levels,)})
    bundle = dataclasses.replace(forecaster.bundle, manifest=manifest)
    return Forecaster(bundle, forecaster.backend, 0.0)


class Judge:
    """Distances of candidate levels from the dense run, on fixed slices with fixed noise."""

    def __init__(
        self, forecaster: Forecaster, samples: Sequence[Sample], size: int, seed: int, solver: str
    ) -> None:
        """
        Args:
            size: samples of each ensemble.
            solver: of the candidates.
        """
        self._forecaster = forecaster
        self._samples = samples
        self._size = size
        self._seed = seed
        self.solver = solver
        schedule = forecaster.bundle.manifest.card.schedule.build()
        dense = dense_run(schedule)
        self._dense = self._drawn(forecaster, **dense, seed=seed)
        self.floor = self._mean(self._drawn(forecaster, **dense, seed=seed ^ 1))
        """Of a dense run with other noise."""

    def of_grid(self, steps: int, grid: str = "logsnr") -> Distance:
        """Mean distance of a named grid."""
        return self._of(self._forecaster, steps, grid)

    def of_times(self, times: Sequence[float]) -> Distance:
        """Mean distance of given times."""
        levels = OptimisedLevels(
            solver=self.solver,
            start_lam=self._forecaster.bundle.manifest.card.start_lam,
            times=tuple(times),
            distance={},
            spread={},
            searched_on="",
        )
        return self._of(with_levels(self._forecaster, levels), len(times), OPTIMISED)

    def _of(self, forecaster: Forecaster, steps: int, grid: str) -> Distance:
        run = {"solver": self.solver, "grid": grid, "steps": steps, "seed": self._seed}
        return self._mean(self._drawn(forecaster, **run))

    def _drawn(self, forecaster: Forecaster, **run: Any) -> list[Drawn]:
        return [drawn(forecast_of(forecaster, s, self._size, **run)) for s in self._samples]

    def _mean(self, ensembles: list[Drawn]) -> Distance:
        pairs = zip(ensembles, self._dense, strict=True)
        return mean_distance([distance(one, dense) for one, dense in pairs])

    def score(self, found: Distance) -> float:
        """Mean of the distances of mean, spread and probability over those of other noise."""
        floor = self.floor
        pairs = (
            (found.mean, floor.mean),
            (found.spread, floor.spread),
            (found.probability, floor.probability),
        )
        return sum(_over(value, limit) for value, limit in pairs) / len(pairs)


def _over(value: float, limit: float) -> float:
    """value / limit; a limit of 0 is met by 0 alone, as by a mask that no run finds."""
    if limit > 0:
        return value / limit
    return 0.0 if value == 0 else math.inf


def search(
    judge: Judge,
    schedule: NoiseSchedule,
    candidates: Sequence[Sequence[float]],
    *,
    informed: bool,
    say: Callable[[str], None] = lambda message: None,
) -> tuple[list[float], float]:
    """The best times found from `candidates`, and their score; infinite where none passes.

    Only times count whose plan passes every analytic check of a certificate.

    Every inner level moves up and down in λ by a share of its distance to its neighbours; a move
    that lowers the score is kept.
    """

    def scored(times: Sequence[float]) -> float:
        plan = plan_at(schedule, judge.solver, times)
        checks = analytic_checks(plan, schedule, informed=informed)
        if not all(check.passed for check in checks):
            return math.inf
        return judge.score(judge.of_times(times))

    ranked = sorted((scored(times), list(times)) for times in candidates)
    best, times = ranked[0]
    say(f"best of {len(candidates)} candidates: {best:.4f} of the distance of other noise")
    for sweep in range(SWEEPS if math.isfinite(best) else 0):
        for moved in _moves(schedule, times, 0.4 / 2**sweep):
            value = scored(moved(times))
            if value < best:
                best, times = value, moved(times)
        say(f"sweep {sweep + 1} of {SWEEPS}: {best:.4f}")
    return times, best


def _moves(
    schedule: NoiseSchedule, times: Sequence[float], share: float
) -> Iterator[Callable[[Sequence[float]], list[float]]]:
    """Moves of one inner level by `share` of the way to a neighbour, in λ."""

    def move(at: int, towards: int) -> Callable[[Sequence[float]], list[float]]:
        def moved(now: Sequence[float]) -> list[float]:
            lam = schedule.lam(np.array(now))
            lam[at] += share * (lam[towards] - lam[at])
            result = list(now)
            result[at] = float(schedule.t_of_lam(float(lam[at])))
            return result

        return moved

    for at in range(1, len(times) - 1):
        for towards in (at - 1, at + 1):
            yield move(at, towards)
