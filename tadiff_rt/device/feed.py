"""What the buckets of one request are computed from."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tadiff_kernels.ensemble_step import slot_of_state
from tadiff_rt.batches import LAST_SOURCE, Float32Array, Row, Sampling
from tadiff_rt.device.buckets import Bucket
from tadiff_rt.device.form import Form, Inputs, Start
from tadiff_rt.solvers import noised


class Feed:
    """Makes the inputs of buckets; holds the sources of every slice on the device."""

    def __init__(
        self, sampling: Sampling, shifts: Tensor, sources: Float32Array, device: torch.device
    ) -> None:
        """
        Args:
            shifts: (num_steps, p), on the device.
            sources: (d, 9, h, w) clean source images.
        """
        self._sampling, self._shifts, self._sources = sampling, shifts, sources
        self._pin = device.type == "cuda"  # copies from other memory would wait for the device
        self._volume = torch.from_numpy(np.require(sources, requirements=("C", "W"))).to(device)

    @property
    def start(self) -> Start:
        """Where x of the first step comes from."""
        noise = self._sampling.noise
        if noise.coherence > 0 or noise.latin is not None:
            return "given"
        return "informed" if self._sampling.informed else "drawn"

    def inputs(
        self,
        form: Form,
        bucket: Bucket,
        slot_of: Mapping[int, int],
        inside: NDArray[np.bool_],
    ) -> Inputs:
        """Of one bucket.

        Args:
            slot_of: by slice. The slot of a slice that begins in this bucket is filled.
        """
        rows = bucket.rows
        # The last row again fills the bucket up: a number like any other, and of no segment.
        rows += rows[-1:] * (form.rows - len(rows))
        at = np.array([at for at, _ in rows])
        segments = np.zeros((form.segments, 4), np.int32)
        for line, s in zip(segments, bucket.segments, strict=False):
            line[:] = s.row, s.count, slot_of[s.item.at], s.sample
        seed = self._sampling.noise.seed
        arrays: dict[str, NDArray[Any]] = {
            "table": self._sampling.plan.table.astype(np.float32),
            "seed": _words([seed & 0xFFFFFFFF, seed >> 32]),
            "rows": _words(rows),
            "segments": segments,
            "inside": inside.astype(np.uint8),
        }
        if form.start == "given":
            arrays["x"] = self._start(rows, at)
        begun = {
            slot_of[s.item.at]: slot_of_state(s.item.so_far.state(), form.samples)
            for s in bucket.segments
            if s.item.so_far is not None and s.sample == s.item.first
        }
        return Inputs(
            {name: self._host(array) for name, array in arrays.items()},
            self._shifts,
            self._volume,
            self._host(at),
            {slot: (self._pinned(a), self._pinned(b)) for slot, (a, b) in begun.items()},
        )

    def _start(self, rows: Sequence[Row], at: NDArray[np.int64]) -> Float32Array:
        """x of the first step, of noise that only the host makes."""
        noise = self._sampling.noise.initial(rows, (3, *self._sources.shape[2:]))
        if not self._sampling.informed:
            return noise
        start: Float32Array = noised(self._sources[at][:, LAST_SOURCE], noise, self._sampling.plan)
        return start

    def _host(self, array: NDArray[Any]) -> Tensor:
        return self._pinned(torch.from_numpy(array))

    def _pinned(self, tensor: Tensor) -> Tensor:
        return tensor.pin_memory() if self._pin else tensor


def _words(values: Sequence[int] | Sequence[Row]) -> NDArray[np.int32]:
    """Unsigned 32-bit words as int32 of the same bits, as kernels take them."""
    return np.array(values, np.uint32).view(np.int32)
