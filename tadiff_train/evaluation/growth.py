"""The reaction-diffusion baseline of one patient: fitted to the past, forecast on the slices.

It is a worker's whole job, from folder to masks: images are read again rather than sent.
"""

import multiprocessing
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from tadiff_rt.case import MODALITIES, Case, ReadOptions
from tadiff_rt.errors import TadiffError
from tadiff_rt.geometry import check_same_grid
from tadiff_rt.preprocess import DataContract
from tadiff_train.baselines import GrowthFit, fit_growth, forecast_growth
from tadiff_train.data import Subject, read_subject
from tadiff_train.evaluation.forecasts import seed_of
from tadiff_train.evaluation.patients import (
    Float32Array,
    Patient,
    Scope,
    on_network_grid,
    open_patient,
    other_truths,
)
from tadiff_train.metrics import Mask


@dataclass(frozen=True, eq=False)
class Grown:
    """What the baseline says of a patient, or why it says nothing."""

    masks: dict[str, Mask] = field(default_factory=dict)
    """By treatment: (n, h, w) on the evaluated slices, of the most probable parameters."""
    volumes_ml: tuple[float, ...] = ()
    """Under the treatment given, of parameters drawn from their posterior; of the evaluated
    slices. Empty where no spread was asked for."""
    fit: dict[str, float | int | str | bool] = field(default_factory=dict)
    """What was fitted, as `GrowthFit` has it, and `sessions` used."""
    failure: str = ""


@dataclass(frozen=True)
class GrowthTask:
    """What is asked of the baseline for every patient."""

    contract: DataContract
    scope: Scope
    treatments: tuple[str, ...]
    """That other truths may be of."""
    counterfactuals: bool
    samples: int = 1
    """Draws of the parameters for the spread of the volume; 1 for none."""
    seed: int = 0
    """With the name of a patient it gives the seed of that patient's draws."""


Grow = Callable[[GrowthTask, Subject], Grown]


def grow_subject(task: GrowthTask, subject: Subject) -> Grown:
    """Fits the sessions before the last and forecasts that one, under every plan with a truth.

    A failure of the fit is told, not raised: it must not end an evaluation, and a patient must
    not vanish for it.
    """
    try:
        patient = open_patient(
            read_subject(subject, ReadOptions(labels=task.scope.labels)), task.contract, task.scope
        )
        history = see_history(patient, task.contract)
        fit = fit_growth(
            history.t1,
            history.masks,
            history.brain,
            history.days,
            history.treatments,
            history.spacing_mm,
        )
        plans = [patient.target.treatment]
        if task.counterfactuals:
            truths = other_truths(subject, patient, task.contract, task.treatments)
            plans += [treatment for treatment, _ in truths]
        masks = {treatment: _tumours(fit, patient, treatment)[0] for treatment in plans}
        several = task.samples > 1
        seed = seed_of(task.seed, subject.name)
        drawn = _tumours(fit, patient, plans[0], task.samples, seed) if several else ()
        volumes_ml = tuple(patient.ml(tumour) for tumour in drawn)
    except (TadiffError, ValueError, ArithmeticError) as error:
        return Grown(failure=f"{type(error).__name__}: {error}")
    return Grown(masks, volumes_ml, {**_described(fit), "sessions": len(history.days)})


def _tumours(
    fit: GrowthFit, patient: Patient, treatment: str, samples: int = 1, seed: int = 0
) -> Mask:
    """(samples, n, h, w) on the evaluated slices."""
    forecast = forecast_growth(
        fit, day=patient.target.day, treatment=treatment, samples=samples, seed=seed
    )
    return forecast.masks[:, patient.at]


def grow_all(
    subjects: Sequence[Subject], task: GrowthTask, grow: Grow | None, jobs: int
) -> Generator[Grown | None, None, None]:
    """The baseline of every subject in their order, from this process or from `jobs` others.

    None of each where `grow` is None. Closing it early gives up what has not begun.
    """
    if grow is None:
        yield from (None for _ in subjects)
        return
    work = partial(grow, task)
    if jobs == 1:
        yield from map(work, subjects)
        return
    # Spawned, not forked: the caller holds threads of the backend and of a progress bar.
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(work, subjects)


@dataclass(frozen=True, eq=False)
class History:
    """Sessions before the target with a mask, in time order, on the network's grid."""

    t1: Float32Array
    """(s, d, h, w) in [0, 1]."""
    masks: Mask
    """(s, d, h, w)."""
    brain: Mask
    """(d, h, w) voxels > 0 in any T1."""
    days: tuple[int, ...]
    treatments: tuple[str, ...]
    spacing_mm: float
    """Edge of a cube of a voxel's volume."""


def see_history(patient: Patient, contract: DataContract) -> History:
    """The unbroken run of sessions with a mask that ends at the last source.

    Across a session that is left out, one interval would hold two treatments.
    """
    sessions = patient.case.sessions[_first_of_run(patient.case) :]
    check_same_grid([volume for s in sessions for volume in (s.images["t1"], s.mask) if volume])
    window = patient.prepared.window
    images, masks = zip(*(on_network_grid(s, window, contract) for s in sessions), strict=True)
    t1: NDArray[np.float32] = np.stack([image[MODALITIES.index("t1")] for image in images])
    return History(
        t1=t1,
        masks=np.stack(masks),
        brain=np.any(t1 > 0, axis=0),
        days=tuple(session.day for session in sessions),
        treatments=tuple(session.treatment for session in sessions),
        spacing_mm=float(np.cbrt(1000 * patient.voxel_ml)),
    )


def _first_of_run(case: Case) -> int:
    missing = [i for i, session in enumerate(case.sessions) if session.mask is None]
    return missing[-1] + 1 if missing else 0


def _described(fit: GrowthFit) -> dict[str, float | int | str | bool]:
    """The numbers of a fit that a reader may want; not how long it took, which differs by run."""
    return {
        name: value
        for name, value in vars(fit).items()
        if isinstance(value, float | int | str) and name != "seconds"
    }
