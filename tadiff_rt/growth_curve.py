"""The tumour volume over days: what was segmented, and what each treatment is forecast to do."""

import itertools
from typing import Any

import numpy as np

from tadiff_rt.assembly import Forecast
from tadiff_rt.drawing import (
    BACKGROUND,
    FOREGROUND,
    KNOWN_COLOUR,
    MARKERS,
    NORMAL,
    QUIET,
    SMALL,
    TREATMENT_COLOURS,
    LegendEntry,
)
from tadiff_rt.scenarios import Comparison

KNOWN_LINE = LegendEntry(KNOWN_COLOUR, "solid", "o", "segmented on scans")
DODGE = 0.008
"""Treatments of one day stand this far apart, as a share of the days shown."""


def treatment_lines(comparison: Comparison) -> dict[str, LegendEntry]:
    """The line of every treatment, in the order asked for."""
    names = dict.fromkeys(scenario.treatment for scenario in comparison.forecasts)
    signs = itertools.cycle(zip(TREATMENT_COLOURS, MARKERS, strict=True))
    return {
        name: LegendEntry(colour, "solid", marker, f"predicted, {name}")
        for name, (colour, marker) in zip(names, signs, strict=False)
    }


def draw_growth_curve(axes: Any, comparison: Comparison) -> None:
    """Volumes of past masks, and of the forecasts with their intervals, on axes of their own."""
    known = [(p.day, p.volume_ml) for p in comparison.past if p.volume_ml is not None]
    last_day = comparison.past[-1].day if comparison.past else None
    if known:
        axes.plot(*zip(*known, strict=True), **_look(KNOWN_LINE), zorder=3)
    joined = covers_known_tumour(comparison.first) and known[-1:] and known[-1][0] == last_day
    shown = [past.day for past in comparison.past] + [s.day for s in comparison.forecasts]
    lines = treatment_lines(comparison)
    for i, (treatment, line) in enumerate(lines.items()):
        shift = (i - (len(lines) - 1) / 2) * DODGE * (max(shown) - min(shown))
        start = known[-1:] if joined else []
        _draw_treatment(axes, comparison, treatment, start, shift, line)
    if last_day is not None:
        axes.axvline(last_day, color=QUIET, linestyle="dotted", linewidth=1)
    axes.set_ylim(bottom=0)
    _describe(axes, comparison)


def covers_known_tumour(forecast: Forecast) -> bool:
    """Whether all of the tumour segmented on the last scan lies in slices that were forecast.

    Where it does not, the volumes of scan and forecast are not of the same part of the head.
    """
    masks = forecast.prepared.masks
    if masks is None:
        return False
    return set(np.flatnonzero(masks[-1].any(axis=(1, 2))).tolist()) <= set(forecast.slices)


def _look(line: LegendEntry) -> dict[str, Any]:
    return {"color": line.colour, "marker": line.marker, "markersize": 5}


def _draw_treatment(
    axes: Any,
    comparison: Comparison,
    treatment: str,
    start: list[tuple[int, float]],
    shift: float,
    line: LegendEntry,
) -> None:
    """Means with bars, joined by a dashed line that begins at `start`; moved by `shift` days."""
    volumes = {
        scenario.day: forecast.volume_ml
        for scenario, forecast in comparison.forecasts.items()
        if scenario.treatment == treatment
    }
    days = [day + shift for day in volumes]
    means = [volume.mean_ml for volume in volumes.values()]
    joined = [*start, *zip(days, means, strict=True)]
    axes.plot(*zip(*joined, strict=True), color=line.colour, linestyle="dashed", linewidth=1)
    bars = [
        (volume.mean_ml - volume.low_ml, volume.high_ml - volume.mean_ml)
        for volume in volumes.values()
        if volume.low_ml is not None and volume.high_ml is not None
    ]
    complete = list(zip(*bars, strict=True)) if len(bars) == len(means) else None
    axes.errorbar(days, means, yerr=complete, linestyle="none", capsize=3, **_look(line))


def _describe(axes: Any, comparison: Comparison) -> None:
    forecast = comparison.first
    volume, covered = forecast.volume_ml, f"{len(forecast.slices)} slices"
    what = f"Tumour volume, forecasts over {covered}"
    if forecast.prepared.masks is not None and not covers_known_tumour(forecast):
        what += ", which hold only part of the segmented tumour"
    if volume.low_ml is not None:
        what += f"\nbars: where a further sample lies with {volume.level:.0%} probability"
    axes.set_title(what, color=FOREGROUND, fontsize=NORMAL)
    axes.set_xlabel("days since the first session", color=FOREGROUND, fontsize=NORMAL)
    axes.set_ylabel("ml", color=FOREGROUND, fontsize=NORMAL)
    axes.set_facecolor(BACKGROUND)
    axes.tick_params(colors=FOREGROUND, labelsize=SMALL)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(QUIET)
    axes.grid(color=FOREGROUND, alpha=0.15, linewidth=0.6)
