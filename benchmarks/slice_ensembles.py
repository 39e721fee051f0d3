"""Ensembles of one slice of a case, drawn a sample at a time, by the runtime or by others."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.diffusers_run import DiffusersRun
from tadiff_rt import Forecaster
from tadiff_rt.batches import LAST_SOURCE, BatchRunner, Sampling
from tadiff_rt.case import Case
from tadiff_rt.certify.network import HORIZON, Drawn
from tadiff_rt.ensemble import TARGET_SLOT, SliceStatistics
from tadiff_rt.forecast import conditions, make_ready
from tadiff_rt.noise import NoiseSource
from tadiff_rt.plan import SolverPlan, mask_weights
from tadiff_rt.request import PredictRequest
from tadiff_rt.solvers import make_plan

Draw = Callable[[int], tuple[NDArray[np.float32], NDArray[np.float32]]]
"""Sample number -> image (3, h, w), the target's mask logits (h, w)."""


class Slice:
    """One slice of a case that is ready, and the ways to draw it."""

    def __init__(self, forecaster: Forecaster, case: Case, number: int) -> None:
        manifest = forecaster.bundle.manifest
        last = case.sessions[-1].treatment
        request = PredictRequest(
            days=[HORIZON], treatments=[last], slices=str(number), extrapolate=True
        )
        ready = make_ready(forecaster.bundle, case, request)
        self.backend, self.card = forecaster.backend, manifest.card
        self.schedule = manifest.card.schedule.build()
        (self.at,) = ready.slices
        self.sources = ready.prepared.sources
        self.inside = ready.prepared.window.inside(ready.prepared.grid.shape)
        self.brain = np.any(self.sources[self.at] > 0, axis=0)
        self._given = conditions(ready.sources, ready.scenarios[0], manifest.card.treatments)

    def plan(self, solver: str, steps: int, grid: str = "logsnr") -> SolverPlan:
        """From where the bundle's runs start."""
        return make_plan(self.schedule, solver, steps, grid, self.card.start_lam)

    @property
    def informed(self) -> bool:
        """Whether runs start from the noised last scan."""
        return self.card.start_lam is not None

    def drawn_by(self, plan: SolverPlan, seed: int = 0) -> Draw:
        """By the runtime, one row at a time."""
        shifts = self.backend.condition(plan.t, *self._given)
        sampling = Sampling(plan, NoiseSource(seed), self.card.x0_range, self.informed)
        runner = BatchRunner(self.backend, sampling, shifts, self.sources)

        def draw(sample: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
            ((_, image, logits),) = runner.run([(self.at, sample)])
            return image, logits[TARGET_SLOT]

        return draw

    def drawn_by_diffusers(self, run: DiffusersRun, *, clipped: bool = False) -> Draw:
        """By their scheduler, with our fusion of the masks.

        Args:
            clipped: estimates of x0 stay in the range of the data, as in the runtime; their
                scheduler has no such option.
        """
        times = run.times()
        shifts = self.backend.condition(times, *self._given)
        levels = self.schedule.levels_at(times)
        weights = mask_weights(self.schedule, levels)
        sources = self.sources[self.at : self.at + 1]
        guess = sources[:, LAST_SOURCE] if self.informed else None

        def draw(sample: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
            fused = np.zeros_like(sources[0, 0])

            def denoise(x: NDArray[Any], i: int) -> NDArray[Any]:
                eps, logits = self.backend.denoise(sources, x, shifts[i : i + 1])
                np.add(fused, np.float32(weights[i]) * logits[0, TARGET_SLOT], out=fused)
                if clipped and self.card.x0_range is not None:
                    alpha, sigma = levels.alpha[i], levels.sigma[i]
                    x0 = np.clip((x - sigma * eps) / alpha, *self.card.x0_range)
                    eps = (x - alpha * x0) / sigma
                return eps

            noise = NoiseSource(0).initial([(self.at, sample)], (3, *fused.shape))
            return run.sample(denoise, noise, guess)[0], fused

        return draw


class Drawing:
    """An ensemble that grows by a sample a call."""

    def __init__(self, draw: Draw, where: Slice) -> None:
        self._draw, self._where = draw, where
        shape = where.brain.shape
        self._statistics = SliceStatistics((3, *shape), shape)
        self._numbers = itertools.count()

    def __call__(self) -> None:
        """Draws the next sample."""
        image, logits = self._draw(next(self._numbers))
        self._statistics.add(image, np.where(self._where.inside, logits, -np.inf))

    def drawn(self) -> Drawn:
        """The ensemble; of two samples or more."""
        found = self._statistics
        assert found.std is not None
        mean, std, probability = (
            v.astype(np.float32) for v in (found.mean, found.std, found.tumour_probability)
        )
        return Drawn(mean, std, probability, np.array(found.areas), self._where.brain)
