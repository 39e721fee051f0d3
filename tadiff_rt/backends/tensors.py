"""What the GPU backends share: buckets, shapes, and tensors that a runtime reads by address.

Imports without torch, which is passed in where it is needed.
"""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tadiff_rt.errors import TadiffError

if TYPE_CHECKING:  # optional here
    from torch import Tensor

BUCKETS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64)
"""Rows that a denoiser for any number of them is prepared for: powers of two, and 1.25 and 1.5
times these."""
ALIGNMENT = 256
"""Bytes, of the addresses that a runtime is given: what TensorRT asks for and what the allocators
of onnxruntime and PyTorch give."""
MEMORY = re.compile(
    r"memory ?error|out ?of ?memory|not enough memory|failed to allocate|available memory"
    r"|alloc_failed|bad_alloc|can't alloc|failed to map segment|temporarily unavailable",
    re.IGNORECASE,
)
"""How Python, PyTorch, onnxruntime, OpenVINO, CUDA, cuBLAS and cuDNN say that there is none left;
the last is for a thread."""

INPUTS = ("sources", "x_t", "shifts")
Float32Array = NDArray[np.float32]


def shapes(size: int, width: int, rows: int) -> dict[str, list[int]]:
    """Of the inputs and outputs of a denoiser."""
    return {
        "sources": [rows, 9, size, size],
        "x_t": [rows, 3, size, size],
        "shifts": [1, width],
        "eps": [rows, 3, size, size],
        "mask_logits": [rows, 4, size, size],
    }


def readable(
    torch: Any, expected: Mapping[str, Sequence[int]], device: Any, given: "Sequence[Tensor]"
) -> "list[Tensor]":
    """`given`, or aligned copies: what a runtime may read that is told an address alone.

    Raises:
        ValueError: one is not contiguous float32 of the shape that was prepared for, on `device`.
    """
    for name, tensor in zip(INPUTS, given, strict=True):
        shape = tuple(expected.get(name, ()))
        if tensor.shape != shape:
            raise ValueError(f"{name} must have shape {shape}, got {tuple(tensor.shape)}")
        if tensor.dtype != torch.float32 or tensor.device != device or not tensor.is_contiguous():
            raise ValueError(
                f"{name} must be contiguous float32 on {device}, got {tensor.dtype} on "
                f"{tensor.device} with strides {tensor.stride()}"
            )
    return [t if t.data_ptr() % ALIGNMENT == 0 else t.clone() for t in given]


def of_memory(error: Exception) -> bool:
    """Whether an error, by its class or its text, says that memory ran out."""
    return MEMORY.search(repr(error)) is not None


def through_host(
    torch: Any, denoiser: Any, arrays: Sequence[Float32Array]
) -> tuple[Float32Array, Float32Array]:
    """`Backend.denoise` by the `DeviceDenoiser` of the same backend."""
    try:
        return _uploaded(torch, denoiser, arrays)
    except TadiffError as e:
        error = e.with_traceback(None)  # its frames hold the uploaded arrays
    raise error


def _uploaded(
    torch: Any, denoiser: Any, arrays: Sequence[Float32Array]
) -> tuple[Float32Array, Float32Array]:
    given = [torch.from_numpy(np.ascontiguousarray(a)).to(denoiser.device) for a in arrays]
    eps, logits = (y.float().contiguous().cpu().numpy() for y in denoiser(*given))
    return eps, logits
