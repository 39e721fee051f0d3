"""Statistics of the samples of many slices, updated on the device; `tadiff_rt.ensemble` is their
definition.

A slot holds what `SliceStatistics` keeps of one slice. Its sums, float64 there, are unevaluated
sums hi + lo of two float32 here (Dekker 1971): a slot is `PLANES` float32 images,

    0:3 and 3:6       mean of the three channels, hi and lo
    6:9 and 9:12      sum of squared differences from the mean
    12:15 and 15:18   sum of |x_k - x_(k-1)|
    18:21             image of the last sample
    21 and 22         sum of tumour probabilities
    23                tumour mask of the last sample, 0 or 1

Every hi + lo is a float64 exactly, with hi the float32 nearest to it: `statistics_state` and
`slot_of_state` lose nothing.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

PLANES = 24

TARGET_SLOT = 3
"""Channel of the logits that is the forecast's."""

THRESHOLD = 0.5
"""A voxel is tumour in a sample where its probability, the sigmoid of the logit, exceeds this."""

_SUMS = {"_mean": (0, 3), "_squares": (6, 3), "_pair_sum": (12, 3), "_probability_sum": (21, 1)}
"""First plane of hi, and how many; lo follows."""
_IMAGE = slice(18, 21)
_MASK = 23
_AREA, _OVERLAP = 0, 1


def ensemble_step_reference(
    sums: Tensor,
    counts: Tensor,
    images: Tensor,
    logits: Tensor,
    inside: Tensor,
    segments: Tensor,
) -> None:
    """What the kernel computes, in plain PyTorch and float64: the CPU implementation.

    Args: as of `ensemble_step`.
    """
    for first, rows, slot, done in segments.tolist():
        for k in range(rows):
            image, logit = images[first + k], logits[first + k, TARGET_SLOT]
            logit = torch.where(inside != 0, logit, -torch.inf)
            _add(sums[slot], counts[slot], image, logit.double(), done + k)


def _add(planes: Tensor, counts: Tensor, image: Tensor, logit: Tensor, done: int) -> None:
    """Sample number `done`, by Welford's recurrence as in `SliceStatistics.add`."""
    if done == 0:
        planes.zero_()
    mean, squares, pairs, total = (_joined(planes, *at) for at in _SUMS.values())
    sample = image.double()
    before = sample - mean
    mean = mean + before / (done + 1)
    squares = squares + before * (sample - mean)
    if done:
        pairs = pairs + (sample - planes[_IMAGE].double()).abs()
    probability = 0.5 + 0.5 * torch.tanh(0.5 * logit)
    values = (mean, squares, pairs, total + probability)
    for (first, n), value in zip(_SUMS.values(), values, strict=True):
        planes[first : first + n] = value.float()
        planes[first + n : first + 2 * n] = (value - value.float().double()).float()
    mask = probability > THRESHOLD
    counts[done, _AREA] = mask.sum()
    counts[done, _OVERLAP] = (mask & (planes[_MASK] != 0)).sum()
    planes[_IMAGE], planes[_MASK] = image, mask.float()


def _joined(planes: Tensor, first: int, n: int) -> Tensor:
    hi, lo = planes[first : first + n], planes[first + n : first + 2 * n]
    return hi.double() + lo.double()


@torch.library.custom_op(
    "tadiff::ensemble_step", mutates_args=("sums", "counts"), device_types="cpu"
)
def ensemble_step(
    sums: Tensor,
    counts: Tensor,
    images: Tensor,
    logits: Tensor,
    inside: Tensor,
    segments: Tensor,
) -> None:
    """Adds the samples of a batch to the statistics of their slices.

    The rows of a slice are adjacent and in sample order. How samples are cut into batches changes
    no bit. On a GPU: two launches, nothing allocated, no number read on the host; error bounds
    are in `ensemble_step_triton`.

    Args:
        sums: (slots, PLANES, h, w) float32, updated; see the module. What a slot held before its
            sample 0 is ignored.
        counts: (slots, n, 2) int32, entries of the samples added are overwritten: tumour voxels
            of a sample, and those that it shares with the sample before (0 for sample 0).
        images: (b, 3, h, w) float32.
        logits: (b, 4, h, w) float32; that of `TARGET_SLOT` counts.
        inside: (h, w) uint8, 0 where there is no patient: probability 0, no tumour.
        segments: (s, 4) int32: first row, number of rows, slot, and how many samples the slot
            holds. Segments with 0 rows are skipped. The numbers are not checked on a GPU: rows
            below b, slots below `slots` and no slot twice, samples below n.

    All are contiguous and on one device; at most 65,535 segments.

    Raises:
        ValueError: an argument has another shape, dtype or device, or is not contiguous.
    """
    _check(sums, counts, images, logits, inside, segments)
    ensemble_step_reference(sums, counts, images, logits, inside, segments)


