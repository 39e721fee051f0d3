"""The most probable parameters of a tumour, given its past."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from tadiff_train.baselines.course import Course
from tadiff_train.baselines.parameters import (
    ALPHA,
    PRIORS,
    RHO,
    TMZ,
    WIDTH,
    front_width_mm,
    parameters_of,
)

Float64Array = NDArray[np.float64]

VOLUME_ERROR = 0.1
"""Standard deviation of the log volume of a predicted tumour."""
DICE_ERROR = 0.1
"""The same of 1 - Dice."""
LIMIT = 3.0
"""Standard deviations of the prior within which parameters are searched."""
STARTS = (0.0, -1.0, -2.0)
"""Radiosensitivities that are tried first, in standard deviations of the prior."""
STEP = 0.1
"""Standard deviations of the prior that derivatives are taken over: shares of voxels are
smooth over such steps, not over much smaller ones."""
MAX_ITERATIONS = 10
"""Of the optimiser; each integrates the past once, and once more for every parameter."""
TOLERANCE = 0.01
"""Relative change of loss or parameters at which it stops."""


@dataclass(frozen=True, eq=False)
class Posterior:
    """Parameters in standard deviations of PRIORS, in its order."""

    mode: Float64Array
    """(4,) the most probable."""
    covariance: Float64Array
    """(4, 4) by Laplace's method: the inverse of J^T J at the mode."""
    loss: float
    """Half the sum of squares at the mode: misfit, and distance from the prior."""
    evaluations: int
    """How often the past was integrated."""
    converged: bool
    reason: str

    def draw(self, num: int, seed: int) -> Float64Array:
        """(num, 4) parameters, kept within LIMIT."""
        rng = np.random.default_rng(seed)
        return np.clip(rng.multivariate_normal(self.mode, self.covariance, num), -LIMIT, LIMIT)


def most_probable(course: Course) -> Posterior:
    """Least squares by a trust region (Branch et al. 1999), from fixed starts.

    A treatment that was never given keeps its prior.
    """
    mode, covariance = np.zeros(len(PRIORS)), np.eye(len(PRIORS))
    scored = _scored(course)
    if not scored:
        reason = "one day with tumour alone: the parameters are those of the prior"
        if not course.masks.any():
            reason = "no tumour in any session"
        return Posterior(mode, covariance, 0.0, 0, True, reason)
    free = _informed(course, scored)
    problem = _Problem(course, scored, free)
    found = least_squares(
        problem.residuals,
        problem.start(),
        bounds=(-LIMIT, LIMIT),
        jac=problem.jacobian,
        ftol=TOLERANCE,
        xtol=TOLERANCE,
        max_nfev=MAX_ITERATIONS,
    )
    mode[free] = found.x
    covariance[np.ix_(free, free)] = np.linalg.inv(found.jac.T @ found.jac)
    settled = found.status > 0
    reason = "" if settled else f"the fit did not settle in {MAX_ITERATIONS} iterations"
    return Posterior(mode, covariance, float(found.cost), problem.evaluations, settled, reason)


def _scored(course: Course) -> list[int]:
    """Sessions that say something of growth: later than the one before, after the first tumour."""
    seen = [bool(mask.any()) for mask in course.masks]
    return [
        k
        for k in range(1, len(course.days))
        if course.days[k] > course.days[k - 1] and any(seen[:k])
    ]


def _informed(course: Course, scored: Sequence[int]) -> list[int]:
    """Positions of the parameters that the past says something of."""
    given = {course.treatments[k] for k in scored}
    free = [RHO, WIDTH]
    if given & {"TMZ", "CRT"}:
        free.append(TMZ)
    if "CRT" in given:
        free.append(ALPHA)
    return free


class _Problem:
    """Least squares over the informed parameters alone; z is (len(free),)."""

    def __init__(self, course: Course, scored: Sequence[int], free: Sequence[int]) -> None:
        self._course = course
        self._scored = scored
        self._free = list(free)
        self._last = (np.full(len(self._free), np.nan), np.empty(0))
        self.evaluations = 0

    def start(self) -> Float64Array:
        """The medians of the priors, or if it does better, with fewer cells killed by radiation.

        A tumour that is predicted to vanish has no derivative that would bring it back.
        """
        if ALPHA not in self._free:
            return np.zeros(len(self._free))
        starts = [np.where(np.array(self._free) == ALPHA, z, 0.0) for z in STARTS]
        return min(starts, key=lambda z: float(np.sum(self.residuals(z) ** 2)))

    def residuals(self, z: Float64Array) -> Float64Array:
        """Errors of volume and of overlap of every scored session, then `z` itself.

        The last are kept: the optimiser asks for derivatives where it has just been.
        """
        if np.array_equal(z, self._last[0]):
            return self._last[1]
        self.evaluations += 1
        full = np.zeros(len(PRIORS))
        full[self._free] = z
        parameters = parameters_of(full)
        _, predicted = self._course.follow(parameters)
        width_mm = front_width_mm(parameters)
        errors = []
        for k in self._scored:
            log_ratio, dice = self._course.agreement(predicted[k - 1], k, width_mm)
            errors += [log_ratio / VOLUME_ERROR, (1 - dice) / DICE_ERROR]
        self._last = (z.copy(), np.array([*errors, *z]))
        return self._last[1]

    def jacobian(self, z: Float64Array) -> Float64Array:
        """Forward differences, backward at the upper limit."""
        here = self.residuals(z)
        steps = np.where(z + STEP < LIMIT, STEP, -STEP)
        columns = [
            (self.residuals(z + step * unit) - here) / step
            for step, unit in zip(steps, np.eye(len(z)), strict=True)
        ]
        return np.stack(columns, axis=1)
