"""A sample forecast as a picture: what the network makes of one fixed window so far."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tadiff_rt.card import ModelCard
from tadiff_rt.case import MODALITIES
from tadiff_rt.solvers import make_plan, noised, solve
from tadiff_train.data.cache import CachedCase
from tadiff_train.data.windows import Window, collate
from tadiff_train.fit.heldout import windows_of
from tadiff_train.network import NUM_MODALITIES, NUM_SESSIONS, TaDiffNet

STEPS = 10
CANDIDATES = 8
PANEL_INCHES = 2.2
DPI = 100
CONTOUR_COLOUR = "#5ad1ff"


def window_to_draw(cases: Sequence[CachedCase], num_timesteps: int) -> Window:
    """Of a few fixed windows of the first usable patient, the one with the largest tumour."""
    case = next(case for case in cases if len(case.days) >= 2 and len(case.images))
    windows = windows_of(case, num_timesteps, CANDIDATES)
    return max(windows, key=lambda window: float(window.masks[-1].sum()))


@torch.no_grad()
def forecast(net: TaDiffNet, window: Window, card: ModelCard) -> tuple[Tensor, Tensor]:
    """One sample of the target: (3, h, w) in [0, 1], and (4, h, w) mask probabilities.

    From the window's noise, in 10 evaluations, started as a forecast of the runtime is: from pure
    noise, or from the noised last source where the card says so.
    """
    device = next(net.parameters()).device
    batch = collate([window]).to(device)
    schedule = card.schedule.build()
    plan = make_plan(schedule, num_steps=STEPS, start_lam=card.start_lam)
    last = torch.full_like(batch.target, NUM_SESSIONS - 1)

    def denoise(x: Tensor, t: float, row: int) -> tuple[Tensor, Tensor]:
        images = torch.cat([batch.images[:, :-1], x[:, None]], dim=1)
        times = torch.full((1,), t, device=device)
        y = net(images.flatten(1, 2), times, batch.days, batch.treatments, last).float()
        return y[:, -NUM_MODALITIES:], y[:, :NUM_SESSIONS]

    start = batch.noise
    if card.start_lam is not None:
        start = noised(batch.images[:, -2], batch.noise, plan)
    image, logits = solve(denoise, start, plan, x0_range=card.x0_range)
    assert logits is not None  # `denoise` always gives some
    return image[0].clamp(0, 1), torch.sigmoid(logits[0])


def sample_picture(
    net: TaDiffNet, window: Window, card: ModelCard, title: str
) -> tuple[bytes, NDArray[np.uint8]]:
    """Last source, truth and forecast of every modality, with tumour contours.

    Returns:
        PNG, and the same as (h, w, 3) pixels.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    image, mask = forecast(net, window, card)
    columns = {
        "last source": (window.images[-2], window.masks[-2]),
        "truth": (window.images[-1], window.masks[-1]),
        "forecast": (image.cpu(), mask[-1].cpu()),
    }
    size = (PANEL_INCHES * len(columns), PANEL_INCHES * NUM_MODALITIES + 0.4)
    figure = Figure(figsize=size, dpi=DPI, facecolor="black", layout="constrained")
    canvas: Any = FigureCanvasAgg(figure)
    axes = figure.subplots(NUM_MODALITIES, len(columns))
    days = [round(float(window.days[s])) for s in (-2, -1, -1)]
    for k, (name, (images, tumour)) in enumerate(columns.items()):
        for m, modality in enumerate(MODALITIES):
            _draw(axes[m, k], images[m].numpy(), tumour.numpy())
            if m == 0:
                axes[m, k].set_title(f"{name}, day {days[k]}", color="white", fontsize=8)
            if k == 0:
                axes[m, k].set_ylabel(modality, color="white", fontsize=8)
    figure.suptitle(title, color="white", fontsize=9)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue(), pixels


def _draw(axis: Any, image: NDArray[np.float32], tumour: NDArray[np.float32]) -> None:
    axis.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    if tumour.min() < 0.5 < tumour.max():
        axis.contour(tumour, levels=[0.5], colors=CONTOUR_COLOUR, linewidths=0.8)
    axis.set_xticks([])
    axis.set_yticks([])
