"""How pictures are drawn: the style, panels of images, outlines, and the PNG.

Colours are those of Okabe and Ito (2008), which people who see few colours tell apart; lines and
markers differ as well.
"""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tadiff_rt.batches import Float32Array

LineStyle = Literal["solid", "dashed"]

BACKGROUND, FOREGROUND, QUIET = "black", "white", "#bbbbbb"
KNOWN_COLOUR = "#56b4e9"
"""Of what was segmented on a scan."""
TREATMENT_COLOURS = ("#e69f00", "#f0e442", "#cc79a7", "#009e73", "#d55e00")
"""Of what is forecast, by treatment."""
MARKERS = "os^Dv"

OUTLINE = 0.5
"""Tumour probability at which outlines are drawn."""

SMALL, NORMAL, LARGE = 6.8, 9.0, 11.5
"""Font sizes in points."""
PANEL_INCHES = 2.6
LEGEND_INCHES = 2.0
"""Width of a column of the legend."""
DPI = 110


class LegendEntry(NamedTuple):
    """A line of a colour, a style and a marker, and what it stands for."""

    colour: str
    style: LineStyle
    marker: str
    words: str


@contextmanager
def own_style() -> Iterator[None]:
    """Matplotlib's defaults, whatever the user's matplotlibrc says: equal forecasts, equal bytes.

    A matplotlibrc with `image.origin: lower` would turn the head upside down.
    """
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        yield


def canvas(width: float, height: float) -> Any:
    """An empty figure, in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.04, h_pad=0.08)
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor=BACKGROUND, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def draw_image(
    axes: Any, pixels: Float32Array, title: str = "", *, cmap: str = "gray", high: float = 1.0
) -> Any:
    """Pixels from 0 to `high`, with a title above."""
    image = axes.imshow(pixels, cmap=cmap, vmin=0.0, vmax=high, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_frame_on(False)
    axes.set_title(title, color=FOREGROUND, fontsize=NORMAL)
    return image


def outline(
    axes: Any, values: Float32Array | NDArray[np.bool_], colour: str, style: LineStyle = "solid"
) -> None:
    """Where `values` cross one half, in a colour that is seen on light and dark."""
    from matplotlib.patheffects import withStroke

    values = values.astype(np.float32)
    if values.min() < OUTLINE < values.max():
        lines = axes.contour(
            values, levels=[OUTLINE], colors=[colour], linewidths=1.3, linestyles=style
        )
        lines.set_path_effects([withStroke(linewidth=2.4, foreground=BACKGROUND)])


def inscribe(axes: Any, text: str, where: str, colour: str = FOREGROUND) -> None:
    """Words in the picture itself, which stay with it when it is cut out."""
    places = {
        "top": (0.5, 0.985, "center", "top"),
        "bottom": (0.5, 0.015, "center", "bottom"),
        "left": (0.01, 0.5, "left", "center"),
        "right": (0.99, 0.5, "right", "center"),
    }
    x, y, horizontal, vertical = places[where]
    box = {"facecolor": BACKGROUND, "alpha": 0.6, "edgecolor": "none", "pad": 1.0}
    axes.text(
        x,
        y,
        text,
        transform=axes.transAxes,
        ha=horizontal,
        va=vertical,
        color=colour,
        fontsize=SMALL,
        bbox=box,
    )


def colour_bar(figure: Any, image: Any, axes: Any, height: float, label: str) -> None:
    """The scale of `image` across `axes`, at a height counted in heights of `axes`."""
    place = axes.inset_axes((0.08, height, 0.84, 0.03))
    bar = figure.colorbar(image, cax=place, orientation="horizontal")
    bar.set_label(label, color=FOREGROUND, fontsize=SMALL)
    bar.ax.tick_params(colors=FOREGROUND, labelsize=SMALL)
    bar.outline.set_visible(False)


def draw_legend(figure: Any, entries: Sequence[LegendEntry]) -> None:
    """Lines below the figure and what they mean."""
    from matplotlib.lines import Line2D

    lines = [
        Line2D([], [], color=e.colour, linestyle=e.style, marker=e.marker, markersize=5)
        for e in entries
    ]
    figure.legend(
        lines,
        [entry.words for entry in entries],
        loc="outside lower center",
        ncols=max(1, int(figure.get_figwidth() / LEGEND_INCHES)),
        fontsize=NORMAL,
        labelcolor=FOREGROUND,
        facecolor=BACKGROUND,
        edgecolor="none",
    )


def png(figure: Any) -> bytes:
    """The figure as a file whose bytes depend on the picture alone."""
    buffer = io.BytesIO()
    figure.canvas.print_png(buffer, metadata={"Software": None})  # savefig would draw it twice
    return buffer.getvalue()
