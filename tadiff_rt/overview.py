"""Pictures of a forecast: last scan, forecast and uncertainty side by side, as PNG."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tadiff_rt.assembly import Forecast
from tadiff_rt.batches import Float32Array
from tadiff_rt.case import MODALITIES
from tadiff_rt.errors import EngineError, UsageError
from tadiff_rt.readers.tables import quoted

TITLES = ("T1", "T1c", "FLAIR")
WARNING = "predicted, not acquired, research use"
CONTOUR = 0.5
MASK_COLOUR = "#ffd24a"
KNOWN_COLOUR = "#5ad1ff"


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


@contextmanager
def _own_style() -> Iterator[None]:
    """Matplotlib's defaults, whatever the user's matplotlibrc says: equal forecasts, equal bytes.

    A matplotlibrc with `image.origin: lower` would turn the head upside down.
    """
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        yield


def check_drawing() -> None:
    """Draws a thumbnail, so that a forecast of minutes is not lost when its picture fails.

    Imports alone say less: matplotlib loads some of what it needs at its first use.

    Raises:
        EngineError: TD5008, a package is missing.
        UsageError: TD3054, MPLBACKEND names no backend. Pictures are files and need none, but
            matplotlib cannot be imported then.
    """
    try:
        _thumbnail()
    except ImportError as e:
        package = (e.name or "matplotlib").partition(".")[0]
        what = f"pictures need the package {package}, which cannot be imported"
        raise EngineError("TD5008", what, fix="pip install 'tadiff[cpu]'") from None
    except ValueError:
        backend = os.environ.get("MPLBACKEND")
        if not backend:
            raise
        what = f"matplotlib knows no backend {quoted(backend)}"
        fix = "unset the environment variable MPLBACKEND, or set it to Agg"
        raise UsageError("TD3054", what, where="MPLBACKEND", fix=fix) from None


@_own_style()
def _thumbnail() -> bytes:
    figure, axes = _canvas(1, 1)
    _image(axes[0][0], np.eye(2, dtype=np.float32), "title")
    _contours(axes[0][0], np.eye(2, dtype=np.float32), MASK_COLOUR)
    return _png(figure)


def largest_slice(forecast: Forecast) -> int:
    """The forecast slice with the largest expected tumour; the middle one if there is none."""
    areas = forecast.ensemble.probability.sum(axis=(1, 2))
    slices = forecast.slices
    return int(areas.argmax()) if areas.max() > CONTOUR else slices[len(slices) // 2]


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


@_own_style()
def overview_png(forecast: Forecast) -> bytes:
    """Rows T1, T1c, FLAIR; columns last scan, forecast, standard deviation, tumour probability.

    The slice is the one with the largest forecast tumour; contours show where the tumour
    probability passes one half, and on the last scan the known mask.
    """
    shown = show_slice(forecast, largest_slice(forecast))
    request, volume = forecast.report["request"], forecast.volume_ml
    figure, axes = _canvas(3, 4)
    spread_max = max(float(shown.std.max()), 1e-6) if shown.std is not None else 1.0
    for m, title in enumerate(TITLES):
        _image(axes[m][0], shown.last[m], "last scan" if m == 0 else "", label=title)
        _image(axes[m][1], shown.mean[m], _forecast_title(request) if m == 0 else "")
        _contours(axes[m][1], shown.probability, MASK_COLOUR)
        if shown.last_mask is not None:
            _contours(axes[m][0], shown.last_mask.astype(np.float32), KNOWN_COLOUR)
        _spread(axes[m][2], shown, m, spread_max)
    _image(axes[0][3], shown.probability, "tumour probability", cmap="inferno")
    _text(axes[1][3], _volume_text(volume.mean_ml, volume.low_ml, volume.high_ml, volume.level))
    _text(axes[2][3], f"slice {shown.index}\n{len(volume.samples_ml)} samples")
    figure.suptitle(f"Day {request['day']}, {request['treatment']}: {WARNING}", color="white")
    return _png(figure)


@_own_style()
def difference_png(forecasts: dict[str, Forecast]) -> bytes:
    """Two forecasts of one case that differ in treatment, and the difference of their tumours.

    Both were drawn with the same noise, so what differs is the treatment.
    """
    (name_a, a), (name_b, b) = forecasts.items()
    at = largest_slice(a if a.volume_ml.mean_ml >= b.volume_ml.mean_ml else b)
    one, two = show_slice(a, at), show_slice(b, at)
    figure, axes = _canvas(2, 4)
    for row, m in enumerate((1, 2)):
        _image(axes[row][0], one.last[m], "last scan" if row == 0 else "", label=TITLES[m])
        for column, (name, shown) in enumerate(((name_a, one), (name_b, two)), start=1):
            _image(axes[row][column], shown.mean[m], f"forecast, {name}" if row == 0 else "")
            _contours(axes[row][column], shown.probability, MASK_COLOUR)
    difference = two.probability - one.probability
    _image(
        axes[0][3],
        difference,
        f"tumour probability, {name_b} minus {name_a}",
        cmap="RdBu_r",
        limits=(-1, 1),
    )
    lines = [
        f"{name}: " + _volume_text(v.mean_ml, v.low_ml, v.high_ml, v.level)
        for name, v in ((name_a, a.volume_ml), (name_b, b.volume_ml))
    ]
    _text(axes[1][3], "\n\n".join(lines))
    day = a.report["request"]["day"]
    figure.suptitle(f"Day {day}, {name_a} against {name_b}: {WARNING}", color="white")
    return _png(figure)


def _forecast_title(request: dict[str, Any]) -> str:
    return f"forecast, day {request['day']}"


def _volume_text(mean: float, low: float | None, high: float | None, level: float) -> str:
    if low is None or high is None:
        return f"tumour {mean:.1f} ml\n(interval needs 2 samples)"
    return f"tumour {mean:.1f} ml\n{level:.0%} interval\n{low:.1f} to {high:.1f} ml"


def _canvas(rows: int, columns: int) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.6 * columns, 2.75 * rows), facecolor="black", layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _image(
    axes: Any,
    pixels: Float32Array,
    title: str = "",
    *,
    label: str = "",
    cmap: str = "gray",
    limits: tuple[float, float] = (0.0, 1.0),
) -> None:
    axes.imshow(pixels, cmap=cmap, vmin=limits[0], vmax=limits[1], interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(title, color="white", fontsize=9)
    axes.set_ylabel(label, color="white", fontsize=9)


def _spread(axes: Any, shown: ShownSlice, modality: int, limit: float) -> None:
    if shown.std is None:
        _text(axes, "standard deviation\nneeds 2 samples")
        return
    title = f"standard deviation (0 to {limit:.2f})" if modality == 0 else ""
    _image(axes, shown.std[modality], title, cmap="magma", limits=(0.0, limit))


def _contours(axes: Any, values: Float32Array, colour: str) -> None:
    if values.min() < CONTOUR < values.max():
        axes.contour(values, levels=[CONTOUR], colors=[colour], linewidths=1.0)


def _text(axes: Any, text: str) -> None:
    axes.axis("off")
    axes.text(0.5, 0.5, text, color="white", ha="center", va="center", fontsize=10)


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    # No creation time or software version: the bytes depend on the picture alone.
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()
