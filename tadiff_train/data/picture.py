"""Small pictures of patients: a row of sessions each, where the tumour is largest."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tadiff_rt.case import Case, Session, Volume
from tadiff_rt.errors import InputDataError, printable
from tadiff_rt.geometry import canonical_grid, canonical_view
from tadiff_rt.intensity import Range, measure_range
from tadiff_rt.preprocess import DataContract

SHOWN = "t1c"
"""Modality of the pictures."""
MAX_SESSIONS_SHOWN = 12
PERCENTILES = DataContract().percentiles
PANEL_INCHES = 1.5
MIN_INCHES = 4.0
"""Width that holds the heading."""
DPI = 110
CONTOUR_COLOUR = "#5ad1ff"


@dataclass(frozen=True, eq=False)
class Panel:
    """One session: the slice that holds most of the patient's tumour."""

    day: int
    treatment: str
    image: NDArray[np.float32]
    """(h, w) in [0, 1], anterior up, patient's right on the left."""
    mask: NDArray[np.bool_] | None
    tumour_ml: float | None


@dataclass(frozen=True)
class Strip:
    """The first sessions of one patient."""

    name: str
    panels: tuple[Panel, ...]
    num_sessions: int


def view_of(volume: Volume) -> NDArray[np.float32]:
    """(rows, columns, axial slices) of a volume on canonical axes."""
    x, y, z = volume.data.shape
    return canonical_view(volume.data, canonical_grid((x, y, z), volume.affine))


def tumour_ml(mask: Volume | None) -> float | None:
    """Volume of a mask; None without one."""
    if mask is None:
        return None
    voxel_mm3 = abs(float(np.linalg.det(mask.affine[:3, :3])))
    return float((mask.data > 0).sum()) * voxel_mm3 / 1000


def strip_of(case: Case) -> Strip:
    """What the picture shows of a patient."""
    shown = case.sessions[:MAX_SESSIONS_SHOWN]
    counts = [_slice_weights(session) for session in shown]
    # One slice for all sessions shows growth; on grids of their own each session has its best.
    if len({len(count) for count in counts}) == 1:
        counts = [np.sum(counts, axis=0)] * len(shown)
    panels = tuple(
        _panel(session, int(count.argmax())) for session, count in zip(shown, counts, strict=True)
    )
    return Strip(case.name, panels, len(case.sessions))


def _slice_weights(session: Session) -> NDArray[np.float64]:
    """(d,) tumour voxels of each slice; brain voxels where no slice has any."""
    brain = (view_of(session.images[SHOWN]) > 0).sum(axis=(0, 1))
    tumour = (view_of(session.mask) > 0).sum(axis=(0, 1)) if session.mask else np.zeros(len(brain))
    if len(tumour) != len(brain):
        return brain.astype(np.float64)
    return tumour + brain / (1 + brain.sum() * MAX_SESSIONS_SHOWN)


def _panel(session: Session, at: int) -> Panel:
    volume, mask = session.images[SHOWN], session.mask
    image = view_of(volume)
    outline = view_of(mask) > 0 if mask else None
    if outline is not None:
        outline = outline[:, :, at] if outline.shape == image.shape else None
    try:
        scale = measure_range(volume.data, PERCENTILES, volume.label)
    except InputDataError:  # reported already; shown all the same
        scale = Range(0.0, max(float(volume.data.max()), 1e-6))
    pixels = scale.normalise(image[:, :, at])
    return Panel(session.day, session.treatment, pixels, outline, tumour_ml(mask))


def strips_png(strips: Sequence[Strip], heading: str) -> bytes:
    """A row a patient, a column a session: T1c with the outline of the tumour, day, treatment."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = max((len(strip.panels) for strip in strips), default=1)
    rows = max(len(strips), 1)
    with matplotlib.rc_context():
        # A user's matplotlibrc with `image.origin: lower` would turn heads upside down.
        matplotlib.rcdefaults()
        size = (max(PANEL_INCHES * columns + 0.6, MIN_INCHES), (PANEL_INCHES + 0.35) * rows + 0.6)
        figure = Figure(figsize=size, facecolor="black", layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(rows, columns, squeeze=False)
        for ax in axes.flat:
            ax.axis("off")
        for strip, row in zip(strips, axes, strict=False):
            _draw_strip(strip, row)
        figure.suptitle(heading, color="white", fontsize=9)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def _draw_strip(strip: Strip, axes: Any) -> None:
    for panel, ax in zip(strip.panels, axes, strict=False):
        _draw_panel(panel, ax)
    first = axes[0]
    cut = len(strip.panels) < strip.num_sessions
    more = f"\n{len(strip.panels)} of {strip.num_sessions} sessions" if cut else ""
    label = printable(strip.name) + more
    first.text(-0.06, 0.5, label, transform=first.transAxes, color="white", fontsize=7,
               rotation=90, ha="right", va="center")  # fmt: skip


def _draw_panel(panel: Panel, ax: Any) -> None:
    ax.imshow(panel.image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    volume = "no mask" if panel.tumour_ml is None else f"{panel.tumour_ml:.1f} ml"
    ax.set_title(f"day {panel.day}, {panel.treatment}\n{volume}", color="white", fontsize=7)
    if panel.mask is not None and panel.mask.any() and not panel.mask.all():
        ax.contour(
            panel.mask.astype(np.float32), levels=[0.5], colors=[CONTOUR_COLOUR], linewidths=0.8
        )