@ensemble_step.register_kernel("cuda")
def on_gpu(*arguments: Any) -> None:
    """`ensemble_step` by the kernels."""
    from tadiff_kernels.ensemble_step_triton import launch

    _check(*arguments)
    with torch.cuda.device(arguments[0].device):
        launch(*arguments)


@ensemble_step.register_fake
def _(*_: Any) -> None:
    """Nothing is returned."""


def statistics_state(
    sums: Tensor, counts: Tensor, slot: int, samples: int
) -> dict[str, NDArray[Any]]:
    """What `SliceStatistics.restored` continues from: the state of a slot of so many samples.

    Raises:
        ValueError: `samples` is not 1 to the number that `counts` holds.
    """
    _check_samples(samples, counts.shape[1])
    planes, found = sums[slot].cpu(), counts[slot, :samples].cpu().numpy().astype(np.int64)
    state: dict[str, NDArray[Any]] = {
        name: _joined(planes, *at).numpy() for name, at in _SUMS.items()
    }
    return {
        **state,
        "_probability_sum": state["_probability_sum"][0],
        "_last_image": planes[_IMAGE].numpy(),
        "_last_mask": planes[_MASK].numpy() != 0,
        "_areas": found[:, _AREA],
        "_overlaps": found[1:, _OVERLAP],
        "threshold": np.array(THRESHOLD),
    }


def slot_of_state(state: Mapping[str, NDArray[Any]], capacity: int) -> tuple[Tensor, Tensor]:
    """A slot, `sums[k]` and `counts[k]`, that goes on where `SliceStatistics.state` is.

    What comes from `statistics_state` returns to the same bits; other float64 are rounded, by at
    most 2^-49 of their size.

    Args:
        capacity: the second dimension of `counts`.

    Raises:
        ValueError: the state has another threshold, or not 1 to `capacity` samples.
    """
    samples = len(state["_areas"])
    _check_samples(samples, capacity)
    if float(state["threshold"]) != THRESHOLD:
        raise ValueError(f"the threshold must be {THRESHOLD}, got {state['threshold']}")
    planes = np.empty((PLANES, *state["_last_mask"].shape), np.float32)
    for name, (first, n) in _SUMS.items():
        hi = state[name].astype(np.float32)
        planes[first : first + n], planes[first + n : first + 2 * n] = hi, state[name] - hi
    planes[_IMAGE], planes[_MASK] = state["_last_image"], state["_last_mask"]
    counts = np.zeros((capacity, 2), np.int32)
    counts[:samples, _AREA], counts[1:samples, _OVERLAP] = state["_areas"], state["_overlaps"]
    return torch.from_numpy(planes), torch.from_numpy(counts)


def _check_samples(samples: int, capacity: int) -> None:
    if not 1 <= samples <= capacity:
        raise ValueError(f"samples must be 1 to {capacity}, got {samples}")


def _check(
    sums: Tensor, counts: Tensor, images: Tensor, logits: Tensor, inside: Tensor, segments: Tensor
) -> None:
    b, (h, w), slots = images.shape[0], images.shape[2:], sums.shape[0]
    expected = {
        "images": (images, torch.float32, (b, 3, h, w)),
        "logits": (logits, torch.float32, (b, 4, h, w)),
        "inside": (inside, torch.uint8, (h, w)),
        "sums": (sums, torch.float32, (slots, PLANES, h, w)),
        "counts": (counts, torch.int32, (slots, *counts.shape[1:2], 2)),
        "segments": (segments, torch.int32, (len(segments), 4)),
    }
    for name, (tensor, dtype, shape) in expected.items():
        if (tensor.dtype, tensor.shape, tensor.device) != (dtype, shape, images.device):
            raise ValueError(
                f"{name} must be {dtype} of shape {shape} on {images.device}, got {tensor.dtype} "
                f"of shape {tuple(tensor.shape)} on {tensor.device}"
            )
        if not tensor.is_contiguous():
            raise ValueError(
                f"{name} must be contiguous, got strides {tensor.stride()} for shape {shape}"
            )
