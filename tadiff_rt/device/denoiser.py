"""What a backend gives the loop that runs on a device."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


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
