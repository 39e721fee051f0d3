"""Figures of an evaluation on one page: calibration, volumes, Dice by horizon."""

import io
import itertools
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy.stats import binom

from tadiff_train.evaluation.compare import BASELINES, HORIZON_DAYS, TITLES
from tadiff_train.evaluation.pooled import (
    METHODS,
    Pooled,
    coverage,
    intervals,
    mean_curve,
    pooled,
)
from tadiff_train.evaluation.results import Evaluation, PatientResult

INK = {"model": "#0072B2", "copy": "#E69F00", "growth": "#009E73"}
"""Okabe and Ito 2008: told apart by the colour-blind; markers differ, too."""
MARKERS = {"model": "o", "copy": "x", "growth": "s"}
NAMES = {"model": "model", **BASELINES}
LINES = {"t1": ("#0072B2", "o"), "t1c": ("#D55E00", "s"), "flair": ("#CC79A7", "^")}
GREY = "#767676"
SHOWN_LEVEL = 0.9
STYLE: dict[Any, Any] = {
    "font.size": 14,
    "axes.titlesize": 15,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.fontsize": 12,
    "legend.frameon": False,
    "lines.markersize": 7,
}


def results_png(evaluation: Evaluation) -> bytes:
    """`draw` as PNG; equal results give equal bytes with one version of matplotlib."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        buffer = io.BytesIO()
        # No creation time or software version: the bytes depend on the results alone.
        draw(evaluation).savefig(buffer, format="png", dpi=80, metadata={"Software": None})
    return buffer.getvalue()


def draw(evaluation: Evaluation) -> Figure:
    """Six panels: probability, ranks and spread above, volumes, intervals and Dice below.

    Raises:
        ValueError: there are no results to draw.
    """
    results = evaluation.results
    if not results:
        raise ValueError("there are no results to draw")
    found = pooled(evaluation)
    figure = Figure(figsize=(18, 11), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 3).ravel()
    _reliability(axes[0], found)
    _ranks(axes[1], found)
    _spread(axes[2], results)
    _volumes(axes[3], results)
    _coverage(axes[4], results)
    _horizons(axes[5], results)
    figure.suptitle(f"{len(results)} {evaluation.population}", fontsize=16, wrap=True)
    return figure


def _titled(axes: Any, title: str, x: str, y: str) -> None:
    axes.set_title(title)
    axes.set_xlabel(x)
    axes.set_ylabel(y)


def _empty(axes: Any, why: str) -> None:
    axes.text(0.5, 0.5, why, ha="center", va="center", transform=axes.transAxes)
    axes.set_xticks([])
    axes.set_yticks([])


def _diagonal(axes: Any, end: float, label: str = "calibrated") -> None:
    axes.plot([0, end], [0, end], "--", color=GREY, label=label, zorder=1)


def _reliability(axes: Any, found: Pooled) -> None:
    curve = found.tumour
    _titled(axes, "Tumour probability", "forecast probability", "share that is tumour")
    _diagonal(axes, 1)
    full = curve.count > 0
    held = np.log10(np.maximum(curve.count, 1)) / max(np.log10(curve.count.max()), 1)
    axes.bar(
        curve.edges[:-1] + 0.05,
        0.15 * held,
        0.08,
        color="#DDDDDD",
        label=f"voxels, log scale to {curve.count.max():,}",
    )
    shown = curve.mean_probability[full], curve.frequency[full]
    axes.plot(*shown, "-o", color=INK["model"], label=f"model, ECE {curve.ece:.4f}")
    axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.08))
    axes.legend(loc="upper left")


def _ranks(axes: Any, found: Pooled) -> None:
    _titled(axes, "Rank of the true volume", "samples below the truth", "patients")
    if found.ranks is None:
        _empty(axes, "needs 2 samples or more")
        return
    counts = found.ranks
    low, high = binom.interval(0.95, counts.sum(), 1 / len(counts))
    axes.axhspan(low, high, color="#DDDDDD", label="95 % if calibrated", zorder=0)
    axes.bar(np.arange(len(counts)), counts, color=INK["model"], width=0.8, zorder=2)
    axes.axhline(counts.sum() / len(counts), ls="--", color=GREY, zorder=3, label="calibrated")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.set_ylim(0, 1.25 * max(counts.max(), high))
    axes.legend(loc="upper right", ncols=2)


def _spread(axes: Any, results: Sequence[PatientResult]) -> None:
    known = [r.calibration for r in results if r.calibration.images]
    samples = " or ".join(sorted({str(len(c.samples_ml)) for c in known})) or "one"
    title = "Images, tenths by predicted spread"
    _titled(axes, title, f"spread of {samples} samples", "error of their mean")
    if not known:
        _empty(axes, "needs 2 samples or more")
        return
    end = 0.0
    for modality, (colour, marker) in LINES.items():
        x = mean_curve(known, modality, lambda skill: skill.bin_spread)
        y = mean_curve(known, modality, lambda skill: skill.bin_error)
        axes.plot(x, y, f"-{marker}", color=colour, label=TITLES[modality])
        end = max(end, float(x.max()), float(y.max()))
    _diagonal(axes, 1.05 * end)
    axes.set(xlim=(0, 1.08 * end), ylim=(0, 1.08 * end))
    axes.legend(loc="lower right")


def _volumes(axes: Any, results: Sequence[PatientResult]) -> None:
    _titled(axes, "Tumour volume", "true (ml)", "forecast (ml)")
    end = 1.0
    for method in ("copy", "growth", "model"):
        scores = [(r, r.score_of(method)) for r in results]
        points = [(r.true_ml, score.volume_ml, r) for r, score in scores if score]
        if not points:
            continue
        x, y, _ = zip(*points, strict=True)
        axes.plot(x, y, MARKERS[method], color=INK[method], label=NAMES[method], alpha=0.9)
        end = max(end, *x, *y)
        if method == "model":
            end = max(end, _bars(axes, results))
    _diagonal(axes, end, "truth")
    # Small tumours are many and large ones few: roots show both, and 0.
    scale = {"functions": (lambda x: np.sqrt(np.maximum(x, 0)), np.square)}
    axes.set_xscale("function", **scale)
    axes.set_yscale("function", **scale)
    ticks = [tick for tick in (0, 1, 3, 10, 30, 60, 100, 200, 400) if tick <= 1.1 * end]
    axes.set(xticks=ticks, yticks=ticks, xlim=(0, 1.1 * end), ylim=(0, 1.1 * end))
    axes.legend(loc="upper left")


def _bars(axes: Any, results: Sequence[PatientResult]) -> float:
    """The model's intervals of SHOWN_LEVEL; returns where they end."""
    end, label = 0.0, f"{SHOWN_LEVEL:.0%} interval"
    for result in results:
        for interval in intervals(result, "model"):
            if interval.level == SHOWN_LEVEL:
                ends = (interval.low_ml, interval.high_ml)
                axes.plot([result.true_ml] * 2, ends, color=INK["model"], alpha=0.45, label=label)
                end, label = max(end, interval.high_ml), ""
    return end


