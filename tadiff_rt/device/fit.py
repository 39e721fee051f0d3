"""The bucket that a device has memory for."""

from collections.abc import Callable

import torch

from tadiff_rt.device.buckets import best_bucket
from tadiff_rt.device.form import Form
from tadiff_rt.device.loop import DeviceLoop
from tadiff_rt.errors import ResourceError, TadiffError


def settle(
    loop: DeviceLoop, form_of: Callable[[int], Form], rows: int, samples: int, notes: list[str]
) -> None:
    """Prepares `loop` for the best bucket that fits into memory.

    Args:
        form_of: the form of a bucket of so many rows.
        rows: of the whole request, `samples` a slice.
        notes: where it is said that memory ran out.

    Raises:
        ResourceError: there is none for the smallest bucket (TD7001).
    """
    buckets = loop.denoiser.buckets
    while True:
        best = best_bucket([b for b in buckets if b <= loop.most_rows], rows, samples)
        reason = None
        try:
            if loop.prepare(form_of(best)).fits or best == buckets[0]:
                return
        except Exception as error:
            if not ran_out(error):
                raise
            reason = str(error)
        if reason is None:
            loop.most_rows = max(b for b in buckets if b < best)
        else:
            lower(loop, best, reason, notes)


def lower(loop: DeviceLoop, rows: int, reason: str, notes: list[str]) -> None:
    """Allows at most half of `rows` from now on: memory ran out for them.

    Raises:
        ResourceError: no bucket is as small (TD7001).
    """
    loop.release()
    smaller = [b for b in loop.denoiser.buckets if b <= rows // 2]
    if not smaller:
        raise ResourceError(
            "TD7001",
            f"out of memory for {rows} rows on {loop.device}: {reason[:200]}",
            fix="free memory on the device, or choose another --backend",
        )
    loop.most_rows = smaller[-1]
    notes.append(f"out of memory with {rows} rows a call; went on with at most {smaller[-1]}")


def ran_out(error: Exception) -> bool:
    """Whether memory is what there was none of: PyTorch, CUDA and libraries say it differently."""
    if isinstance(error, TadiffError):
        return error.code == "TD7001"
    said = ("out of memory", "not enough memory", "ALLOC_FAILED")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in said)
    )
