"""Forecasts of the last session of every patient, compared with that session.

The model sees the sessions before the last one and is asked for the last one's day and
treatment. What it is compared with is a copy of the last source: most follow-up scans look like
the one before them, and many published forecasts are further off than that copy.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tadiff_rt.card import ModelCard
from tadiff_rt.case import MODALITIES, TREATMENTS, Case, ReadOptions, Session
from tadiff_rt.ensemble import volume_interval
from tadiff_rt.errors import UsageError
from tadiff_rt.forecast import VOLUME_LEVEL, Forecaster, choose_slices
from tadiff_rt.geometry import canonical_grid, canonical_view, check_same_grid, spacing_of
from tadiff_rt.intensity import measure_range
from tadiff_rt.preprocess import DataContract, Prepared, Window, prepare
from tadiff_rt.readers import read_case
from tadiff_rt.readers.nifti import read_volume
from tadiff_rt.request import NUM_SOURCES, select_sources
from tadiff_rt.slices import parse_slices
from tadiff_train.data import subjects
from tadiff_train.metrics import (
    Mask,
    absolute_volume_error,
    dice,
    mae,
    psnr,
    signed_volume_error,
    ssim,
)
from tadiff_train.results import (
    MIN_PLAN_DIFFERENCE_ML,
    CounterfactualScore,
    PatientResult,
    Score,
)

Float32Array = NDArray[np.float32]


@dataclass(frozen=True)
class _Settings:
    samples: int
    steps: int
    seed: int
    slices: str
    max_slices: int | None
    counterfactuals: bool


@dataclass(frozen=True, eq=False)
class _Prediction:
    """An ensemble on the evaluated slices of the network's grid."""

    images: Float32Array
    """(3, n, h, w) ensemble mean."""
    tumour: Mask
    """(n, h, w) probability above one half."""
    volumes_ml: tuple[float, ...]
    """Of every sample."""