def _coverage(axes: Any, results: Sequence[PatientResult]) -> None:
    _titled(axes, "Intervals of the volume", "level of the interval", "share that holds the truth")
    _diagonal(axes, 1)
    for shift, method in ((-0.006, "model"), (0.006, "growth")):
        points = [(lv, part) for lv, part in coverage(results, method).items() if part.of]
        if not points:
            continue
        x = [level + shift for level, _ in points]
        y = np.array([part.share for _, part in points])
        ends = np.array([(part.low, part.high) for _, part in points]).T
        axes.errorbar(
            x,
            y,
            yerr=np.abs(ends - y),
            fmt=f"-{MARKERS[method]}",
            color=INK[method],
            capsize=4,
            label=METHODS[method].removeprefix("the "),
        )
    axes.set(xlim=(0.4, 1), ylim=(-0.02, 1.04))
    axes.legend(loc="lower right")


def _horizons(axes: Any, results: Sequence[PatientResult]) -> None:
    """Every patient, and the mean of each group of horizons."""
    _titled(axes, "Dice by horizon", "days from the last scan", "Dice of the future tumour")
    longest = max(r.horizon_days for r in results)
    ends = [0, *(edge for edge in HORIZON_DAYS if edge < longest), longest + 1]
    for method in ("copy", "growth", "model"):
        known = [
            (r.horizon_days, score.dice)
            for r in results
            if (score := r.score_of(method)) and score.dice is not None
        ]
        if not known:
            continue
        days, dices = np.array(known).T
        style = {"color": INK[method], "label": NAMES[method]}
        axes.plot(days, dices, MARKERS[method], alpha=0.7, **style)
        for low, high in itertools.pairwise(ends):
            if (inside := (days >= low) & (days < high)).any():
                axes.hlines(dices[inside].mean(), low, high, color=INK[method], lw=2.5)
    axes.plot([], [], "-", color=GREY, lw=2.5, label="mean of a group")
    axes.set(xlim=(0, 1.03 * longest), ylim=(-0.02, 1.02))
    axes.legend(loc="lower left")
