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
    """Allows at most half of `rows` from now on, or the smallest bucket: memory ran out for them.

    Raises:
        ResourceError: they were the smallest (TD7001).
    """
    loop.release()
    buckets = loop.denoiser.buckets
    smaller = [b for b in buckets if b <= rows // 2] or [b for b in buckets if b < rows][:1]
    if not smaller:
        raise ResourceError(
            "TD7001",
            f"out of memory for {rows} rows on {loop.device}: {reason[:200]}",
            fix="free memory on the device, or choose another --backend",
        )
    loop.most_rows = smaller[-1]
    notes.append(f"out of memory with {rows} rows a call; went on with at most {smaller[-1]}")


def ran_out(error: BaseException | None) -> bool:
    """Whether memory is what there was none of: PyTorch, CUDA and libraries say it differently.

    So it is where that led to another error, as the end of a capture that was not to be ended.
    """
    if error is None:
        return False
    if isinstance(error, TadiffError):
        return error.code == "TD7001"
    said = ("out of memory", "not enough memory", "ALLOC_FAILED")
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, RuntimeError) and any(words in str(error) for words in said):
        return True
    return ran_out(error.__cause__ or error.__context__)
