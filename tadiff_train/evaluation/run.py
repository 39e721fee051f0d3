"""Forecasts of the last session of every patient, compared with that session.

The model sees the sessions before the last one and is asked for the last one's day and
treatment. It is shown beside a copy of the last source, which many published forecasts are further
off than, and a growth model that is fitted to the true masks of all sessions before.
"""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace

from tadiff_rt.card import ModelCard
from tadiff_rt.case import ReadOptions
from tadiff_rt.errors import TadiffError
from tadiff_rt.forecast import Forecaster
from tadiff_train.data import Subject, read_subject
from tadiff_train.evaluation.calibration import calibrate, volume_intervals
from tadiff_train.evaluation.forecasts import (
    Draw,
    Prediction,
    copy_of_last,
    of_mask,
    predict,
)
from tadiff_train.evaluation.growth import Grow, Grown, GrowthTask, grow_all, grow_subject
from tadiff_train.evaluation.patients import (
    Patient,
    Scope,
    open_patient,
    other_truths,
)
from tadiff_train.evaluation.results import GrowthResult, PatientResult, Plan
from tadiff_train.evaluation.scores import score
from tadiff_train.metrics import Mask, dice

DRAW, SCOPE = Draw(), Scope()


def evaluate(
    forecaster: Forecaster,
    subjects: Sequence[Subject],
    *,
    draw: Draw = DRAW,
    scope: Scope = SCOPE,
    counterfactuals: bool = False,
    grow: Grow | None = grow_subject,
    jobs: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> list[PatientResult]:
    """Forecasts the last session of every subject and scores the forecast and its baselines.

    The slices of `scope.slices` are evaluated, chosen by what was known before the target.

    Args:
        forecaster: anything with `predict` and the model card of `Forecaster`.
        subjects: with a tumour mask of the last sessions.
        draw: its seed and the name of a patient give the seed of that patient's draws.
        counterfactuals: also forecast the other treatments whose truth derivatives/phantom holds.
        grow: the growth baseline; None to go without.
        jobs: processes for `grow`; results do not depend on it.
        progress: called with (patients done, patients).

    Raises:
        UsageError: TD3035 a subject has one session, TD3036 a session has no mask.
        TadiffError: a case cannot be read or forecast.
    """
    card = forecaster.bundle.manifest.card
    task = GrowthTask(
        card.data, scope, tuple(card.treatments), counterfactuals, draw.samples, draw.seed
    )
    results = []
    with closing(grow_all(subjects, task, grow, jobs)) as every_grown:
        for subject in subjects:
            patient, futures = _open(subject, task)
            own = draw.of_patient(subject.name)
            said = {plan: predict(forecaster, patient, plan, own) for plan, _ in futures}
            result = _result(patient, card, said, next(every_grown), futures)
            results.append(replace(result, seed=own.seed))
            if progress is not None:
                progress(len(results), len(subjects))
    return results


def usable_subjects(
    subjects: Sequence[Subject], card: ModelCard, scope: Scope, *, counterfactuals: bool = False
) -> tuple[list[Subject], dict[str, TadiffError]]:
    """Those that `evaluate` can open, and by name why it cannot open the others.

    It takes seconds a patient, and one that cannot be used ends an evaluation of hours.
    """
    task = GrowthTask(card.data, scope, tuple(card.treatments), counterfactuals)
    usable, bad = [], {}
    for subject in subjects:
        try:
            _open(subject, task)
        except TadiffError as error:
            bad[subject.name] = error
        else:
            usable.append(subject)
    return usable, bad


def _open(subject: Subject, task: GrowthTask) -> tuple[Patient, list[tuple[str, Mask]]]:
    """A patient, and the true tumour by treatment, the one given first."""
    patient = open_patient(
        read_subject(subject, ReadOptions(labels=task.scope.labels)), task.contract, task.scope
    )
    futures = [(patient.target.treatment, patient.true_tumour)]
    if task.counterfactuals:
        futures += other_truths(subject, patient, task.contract, task.treatments)
    return patient, futures


def _result(
    patient: Patient,
    card: ModelCard,
    said: dict[str, Prediction],
    grown: Grown | None,
    futures: Sequence[tuple[str, Mask]],
) -> PatientResult:
    """Scores of all methods.

    Args:
        said: by the model, by treatment.
        futures: see `_open`.
    """
    case, target = patient.case, patient.target
    horizon_days = target.day - case.sessions[-1].day
    model = said[target.treatment]
    return PatientResult(
        name=case.name,
        treatment=target.treatment,
        target_day=target.day,
        horizon_days=horizon_days,
        num_sources=len(case.sessions),
        extrapolated=target.day > card.max_day or horizon_days > card.max_horizon_days,
        slices=patient.slices,
        slice_step=patient.slice_step,
        true_ml=patient.ml(patient.true_tumour),
        unforecast_ml=_unforecast_ml(patient),
        model=score(patient, model),
        copy=score(patient, copy_of_last(patient)),
        growth=_growth_result(patient, grown) if grown else None,
        calibration=calibrate(patient, model),
        plans=_plans(patient, said, grown, futures) if len(futures) > 1 else (),
    )


def _unforecast_ml(patient: Patient) -> float:
    assert patient.target.mask is not None  # `split_target` requires it
    outside = (patient.target.mask.data > 0).sum() - patient.tumour[list(patient.covered)].sum()
    return float(outside) * patient.voxel_ml


def _growth_result(patient: Patient, grown: Grown) -> GrowthResult:
    if grown.failure:
        return GrowthResult(None, {}, (), grown.failure)
    said = of_mask(patient, grown.masks[patient.target.treatment])
    if grown.volumes_ml:
        said = Prediction(said.probability, grown.volumes_ml)
    true_ml = patient.ml(patient.true_tumour)
    return GrowthResult(
        score(patient, said), grown.fit, volume_intervals(said.volumes_ml, true_ml), ""
    )


def _plans(
    patient: Patient,
    said: dict[str, Prediction],
    grown: Grown | None,
    futures: Sequence[tuple[str, Mask]],
) -> tuple[Plan, ...]:
    plans = []
    for treatment, truth in futures:
        model = said[treatment]
        growth = grown.masks.get(treatment) if grown else None
        plans.append(
            Plan(
                treatment=treatment,
                true_ml=patient.ml(truth),
                model_ml=sum(model.volumes_ml) / len(model.volumes_ml),
                model_dice=dice(model.tumour, truth),
                growth_ml=None if growth is None else patient.ml(growth),
                growth_dice=None if growth is None else dice(growth, truth),
            )
        )
    return tuple(plans)
