"""Pictures of forecasts as PNG: one in full, or several side by side with the growth curve.

Outlines show where the tumour probability passes one half, and on the last scan the known mask.
Every panel that shows a forecast says so in the picture itself.
"""

import os
from typing import Any

import numpy as np

from tadiff_rt.assembly import Forecast
from tadiff_rt.drawing import (
    FOREGROUND,
    KNOWN_COLOUR,
    LARGE,
    PANEL_INCHES,
    TREATMENT_COLOURS,
    LegendEntry,
    canvas,
    colour_bar,
    draw_image,
    draw_legend,
    inscribe,
    outline,
    own_style,
    png,
)
from tadiff_rt.errors import EngineError, UsageError
from tadiff_rt.growth_curve import KNOWN_LINE, draw_growth_curve, treatment_lines
from tadiff_rt.panels import (
    T1C,
    TITLES,
    ShownSlice,
    draw_forecast,
    draw_last_scan,
    label_row,
    largest_slice,
    show_slice,
    volume_words,
    warning,
    write_words,
)
from tadiff_rt.readers.tables import quoted
from tadiff_rt.scenarios import Comparison, Scenario

__all__ = [
    "ShownSlice",
    "check_drawing",
    "comparison_png",
    "largest_slice",
    "overview_png",
    "show_slice",
    "warning",
]

MAX_DAYS = 5
"""Days side by side; of more, so many are shown."""
CURVE_INCHES = 2.9
MARGIN_INCHES = 1.1
"""For the title and the legend."""


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


@own_style()
def _thumbnail() -> bytes:
    figure = canvas(1, 1)
    axes = figure.subplots()
    draw_image(axes, np.eye(2, dtype=np.float32), "title")
    outline(axes, np.eye(2, dtype=np.float32), KNOWN_COLOUR)
    return png(figure)


@own_style()
def overview_png(forecast: Forecast) -> bytes:
    """Rows T1, T1c, FLAIR; columns last scan, forecast, standard deviation, tumour probability.

    The slice is the one with the largest forecast tumour.
    """
    shown = show_slice(forecast, largest_slice(forecast))
    day, treatment = (forecast.report["request"][key] for key in ("day", "treatment"))
    line = LegendEntry(TREATMENT_COLOURS[0], "solid", "", f"tumour predicted, {treatment}")
    figure = canvas(4 * PANEL_INCHES, 3 * PANEL_INCHES + MARGIN_INCHES)
    axes = figure.subplots(3, 4, squeeze=False)
    for m, label in enumerate(TITLES):
        draw_last_scan(axes[m][0], shown, m, "last scan" if m == 0 else "")
        label_row(axes[m][0], label)
        title = f"forecast, day {day}, {treatment}" if m == 0 else ""
        draw_forecast(axes[m][1], shown, m, day, line.colour, title)
    _draw_spread(figure, axes[:, 2], shown, day)
    image = draw_image(axes[0][3], shown.probability, "tumour probability", cmap="inferno")
    inscribe(axes[0][3], warning(day), "bottom")
    colour_bar(figure, image, axes[1][3], 0.95, "mean over samples")
    volume = forecast.volume_ml
    write_words(axes[1][3], f"tumour volume\n{volume_words(volume)}")
    counts = f"{len(volume.samples_ml)} samples\n{len(forecast.slices)} slices forecast"
    write_words(axes[2][3], f"{counts}\nshown: slice {shown.index}")
    figure.suptitle(f"treatment {treatment}: {warning(day)}", color=FOREGROUND, fontsize=LARGE)
    draw_legend(figure, [*_known(shown), line])
    return png(figure)


