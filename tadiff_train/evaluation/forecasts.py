"""What each method says of one patient's last session, in one form: model, copy and growth."""

import hashlib
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tadiff_rt.forecast import Forecaster
from tadiff_train.evaluation.patients import Float32Array, Patient
from tadiff_train.metrics import Mask


@dataclass(frozen=True)
class Draw:
    """How ensembles are drawn; see `tadiff_rt.sampling.SamplingRequest`."""

    samples: int = 5
    steps: int | str = "auto"
    """Network evaluations a sample; "auto": what the network was distilled for, else 20."""
    seed: int = 0
    coherence: float = 0.0
    """Correlation of the noise of neighbouring slices, 0 to 0.99."""

    def of_patient(self, name: str) -> "Draw":
        """The same with the seed of that patient; see `seed_of`."""
        return replace(self, seed=seed_of(self.seed, name))


def seed_of(seed: int, patient: str) -> int:
    """The seed of one patient's draws, below 2^48: it depends on seed and name alone.

    With one seed for all, the draws of all patients would be high or low together: ranks and
    coverage take patients for independent cases.
    """
    digest = hashlib.sha256(f"{seed}\0{patient}".encode()).digest()
    return int.from_bytes(digest[:6], "big")


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a method says of the n evaluated slices of the network's grid."""

    probability: Float32Array
    """(n, h, w) of tumour; 0 or 1 of a method that gives a mask."""
    volumes_ml: tuple[float, ...]
    """Of every sample, as `Patient.ml` has it; one of a method without samples."""
    images: Float32Array | None = None
    """(3, n, h, w) in [0, 1], the mean of the samples; None of a method without images."""
    std: Float32Array | None = None
    """(3, n, h, w) standard deviation of the samples; None without several of them."""

    @property
    def tumour(self) -> Mask:
        """(n, h, w) probability above one half."""
        return self.probability > 0.5


def predict(forecaster: Forecaster, patient: Patient, treatment: str, draw: Draw) -> Prediction:
    """Forecasts the evaluated slices and no other.

    Without coherence the noise of a slice depends on seed, sample and slice alone: leaving out
    slices changes no other. With it, it depends on the slices above, forecast or not.
    """
    forecast = forecaster.predict(
        patient.case,
        day=patient.target.day,
        treatment=treatment,
        samples=draw.samples,
        seed=draw.seed,
        steps=draw.steps,
        coherence=draw.coherence,
        slices=",".join(map(str, patient.slices)),
        extrapolate=True,
    )
    if forecast.prepared.window != patient.prepared.window:
        raise AssertionError("forecast and truth are cut by different windows")
    ensemble, at = forecast.ensemble, patient.at
    voxels: NDArray[np.int64] = ensemble.tumour_voxels
    return Prediction(
        probability=ensemble.probability[at],
        volumes_ml=tuple((voxels * patient.evaluated_ml).tolist()),
        # The solver does not clip; the truth cannot lie outside.
        images=np.clip(ensemble.mean[:, at], 0, 1),
        std=None if ensemble.std is None else ensemble.std[:, at],
    )


def copy_of_last(patient: Patient) -> Prediction:
    """The last source with its true mask, as a forecast."""
    return of_mask(patient, patient.last_tumour, patient.last_images)


def of_mask(patient: Patient, tumour: Mask, images: Float32Array | None = None) -> Prediction:
    """A mask (n, h, w) as a forecast that is sure of itself."""
    return Prediction(tumour.astype(np.float32), (patient.ml(tumour),), images)
