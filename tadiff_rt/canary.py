"""One fixed evaluation whose right answer travels with the bundle.

An engine that could not be run where it was built has no certificate. It is compared with the
checkpoint's own answer when it is loaded, before any forecast.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tadiff_rt.bundle import Bundle
from tadiff_rt.errors import EngineError, NumericsError
from tadiff_rt.manifest import Artefact
from tadiff_rt.noise import normal

T = 431.25
"""Between two timesteps, in the middle of the schedule."""
DAYS = (0.0, 30.0, 75.0, 250.0)
CHANNELS = (3, 4)
"""Of the noise estimate and of the mask logits."""


@dataclass(frozen=True, eq=False)
class Inputs:
    """What the network is asked: one row, one timestep."""

    t: float
    days: tuple[float, ...]
    treatments: tuple[float, ...]
    sources: NDArray[np.float32]
    """(1, 9, size, size)"""
    x: NDArray[np.float32]
    """(1, 3, size, size)"""


def canary_inputs(size: int, codes: tuple[float, ...]) -> Inputs:
    """Textured images in [0, 1] on a background of 0, and noise; the same on every machine.

    Args:
        codes: of the treatments that the model knows; used in turn.
    """
    t, days, treatments = canary_request(codes)
    axis = np.linspace(-1, 1, size)
    head = (axis[:, None] ** 2 + (axis[None] / 0.8) ** 2 < 0.8).astype(np.float32)
    coarse = normal(0, 2, 0, 0, (1, 9, -(-size // 8), -(-size // 8)))
    smooth = np.kron(coarse, np.ones((8, 8), np.float32))[..., :size, :size]
    sources = (np.clip(0.5 + 0.2 * smooth, 0, 1) * head).astype(np.float32)
    return Inputs(t, days, treatments, sources, normal(0, 3, 0, 0, (1, 3, size, size)))


def canary_request(
    codes: tuple[float, ...],
) -> tuple[float, tuple[float, ...], tuple[float, ...]]:
    """Timestep, days and treatments of `canary_inputs`."""
    return T, DAYS, tuple(codes[i % len(codes)] for i in range(len(DAYS)))


def canary_bytes(eps: NDArray[np.float32], logits: NDArray[np.float32]) -> bytes:
    """The file: both outputs (1, 3 and 4, size, size), little-endian float32."""
    return np.concatenate([eps, logits], axis=1).astype("<f4").tobytes()


class Evaluated(Protocol):
    """What of a `Backend` is compared."""

    @property
    def description(self) -> str:
        """See `Backend.description`."""

    @property
    def batch(self) -> int:
        """Rows of a call."""

    def condition(
        self, t: NDArray[np.float64], days: Sequence[float], treatments: Sequence[float]
    ) -> NDArray[np.float32]:
        """See `Backend.condition`."""

    def denoise(
        self, sources: NDArray[np.float32], x: NDArray[np.float32], shifts: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """See `Backend.denoise`."""


def require_canary(bundle: Bundle, artefact: Artefact, backend: Evaluated) -> None:
    """A loaded artefact gives the checkpoint's answer.

    Raises:
        NumericsError: TD6011, it does not.
        EngineError: TD5001, the canary's file is damaged.
    """
    canary, card = bundle.manifest.canary, bundle.manifest.card
    size = card.data.size
    right = np.frombuffer(bundle.read(canary), "<f4")
    if right.size != sum(CHANNELS) * size * size or artefact.precision not in canary.allowed:
        raise EngineError("TD5001", f"{canary.file} is no canary of this bundle")
    inputs = canary_inputs(size, tuple(map(float, card.treatments.values())))
    rows = (backend.batch, 1, 1, 1)
    shifts = backend.condition(np.array([inputs.t]), inputs.days, inputs.treatments)
    got = backend.denoise(np.tile(inputs.sources, rows), np.tile(inputs.x, rows), shifts)
    parts = np.split(right.reshape(1, sum(CHANNELS), size, size), [CHANNELS[0]], axis=1)
    allowed = canary.allowed[artefact.precision]
    for name, answer, expected in zip(("eps", "mask_logits"), got, parts, strict=True):
        # The outputs of an untrained network are 0 throughout: then the error is absolute.
        scale = float(np.abs(expected).max()) or 1.0
        error = float(np.abs(answer - expected).max()) / scale
        if not error <= allowed:
            raise NumericsError(
                "TD6011",
                f"{name} of {artefact.file} on {backend.description} is {error:.1e} from the "
                f"checkpoint's, relative to its maximum; {allowed:.1e} is allowed",
                where=str(bundle.path),
                fix="use another backend, or export again on this machine",
            )