def _draw_spread(figure: Any, axes: Any, shown: ShownSlice, day: int) -> None:
    """A column with the standard deviation of T1, T1c and FLAIR."""
    if shown.std is None:
        for place, words in zip(
            axes, ("standard deviation\nneeds 2 samples", "", ""), strict=True
        ):
            write_words(place, words)
        return
    high = max(float(shown.std.max()), 1e-6)
    for m, place in enumerate(axes):
        title = "standard deviation" if m == 0 else ""
        image = draw_image(place, shown.std[m], title, cmap="inferno", high=high)
        inscribe(place, warning(day), "bottom")
    colour_bar(figure, image, axes[-1], -0.06, "over samples, as a share of the image's range")


@own_style()
def comparison_png(comparison: Comparison) -> bytes:
    """A row a treatment: the last T1c and that of each day; below, the growth curve.

    All at one slice, the one with the largest tumour in all forecasts together. Of more than
    `MAX_DAYS` days so many are shown, the first and the last among them. A single scenario is
    shown as by `overview_png`.
    """
    if len(comparison.forecasts) == 1:
        return overview_png(comparison.first)
    last = show_slice(comparison.first, largest_slice(*comparison.forecasts.values()))
    lines = treatment_lines(comparison)
    days = _spaced(sorted({scenario.day for scenario in comparison.forecasts}))
    rows, columns = len(lines), 1 + len(days)
    heights = [*[PANEL_INCHES] * rows, CURVE_INCHES]
    figure = canvas(max(columns, 3) * PANEL_INCHES, sum(heights) + MARGIN_INCHES)
    grid = figure.add_gridspec(rows + 1, columns, height_ratios=heights)
    last_title = f"last scan, day {comparison.past[-1].day}" if comparison.past else "last scan"
    for row, (treatment, line) in enumerate(lines.items()):
        axes = figure.add_subplot(grid[row, 0])
        draw_last_scan(axes, last, T1C, last_title if row == 0 else "")
        label_row(axes, treatment, line.colour)
        for column, day in enumerate(days, start=1):
            axes = figure.add_subplot(grid[row, column])
            title = f"day {day}" if row == 0 else ""
            _draw_scenario(axes, comparison, Scenario(day, treatment), last.index, title)
    draw_growth_curve(figure.add_subplot(grid[rows, :]), comparison)
    every = warning(*(scenario.day for scenario in comparison.forecasts))
    figure.suptitle(f"T1c, slice {last.index}: {every}", color=FOREGROUND, fontsize=LARGE)
    draw_legend(figure, [*_known(last), *lines.values(), *_reference(comparison)])
    return png(figure)


def _draw_scenario(
    axes: Any, comparison: Comparison, scenario: Scenario, at: int, title: str
) -> None:
    """T1c of a scenario with its tumour and, dashed, that of the reference of its day."""
    lines, forecast = treatment_lines(comparison), comparison.forecasts[scenario]
    draw_forecast(
        axes, show_slice(forecast, at), T1C, scenario.day, lines[scenario.treatment].colour, title
    )
    for difference in comparison.differences:
        if difference.scenario == scenario:
            other = show_slice(comparison.forecasts[difference.reference], at)
            colour = lines[difference.reference.treatment].colour
            outline(axes, other.probability, colour, "dashed")
    inscribe(axes, volume_words(forecast.volume_ml), "top")


def _known(shown: ShownSlice) -> list[LegendEntry]:
    """The legend of the last scan's mask, if it is known."""
    return [] if shown.last_mask is None else [KNOWN_LINE]


def _reference(comparison: Comparison) -> list[LegendEntry]:
    """The legend of the outline that all others are compared with."""
    if not comparison.differences:
        return []
    treatment = comparison.differences[0].reference.treatment
    line = treatment_lines(comparison)[treatment]
    return [LegendEntry(line.colour, "dashed", "", f"{treatment}, same day")]


def _spaced(days: list[int]) -> list[int]:
    """At most `MAX_DAYS` of them, evenly by their number."""
    at = np.linspace(0, len(days) - 1, min(len(days), MAX_DAYS)).round().astype(int)
    return [days[i] for i in at]
