"""What artefacts are tried on: head-like slices, made from nothing, at chosen times and days."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tadiff_rt.noise import normal
from tadiff_rt.schedule import NoiseSchedule
from tadiff_train.network import NUM_MODALITIES, NUM_SESSIONS

NUM_SOURCES = (NUM_SESSIONS - 1) * NUM_MODALITIES

CONDITIONS = (
    # share of the schedule, days, treatment codes: early and late sessions, every treatment
    (0.0, (0.0, 14.0, 30.0, 44.0), (0.0, 0.0, 0.0, 0.0)),
    (0.0087, (0.0, 30.0, 60.0, 90.0), (0.0, 0.0, 1.0, 1.0)),
    (0.6, (10.0, 41.0, 56.0, 133.0), (1.0, 0.0, 1.0, 2.0)),
    (1.0, (0.0, 300.0, 700.0, 1061.0), (2.0, 1.0, 0.0, 2.0)),
)

REQUEST = ((0.0, 30.0, 75.0, 160.0), (0.0, 0.0, 1.0, 2.0))
"""Days and treatment codes of the ensemble."""

_TEXTURE, _NOISE = 0, 1
"""Words of the counter that keep draws apart; see `tadiff_rt.noise`."""


@dataclass(frozen=True, eq=False)
class Probe:
    """One evaluation of the network on several rows."""

    t: float
    """One-based, possibly fractional."""
    days: tuple[float, ...]
    treatments: tuple[float, ...]
    sources: NDArray[np.float32]
    """(n, 9, h, w) in [0, 1]."""
    x: NDArray[np.float32]
    """(n, 3, h, w) the noisy target at t."""


def make_probes(schedule: NoiseSchedule, rows: int, size: int) -> list[Probe]:
    """Ends and middle of the schedule, different images in every row and probe.

    The target is an image noised to its level, as a sampler feeds it: far from it a trained
    network computes with activations that no forecast has.
    """
    last = schedule.num_train_timesteps
    probes = []
    for k, (share, days, treatments) in enumerate(CONDITIONS):
        t = 1 + share * (last - 1)
        images = head_slices(k, rows, size)
        noise = normal(k, _NOISE, 0, 0, (rows, NUM_MODALITIES, size, size))
        mixed = alpha_of(schedule, t) * images[:, NUM_SOURCES:] + sigma_of(schedule, t) * noise
        probes.append(
            Probe(t, days, treatments, images[:, :NUM_SOURCES], mixed.astype(np.float32))
        )
    return probes


def alpha_of(schedule: NoiseSchedule, t: float) -> float:
    """Share of the image at t."""
    return math.sqrt(schedule.alpha_bar(t))


def sigma_of(schedule: NoiseSchedule, t: float) -> float:
    """Share of the noise at t."""
    return math.sqrt(1 - schedule.alpha_bar(t))


def head_slices(seed: int, rows: int, size: int) -> NDArray[np.float32]:
    """(rows, 12, size, size) images in [0, 1], channel 3 s + m: four sessions of one slice a row.

    A lopsided ellipse on a background of 0, with smooth tissue, fine texture, another contrast
    in every modality and a bright spot that grows from session to session.
    """
    axis = np.linspace(-1, 1, size)
    y, x = axis[:, None], axis[None]
    modes = normal(seed, _TEXTURE, 0, 0, (rows, NUM_MODALITIES, 3, 3))
    texture = normal(seed, _TEXTURE, 1, 0, (rows, NUM_SESSIONS, NUM_MODALITIES, size, size))
    frequencies = np.arange(1, 4) * np.pi / 2
    waves = np.cos(frequencies[:, None] * (axis + 0.3))
    images = np.empty((rows, NUM_SESSIONS, NUM_MODALITIES, size, size))
    for row in range(rows):
        head = (x + 0.15 * y) ** 2 / 0.6 + (y - 0.05 * row) ** 2 / 0.8 < 0.9
        smooth = np.einsum("mab,ay,bx->myx", modes[row], waves, waves)
        tissue = np.array([0.45, 0.5, 0.4])[:, None, None] + 0.08 * smooth
        for session in range(NUM_SESSIONS):
            width = 0.02 * (2 + session)
            spot = np.exp(-((x - 0.25) ** 2 + (y + 0.2 + 0.05 * row) ** 2) / width)
            bright = np.array([-0.1, 0.3, 0.35])[:, None, None] * spot
            image = tissue + bright + 0.02 * texture[row, session]
            images[row, session] = np.where(head, np.clip(image, 0.05, 1), 0)
    return images.reshape(rows, -1, size, size).astype(np.float32)
