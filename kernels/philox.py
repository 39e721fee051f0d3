"""The noise of `tadiff_rt.noise` in PyTorch: Philox words to the bit, normals to the last place.

`tadiff_rt.noise` is the definition (words: Salmon et al. 2011; floats: Box and Muller 1958, in
float64, rounded once to float32). `normal_reference` is plain torch; `normal` is a Triton kernel
(`philox_triton`) that needs no float64.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def draw_words(seed: int, step: int, device: torch.device | str) -> Tensor:
    """(3,) int32 device buffer for `normal`: low and high half of the seed, step.

    Args:
        seed: 0 … 2^64 − 1.
        step: 0 for x_T, i + 1 for the noise of solver row i.

    Raises:
        ValueError: a half of the seed or the step is not in 0 … 2^32 − 1.
    """
    return _words([seed & _WORD, seed >> 32, step], device)


def row_words(rows: Sequence[tuple[int, int]], device: torch.device | str) -> Tensor:
    """(len(rows), 2) int32 device buffer for `normal`: the (slice, sample) of every batch row.

    Raises:
        ValueError: a number is not in 0 … 2^32 − 1.
    """
    return _words([word for row in rows for word in row], device).reshape(len(rows), 2)


def _words(values: Sequence[int], device: torch.device | str) -> Tensor:
    """Unsigned words as int32 of the same bits, which is what Triton and every device hold."""
    for value in values:
        if not 0 <= value <= _WORD:
            raise ValueError(f"a Philox word must be in 0 to 2^32 - 1, got {value}")
    return torch.tensor(values, dtype=torch.int64).to(torch.int32).to(device)


def philox_words(counter: Sequence[Tensor], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Philox4x32-10 in plain torch: Salmon et al. 2011.

    Args:
        counter: words 0 … 3 as int64, shapes that broadcast.
        key: words 0 and 1.

    Returns:
        Four words a counter, int64 in 0 … 2^32 − 1, of the broadcast shape.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = _product(_MULTIPLIERS[0], c0)
        high1, low1 = _product(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
    return torch.broadcast_tensors(c0, c1, c2, c3)


def _product(m: int, c: Tensor) -> tuple[Tensor, Tensor]:
    """High and low word of m · c. By 16-bit halves: int64 cannot hold an unsigned product."""
    low = m * (c & 0xFFFF)
    high = m * (c >> 16) + (low >> 16)
    return high >> 16, (high & 0xFFFF) << 16 | low & 0xFFFF


def normal_reference(
    seed: int,
    rows: Sequence[tuple[int, int]],
    step: int,
    shape: tuple[int, ...],
    device: torch.device | str = "cpu",
) -> Tensor:
    """What the kernel computes, in plain torch and float64: (len(rows), *shape) float32.

    Args: as of `draw_words` and `row_words`. shape: of one row.
    """
    draw = draw_words(seed, step, device).to(torch.int64) & _WORD
    pairs = row_words(rows, device).to(torch.int64) & _WORD
    size = math.prod(shape)
    blocks = torch.arange((size + 3) // 4, device=device)
    counter = (blocks, pairs[:, :1], pairs[:, 1:], draw[2])
    words = philox_words(counter, (seed & _WORD, seed >> 32))
    values = torch.empty(len(rows), len(blocks), 4, dtype=torch.float64, device=device)
    for pair in (0, 2):
        radius = ((words[pair].double() + 1.0) * 2.0**-32).log().mul(-2.0).sqrt()
        angle = (2.0 * math.pi) * (words[pair + 1].double() * 2.0**-32)
        values[..., pair] = radius * angle.cos()
        values[..., pair + 1] = radius * angle.sin()
    return values.flatten(1)[:, :size].reshape(len(rows), *shape).float()


def normal(draw: Tensor, rows: Tensor, out: Tensor) -> Tensor:
    """Fills `out` with the noise of its rows: `tadiff_rt.noise.normal` to 1 ulp, 0 = -0.

    Allocates nothing and reads no number on the host: seed, step, slices and samples come from
    device buffers when the kernel runs. A captured CUDA graph that is replayed after these buffers
    were rewritten in place (`draw[2].fill_(step)`) draws the new noise, never a stale one.

    Args:
        draw: of `draw_words`.
        rows: of `row_words`, row k that of out[k].
        out: (len(rows), …) float32, contiguous, overwritten; at most 65,535 rows (the limit of a
            CUDA grid) of 2^34 elements.

    Returns:
        `out`.

    Raises:
        ValueError: a tensor has another dtype, shape or device, or is not contiguous.
    """
    expected = {
        "draw": (draw, torch.int32, (3,)),
        "rows": (rows, torch.int32, (len(out), 2)),
        "out": (out, torch.float32, tuple(out.shape)),
    }
    for name, (tensor, dtype, shape) in expected.items():
        if tensor.dtype != dtype or tensor.shape != shape or tensor.device != out.device:
            raise ValueError(
                f"{name} must be {dtype} of shape {shape} on {out.device}, got {tensor.dtype} "
                f"of shape {tuple(tensor.shape)} on {tensor.device}"
            )
        if not tensor.is_contiguous():
            raise ValueError(
                f"{name} must be contiguous, got strides {tensor.stride()} for shape {shape}"
            )
    if out.numel():
        from tadiff_kernels.philox_triton import launch

        launch(draw, rows, out)
    return out
