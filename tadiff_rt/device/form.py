"""What the buffers and the graph of a bucket depend on, and the bytes that they take."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tadiff_kernels.ensemble_step import PLANES
from tadiff_rt.plan import COLUMNS

Start = Literal["drawn", "informed", "given"]
"""x of the first row: noise drawn on the device, a noised last source, or uploaded."""

RESULTS = ("x", "fused", "broken", "sums", "counts")
"""Buffers that a run of a bucket writes and somebody reads."""

SHARE = 0.9
"""Of the free memory that is planned for. The rest is for what only a capture takes."""

Layout = dict[str, tuple[torch.dtype, tuple[int, ...]]]


@dataclass(frozen=True)
class Form:
    """The key of a captured graph: nothing else of a request is part of it.

    Coefficients, times, conditioning, seed, slices and samples lie in buffers, from which a replay
    reads what was put there last.
    """

    rows: int
    """Of a bucket."""
    segments: int
    """Slices that a bucket can touch."""
    samples: int
    """Most samples of a slice."""
    steps: int
    """Rows of the solver's table."""
    history: int
    """See `SolverPlan.history`."""
    noisy: bool
    """The table draws noise."""
    x0_range: tuple[float, float] | None
    start: Start
    size: tuple[int, int]
    """(h, w) of an image."""
    width: int
    """Columns of the conditioning."""

    @property
    def slots(self) -> int:
        """Slices whose statistics are on the device: of one bucket and of the one before."""
        return 2 * self.segments

    def buffers(self) -> Layout:
        """Every buffer by its name."""
        floats, words = torch.float32, torch.int32
        image, mask = (self.rows, 3, *self.size), (self.rows, 4, *self.size)
        layout: Layout = {
            "table": (floats, (self.steps, len(COLUMNS))),
            # Whole lines of 256 bytes: runtimes copy an argument that begins elsewhere.
            "shifts": (floats, (self.steps, -(-self.width // 64) * 64)),
            "seed": (words, (2,)),
            "rows": (words, (self.rows, 2)),
            "segments": (words, (self.segments, 4)),
            "inside": (torch.uint8, self.size),
            "sources": (floats, (self.rows, 9, *self.size)),
            "x": (floats, image),
            "estimates": (floats, (self.history + 1, *image)),
            "fused": (floats, mask),
            "broken": (words, (self.rows,)),
            "sums": (floats, (self.slots, PLANES, *self.size)),
            "counts": (words, (self.slots, self.samples, 2)),
        }
        if self.start == "informed":
            layout["guess"] = (floats, image)
        return layout

    def bytes_of(self, *names: str) -> int:
        """Of the named buffers; of all where none is named."""
        layout = self.buffers()
        return sum(
            dtype.itemsize * math.prod(shape)
            for dtype, shape in (layout[name] for name in names or layout)
        )


@dataclass(frozen=True)
class Memory:
    """Bytes on the device."""

    free: int | None
    """Before anything was taken; None on a CPU, where nothing is measured."""
    buffers: int
    """Of the loop, and of the copy of results that a new graph is compared with."""
    workspace: int
    """What the denoiser took beside them, to get ready and for one call."""

    @property
    def planned(self) -> int:
        """All of it."""
        return self.buffers + self.workspace

    @property
    def fits(self) -> bool:
        """It leaves some of the free memory."""
        return self.free is None or self.planned <= SHARE * self.free


@dataclass(frozen=True, eq=False)
class Inputs:
    """What a bucket is computed from."""

    tensors: Mapping[str, Tensor]
    """By the name of the buffer that takes them."""
    shifts: Tensor
    """(steps, p) conditioning, on the device."""
    volume: Tensor
    """(d, 9, h, w) sources of every slice, on the device."""
    at: Tensor
    """(rows,) int64 slice of every row."""
    states: Mapping[int, tuple[Tensor, Tensor]]
    """Sums and counts that slots begin with."""
