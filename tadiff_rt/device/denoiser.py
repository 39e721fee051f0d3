"""What a backend gives the loop that runs on a device."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tadiff_rt.backends.tensors import through_host


class DeviceDenoiser(Protocol):
    """A bundle's network on tensors of one device."""

    device: torch.device
    capturable: bool
    """May be captured in a CUDA graph."""
    description: str
    """Runtime, device and precision, for reports."""
    buckets: tuple[int, ...]
    """Numbers of rows that it can run, ascending."""

    def prepare(self, rows: int) -> None:
        """Gets ready for calls of exactly `rows` rows; frees what was prepared for others.

        Raises:
            ResourceError: there is no memory for them (TD7001).
        """

    def condition(
        self, t: NDArray[np.float64], days: Sequence[float], treatments: Sequence[float]
    ) -> Tensor:
        """(n, p) float32 shifts for n one-based timesteps: four days, four treatment codes."""

    def __call__(self, sources: Tensor, x: Tensor, shifts: Tensor) -> tuple[Tensor, Tensor]:
        """(rows, 9, h, w), (rows, 3, h, w), (1, p) -> noise like x, logits (rows, 4, h, w).

        Arguments are float32, contiguous and not modified; results are floats of any width and
        strides, valid until the next call. Only enqueues on the current stream: nothing waits.
        """


@dataclass(frozen=True)
class OnArrays:
    """A denoiser that was prepared for `batch` rows, as a backend of arrays; see `canary`."""

    denoiser: DeviceDenoiser
    batch: int

    @property
    def description(self) -> str:
        """See `DeviceDenoiser.description`."""
        return f"{self.denoiser.description}, {self.batch} rows on the device"

    def condition(
        self, t: NDArray[np.float64], days: Sequence[float], treatments: Sequence[float]
    ) -> NDArray[np.float32]:
        """See `Backend.condition`."""
        shifts: NDArray[np.float32] = self.denoiser.condition(t, days, treatments).cpu().numpy()
        return shifts

    def denoise(
        self, sources: NDArray[np.float32], x: NDArray[np.float32], shifts: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """See `Backend.denoise`."""
        return through_host(torch, self.denoiser, (sources, x, shifts))