def evaluate(
    forecaster: Forecaster,
    root: Path,
    *,
    targets: Literal["last"] = "last",
    samples: int = 5,
    steps: int = 20,
    seed: int = 0,
    slices: str = "tumour",
    max_slices: int | None = None,
    counterfactuals: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[PatientResult]:
    """Forecasts the last session of every subject of a BIDS data set and scores the forecast.

    Of the slices that a forecast with `slices` covers, those with tumour in the target or in the
    last source are evaluated; tumour forecast in any other slice is not counted.

    Args:
        forecaster: anything with `predict` and the model card of `Forecaster`.
        root: with a tumour mask of every session among its derivatives.
        targets: only "last".
        samples, steps, seed, slices: of every forecast, as in `Forecaster.predict`.
        max_slices: of more, every k-th is forecast and evaluated, which divides the time by k.
            Volumes are then those of the evaluated slices, not of the tumour.
        counterfactuals: also forecast the other treatments whose truth derivatives/phantom holds.
        progress: called with (patients done, patients).

    Raises:
        UsageError: TD3030 no subject, TD3034 `targets` or `max_slices` is not possible, TD3035 a
            subject has one session, TD3036 a session has no mask.
        TadiffError: a case cannot be read or forecast.
    """
    if targets != "last":
        raise UsageError("TD3034", f"only the last session is evaluated, got targets={targets!r}")
    if max_slices is not None and max_slices < 1:
        raise UsageError("TD3034", f"max_slices must be at least 1, got {max_slices}")
    settings = _Settings(samples, steps, seed, slices, max_slices, counterfactuals)
    found = subjects(Path(root))
    results = []
    for subject in found:
        results.append(_evaluate_patient(forecaster, subject, settings))
        if progress is not None:
            progress(len(results), len(found))
    return results


@dataclass(frozen=True, eq=False)
class _Patient:
    """What is known before the target, and what came; n evaluated slices of the network's grid."""

    case: Case
    """Without the target."""
    target: Session
    prepared: Prepared
    covered: tuple[int, ...]
    """Slices that the choice of slices covers."""
    slices: tuple[int, ...]
    """Of these, the n evaluated ones."""
    images: Float32Array
    """(3, d, h, w) of the target."""
    tumour: Mask
    """(d, h, w) of the target."""
    voxel_ml: float

    @property
    def at(self) -> list[int]:
        return list(self.slices)

    @property
    def brain(self) -> Mask:
        """(n, h, w) voxels > 0 in any source image."""
        return (self.prepared.sources[self.at] > 0).any(axis=1)

    def ml(self, tumour: Mask) -> float:
        """Volume of a mask."""
        return float(tumour.sum()) * self.voxel_ml


def _evaluate_patient(forecaster: Forecaster, subject: Path, settings: _Settings) -> PatientResult:
    card = forecaster.bundle.manifest.card
    patient = _open_patient(subject, settings, card.data)
    case, target, at = patient.case, patient.target, patient.at
    horizon_days = target.day - case.sessions[-1].day
    true, last_mask = patient.tumour[at], patient.prepared.masks[-1, at]
    model = _predict(forecaster, patient, target.treatment, settings)
    interval = volume_interval(model.volumes_ml, VOLUME_LEVEL)
    changed = true ^ last_mask
    plans = _other_truths(subject, patient, card) if settings.counterfactuals else ()
    return PatientResult(
        name=case.name,
        treatment=target.treatment,
        target_day=target.day,
        horizon_days=horizon_days,
        num_sources=len(case.sessions),
        extrapolated=target.day > card.max_day or horizon_days > card.max_horizon_days,
        slices=patient.slices,
        true_ml=patient.ml(true),
        unforecast_ml=patient.ml(target.mask.data > 0)
        - patient.ml(patient.tumour[list(patient.covered)]),
        model=_score(patient, model.images, model.tumour),
        copy=_score(patient, _last_source(patient.prepared)[:, at], last_mask),
        change_dice=dice(model.tumour ^ last_mask, changed),
        change_recall=float((model.tumour == true)[changed].mean()) if changed.any() else None,
        interval_ml=interval[1:] if interval else None,
        covered=interval[1] <= patient.ml(true) <= interval[2] if interval else None,
        counterfactuals=tuple(
            _score_plan(
                patient,
                treatment,
                _predict(forecaster, patient, treatment, settings),
                truth,
                model,
            )
            for treatment, truth in plans
        ),
    )


def _open_patient(subject: Path, settings: _Settings, contract: DataContract) -> _Patient:
    case, target = _split_target(read_case(subject, last=NUM_SOURCES + 1))
    last = case.sessions[-1]
    prepared = prepare(select_sources(case)[0], contract)
    covered = choose_slices(prepared, parse_slices(settings.slices))
    _require_alignment(last, prepared, contract)
    check_same_grid([last.images["t1"], *target.images.values(), target.mask])
    images, tumour = on_network_grid(target, prepared.window, contract)
    return _Patient(
        case=case,
        target=target,
        prepared=prepared,
        covered=covered,
        slices=_evaluated_slices(covered, prepared, tumour, settings.max_slices),
        images=images,
        tumour=tumour,
        voxel_ml=float(np.prod(spacing_of(last.images["t1"].affine))) / 1000,
    )


def _split_target(case: Case) -> tuple[Case, Session]:
    """The case as it was before its last session, and that session."""
    if len(case.sessions) < 2:
        raise UsageError("TD3035", f"{case.name} has one session; evaluation needs two")
    for session in case.sessions[-NUM_SOURCES - 1 :]:
        if session.mask is None:
            raise UsageError(
                "TD3036",
                f"{case.name} has no tumour mask of {session.name}; evaluation needs one",
                fix="add *_dseg.nii.gz files under derivatives/",
            )
    return dataclasses.replace(case, sessions=case.sessions[:-1]), case.sessions[-1]


def on_network_grid(
    session: Session, window: Window, contract: DataContract
) -> tuple[Float32Array, Mask]:
    """Images (3, d, size, size) in [0, 1] and tumour (d, size, size) of a session in `window`.

    The window is that of the forecast, not one around this session: `prepare` centres it on the
    foreground of all sessions it is given, and one voxel more would move it.
    """

    def cut(data: NDArray[np.float32], affine: NDArray[np.float64]) -> Float32Array:
        grid = canonical_grid(data.shape, affine, tuple(contract.orientation))
        return window.cut(canonical_view(data, grid))

    images = []
    for modality in MODALITIES:
        volume = session.images[modality]
        limits = measure_range(volume.data, contract.percentiles, volume.label)
        images.append(limits.normalise(cut(volume.data, volume.affine)))
    return np.stack(images), cut(session.mask.data, session.mask.affine) > 0


def _last_source(prepared: Prepared) -> Float32Array:
    """(3, d, size, size) of the last source."""
    return np.moveaxis(prepared.sources[:, -len(MODALITIES) :], 1, 0)


def _require_alignment(last: Session, prepared: Prepared, contract: DataContract) -> None:
    """The last source, taken the way of the target, is what the network was given, bit by bit."""
    images, mask = on_network_grid(last, prepared.window, contract)
    same = np.array_equal(images, _last_source(prepared))
    if not same or not np.array_equal(mask, prepared.masks[-1]):
        raise AssertionError(f"target and sources of {last.name} are not prepared alike")


def _evaluated_slices(
    covered: Sequence[int], prepared: Prepared, mask: Mask, max_slices: int | None
) -> tuple[int, ...]:
    """Covered slices with tumour before or after (if none, all with brain); every k-th of many."""
    covered = [k for k in covered if prepared.brain[k]]
    tumour = (mask | prepared.masks[-1]).any(axis=(1, 2))
    chosen = [k for k in covered if tumour[k]] or covered
    step = math.ceil(len(chosen) / max_slices) if max_slices else 1
    return tuple(chosen[(len(chosen) - 1) % step // 2 :: step])


def _runs(slices: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(start, stop) of each run of neighbouring slices."""
    for _, run in itertools.groupby(enumerate(slices), lambda pair: pair[1] - pair[0]):
        members = [at for _, at in run]
        yield members[0], members[-1] + 1


def _predict(
    forecaster: Forecaster, patient: _Patient, treatment: str, settings: _Settings
) -> _Prediction:
    """Forecasts the evaluated slices and no other.

    Noise depends on seed, sample and slice alone, so that sample k of one run of slices and
    sample k of the next are one sample, and their volumes add up.
    """
    images, probability = [], []
    voxels = np.zeros(settings.samples, np.int64)
    for start, stop in _runs(patient.slices):
        forecast = forecaster.predict(
            patient.case,
            day=patient.target.day,
            treatment=treatment,
            samples=settings.samples,
            seed=settings.seed,
            steps=settings.steps,
            slices=f"{start}:{stop}",
            extrapolate=True,
        )
        if forecast.prepared.window != patient.prepared.window:
            raise AssertionError("forecast and truth are cut by different windows")
        images.append(forecast.ensemble.mean[:, start:stop])
        probability.append(forecast.ensemble.probability[start:stop])
        voxels += forecast.ensemble.tumour_voxels
    return _Prediction(
        # The solver does not clip; the truth cannot lie outside.
        np.clip(np.concatenate(images, axis=1), 0, 1),
        np.concatenate(probability) > 0.5,
        tuple((voxels * patient.voxel_ml).tolist()),
    )


def _score(patient: _Patient, images: Float32Array, tumour: Mask) -> Score:
    """Images (3, n, h, w), inside the brain, and tumour (n, h, w) against the truth."""
    brain, true = patient.brain, patient.tumour[patient.at]
    pred_ml, true_ml = patient.ml(tumour), patient.ml(true)
    truth = patient.images[:, patient.at]
    pairs = dict(zip(MODALITIES, zip(images, truth, strict=True), strict=True))
    return Score(
        dice=dice(tumour, true),
        volume_ml=pred_ml,
        signed_error_ml=signed_volume_error(pred_ml, true_ml),
        absolute_error_ml=absolute_volume_error(pred_ml, true_ml),
        ssim={
            modality: float(np.mean([ssim(*row) for row in zip(a, b, brain, strict=True)]))
            for modality, (a, b) in pairs.items()
        },
        psnr={modality: psnr(a, b, brain) for modality, (a, b) in pairs.items()},
        mae={modality: mae(a, b, brain) for modality, (a, b) in pairs.items()},
    )


def _other_truths(subject: Path, patient: _Patient, card: ModelCard) -> Iterator[tuple[str, Mask]]:
    """Tumour (n, h, w) of the target under each other treatment that the network knows."""
    target = patient.target
    anat = subject.parent / "derivatives" / "phantom" / subject.name / target.name / "anat"
    for treatment in TREATMENTS:
        path = anat / f"{subject.name}_{target.name}_desc-tumour{treatment}_dseg.nii.gz"
        if treatment == target.treatment or treatment not in card.treatments or not path.exists():
            continue
        mask = read_volume(path, ReadOptions(), path.name, labels_only=True, notes=[])
        check_same_grid([target.mask, mask])
        other = dataclasses.replace(target, mask=mask)
        tumour = on_network_grid(other, patient.prepared.window, card.data)[1]
        yield treatment, tumour[patient.at]


def _score_plan(
    patient: _Patient, treatment: str, forecast: _Prediction, truth: Mask, given: _Prediction
) -> CounterfactualScore:
    """A forecast under another treatment, and its difference from `given`, the one under the
    treatment that was given; over the same slices."""
    true_difference_ml = patient.ml(truth) - patient.ml(patient.tumour[patient.at])
    difference_ml = float(np.mean(forecast.volumes_ml) - np.mean(given.volumes_ml))
    agrees = None
    if abs(true_difference_ml) >= MIN_PLAN_DIFFERENCE_ML:
        agrees = bool(np.sign(difference_ml) == np.sign(true_difference_ml))
    return CounterfactualScore(
        treatment, dice(forecast.tumour, truth), true_difference_ml, difference_ml, agrees
    )
