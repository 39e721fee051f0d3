"""The way of results from the device to `SliceStatistics`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tadiff_kernels.ensemble_step import statistics_state
from tadiff_rt.ensemble import TARGET_SLOT, SliceStatistics


@dataclass(frozen=True, eq=False)
class Fetched:
    """Results of a bucket in host memory, once `wait` has returned."""

    broken: Tensor
    """(rows,) first step at which a row was not finite."""
    sums: Tensor
    counts: Tensor
    """Of the fetched slots, in their order."""
    logits: Tensor | None
    """(rows, h, w) mask logits of the forecast of every row, if asked for."""
    _done: "torch.cuda.Event | None"

    def wait(self) -> None:
        """Until the copies are made; the device goes on with what was enqueued after them."""
        if self._done is not None:
            self._done.synchronize()

    def statistics(self, number: int, samples: int) -> SliceStatistics:
        """Of the `number`-th fetched slot, which holds so many samples."""
        return SliceStatistics.restored(statistics_state(self.sums, self.counts, number, samples))


class Fetcher:
    """Copies results to the host, beside the run of the next bucket."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    @torch.no_grad()
    def fetch(
        self, buffers: Mapping[str, Tensor], slots: Sequence[int], *, logits: bool = False
    ) -> Fetched:
        """Begins to copy what the bucket enqueued last leaves, with `logits` also those.

        The slots must not be written again before `Fetched.wait` has returned.
        """
        # Here, not beside: the next bucket begins by resetting these.
        flags = buffers["broken"]
        broken = _host_like(flags, len(flags)).copy_(flags, non_blocking=True)
        masks = None
        if logits:
            fused = buffers["fused"][:, TARGET_SLOT]
            masks = _host_like(fused, len(fused)).copy_(fused, non_blocking=True)
        if self._stream is None:
            return Fetched(broken, *_slots(buffers, slots), masks, None)
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            sums, counts = _slots(buffers, slots)
            done = torch.cuda.Event()
            done.record()
        return Fetched(broken, sums, counts, masks, done)


def _slots(buffers: Mapping[str, Tensor], slots: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Sums and counts of the slots, in host memory once the stream is done."""
    sums = _host_like(buffers["sums"], len(slots))
    counts = _host_like(buffers["counts"], len(slots))
    for number, slot in enumerate(slots):
        sums[number].copy_(buffers["sums"][slot], non_blocking=True)
        counts[number].copy_(buffers["counts"][slot], non_blocking=True)
    return sums, counts


def _host_like(buffer: Tensor, length: int) -> Tensor:
    pinned = buffer.device.type == "cuda"
    return torch.empty((length, *buffer.shape[1:]), dtype=buffer.dtype, pin_memory=pinned)
