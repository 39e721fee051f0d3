"""What a picture shows of a forecast: one slice, its panels, and the words they carry."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tadiff_rt.assembly import Forecast, VolumeEstimate
from tadiff_rt.batches import Float32Array
from tadiff_rt.case import MODALITIES
from tadiff_rt.drawing import (
    FOREGROUND,
    KNOWN_COLOUR,
    LARGE,
    NORMAL,
    OUTLINE,
    draw_image,
    inscribe,
    outline,
)

TITLES = ("T1", "T1c", "FLAIR")
T1C = 1


@dataclass(frozen=True, eq=False)
class ShownSlice:
    """One canonical slice of a forecast in [0, 1]; anterior up, patient's right on the left."""

    index: int
    last: Float32Array
    """(3, size, size) last session."""
    last_mask: NDArray[np.bool_] | None
    mean: Float32Array
    std: Float32Array | None
    probability: Float32Array


def warning(*days: int) -> str:
    """What every picture of a forecast says: of one day, or from the first to the last of many."""
    first, last = min(days), max(days)
    when = f"day {first}" if first == last else f"days {first} to {last}"
    return f"predicted, {when}, not acquired, research use"


def largest_slice(*forecasts: Forecast) -> int:
    """The slice with the largest expected tumour in all forecasts together.

    Without any tumour, the middle one of those that were forecast.
    """
    areas = [forecast.ensemble.probability.sum(axis=(1, 2)) for forecast in forecasts]
    total, slices = np.sum(areas, axis=0), forecasts[0].slices
    return int(total.argmax()) if total.max() > OUTLINE else slices[len(slices) // 2]


def show_slice(forecast: Forecast, at: int) -> ShownSlice:
    """Canonical slice `at` of the last session and of the forecast."""
    ensemble, prepared = forecast.ensemble, forecast.prepared
    return ShownSlice(
        index=at,
        last=prepared.sources[at, -len(MODALITIES) :],
        last_mask=None if prepared.masks is None else prepared.masks[-1, at],
        mean=ensemble.mean[:, at],
        std=None if ensemble.std is None else ensemble.std[:, at],
        probability=ensemble.probability[at],
    )


def draw_last_scan(axes: Any, shown: ShownSlice, modality: int, title: str) -> None:
    """The last session with its known mask, and which side is the patient's right."""
    draw_image(axes, shown.last[modality], title)
    inscribe(axes, "R", "left")
    inscribe(axes, "L", "right")
    if shown.last_mask is not None:
        outline(axes, shown.last_mask, KNOWN_COLOUR)


def draw_forecast(
    axes: Any, shown: ShownSlice, modality: int, day: int, colour: str, title: str = ""
) -> None:
    """The mean of the samples with the outline of its tumour."""
    draw_image(axes, shown.mean[modality], title)
    outline(axes, shown.probability, colour)
    inscribe(axes, warning(day), "bottom")


def label_row(axes: Any, label: str, colour: str = FOREGROUND) -> None:
    """What a row of panels shows, left of its first."""
    axes.set_ylabel(label, color=colour, fontsize=LARGE)


def write_words(axes: Any, text: str) -> None:
    """Words in place of an image."""
    axes.axis("off")
    place = {"ha": "center", "va": "center", "transform": axes.transAxes}
    axes.text(0.5, 0.5, text, color=FOREGROUND, fontsize=NORMAL, linespacing=1.5, **place)


def volume_words(volume: VolumeEstimate) -> str:
    """Mean and interval, on one line."""
    mean = f"{volume.mean_ml:.1f} ml"
    if volume.low_ml is None or volume.high_ml is None:
        return mean
    return f"{mean} ({volume.level:.0%}: {volume.low_ml:.1f} to {volume.high_ml:.1f})"
