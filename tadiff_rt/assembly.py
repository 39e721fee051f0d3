"""From an ensemble on the network's grid to a `Forecast` on the patient's."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tadiff_rt.batches import Float32Array
from tadiff_rt.case import MODALITIES, Session
from tadiff_rt.preprocess import Prepared
from tadiff_rt.runner import EnsembleResult
from tadiff_rt.volume import (
    expected_pairwise_dice,
    mean_interval,
    volume_interval,
    volume_quantiles,
)

VOLUME_LEVEL = 0.9

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class VolumeEstimate:
    """Tumour volume of the forecast, over the slices that were forecast."""

    mean_ml: float
    low_ml: float | None
    """Lower end of the interval; None for a single sample."""
    high_ml: float | None
    level: float
    """Probability with which a further sample falls into the interval."""
    samples_ml: tuple[float, ...]
    quantiles_ml: dict[str, float] | None = None
    """Of the samples, by probability; those that so many samples support. None for one."""
    mean_interval_ml: tuple[float, float] | None = None
    """Where the mean of infinitely many samples lies at confidence `level`; None for one."""
    pairwise_dice: float | None = None
    """Expected Dice of the tumours of two samples, 1 where they agree; None for one."""


@dataclass(frozen=True, eq=False)
class Forecast:
    """A predicted session on the voxel grid of the last session's T1; never acquired."""

    mean: Float32Array
    """(3, x, y, z) mean T1, T1c, FLAIR in the scanner units of the last session; 0 where no slice
    was forecast."""
    std: Float32Array | None
    """(3, x, y, z) standard deviation over samples, same units; None for a single sample."""
    tumour_probability: Float32Array
    """(x, y, z) mean over samples of the tumour probability."""
    volume_ml: VolumeEstimate
    affine: NDArray[np.float64]
    """(4, 4) voxel -> RAS+ mm."""
    header: Any = field(repr=False)
    """NIfTI header of the last session's T1: orientation codes for writing."""
    slices: tuple[int, ...]
    """Forecast slices of the canonical grid, superior to inferior."""
    ensemble: EnsembleResult = field(repr=False)
    """The same statistics on the network's grid, in [0, 1]."""
    prepared: Prepared = field(repr=False)
    """The sources on the network's grid."""
    report: dict[str, Any] = field(repr=False)
    """What was asked, from what, with what, and how long it took; no identifiers."""

    @property
    def tumour_mask(self) -> NDArray[np.bool_]:
        """(x, y, z) voxels whose tumour probability is above one half."""
        return self.tumour_probability > 0.5


def assemble(
    result: EnsembleResult,
    prepared: Prepared,
    last: Session,
    slices: tuple[int, ...],
    report: dict[str, Any],
) -> Forecast:
    """The ensemble's statistics on the voxels of the last session's T1, in its scanner units."""
    volume = last.images[MODALITIES[0]]

    def mapped(images: Float32Array) -> Float32Array:
        scaled = images * prepared.intensity_scale[:, None, None, None]
        return np.stack([back(image.astype(np.float32)) for image in scaled])

    def back(stack: Float32Array) -> Float32Array:
        return prepared.to_patient_grid(stack, slices=slices)

    volume_ml = estimate_volume(result, prepared.voxel_ml)
    return Forecast(
        mean=mapped(result.mean),
        std=None if result.std is None else mapped(result.std),
        tumour_probability=back(result.probability),
        volume_ml=volume_ml,
        affine=volume.affine,
        header=volume.header,
        slices=slices,
        ensemble=result,
        prepared=prepared,
        report=report,
    )


def estimate_volume(result: EnsembleResult, voxel_ml: float) -> VolumeEstimate:
    """What the tumour voxels of the samples say of the volume; no intervals for one sample."""
    samples_ml = tuple((result.tumour_voxels * voxel_ml).tolist())
    interval = volume_interval(samples_ml, VOLUME_LEVEL)
    mean, low, high = interval if interval else (samples_ml[0], None, None)
    supported = [p for p in QUANTILES if min(p, 1 - p) * (3 * len(samples_ml) + 1) >= 2]
    quantiles = volume_quantiles(samples_ml, supported)
    of_mean = mean_interval(samples_ml, VOLUME_LEVEL)
    return VolumeEstimate(
        mean,
        low,
        high,
        VOLUME_LEVEL,
        samples_ml,
        {f"{p:g}": q for p, q in zip(supported, quantiles, strict=True)} if quantiles else None,
        of_mean[1:] if of_mean else None,
        expected_pairwise_dice(result.tumour_voxels.tolist(), result.tumour_overlaps.tolist()),
    )
